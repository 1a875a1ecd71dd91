"""What a job says to MLflow. Nothing here waits for the server: a job must not stop, nor slow down, for its records."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dlfd_fleet.exceptions import TrackingError
from dlfd_fleet.settings import TrackingSettings
from dlfd_fleet.tracking.outbox import Outbox

# MLflow's own retries would hold a job for minutes; the outbox is our retry. Set before MLflow is imported, and never
# over what a user has set.
for _name, _value in {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}.items():
    os.environ.setdefault(_name, _value)

from mlflow.exceptions import MlflowException  # noqa: E402
from mlflow.utils.logging_utils import disable_logging, enable_logging  # noqa: E402

from dlfd_fleet.tracking.sender import Sender, as_text, http_status, milliseconds  # noqa: E402

logger = logging.getLogger(__name__)
RunStatus = Literal["FINISHED", "FAILED", "KILLED"]
_SHORTEST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
_FOR_EVER = frozenset({400, 404, 409, 413})


@dataclass(frozen=True)
class ChampionVersion:
    """The registered model version that devices are to run."""

    version: str
    tags: Mapping[str, str]
    run_id: str


class Tracker:
    """Writes a job's records into the outbox and sends them from one background thread."""

    def __init__(self, settings: TrackingSettings, state_folder: Path) -> None:
        self.uri = tracking_uri(settings, state_folder)
        self._outbox = Outbox(state_folder / "coordinator" / "outbox.db")
        self._sender = Sender(settings, self.uri, state_folder / "mlartifacts", self._outbox)
        self._using_mlflow = threading.Lock()
        self._wake, self._closing = threading.Event(), threading.Event()
        self._failures = 0
        self._thread = threading.Thread(target=self._run, name="mlflow-sender", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------ what a job says

    def start_job(self, job: str, *, kind: str, parameters: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Open a job's run, with every setting as a parameter."""
        tags = {"dlfd.kind": kind} | dict(tags)
        self._put(job, "start", {"parameters": as_text(parameters), "tags": tags})

    def log_metrics(self, job: str, metrics: Mapping[str, float], *, step: int, site: str | None = None) -> None:
        """Record metrics of a round, of the job or of one site under its pseudonym."""
        finite = {name: float(value) for name, value in metrics.items() if np.isfinite(value)}
        fields = {"metrics": finite, "step": step, "site": site or "", "at": milliseconds(datetime.now(UTC))}
        self._put(job, "metrics", fields)

    def log_image(self, job: str, name: str, png: bytes) -> None:
        """Keep a picture with a job's run, as ``figures/NAME.png``."""
        self._put(job, "artifact", {"folder": "figures", "name": f"{name}.png"}, png)

    def log_model(
        self,
        job: str,
        onnx_file: Path,
        *,
        input_example: NDArray[np.uint8],
        outputs: int,
        tags: Mapping[str, str],
        extra_files: Mapping[str, Path] = MappingProxyType({}),
        alias: str | None = None,
    ) -> None:
        """Log and register a job's ONNX model, once however often it is asked, and move an alias to it.

        Parameters
        ----------
        input_example
            Synthetic images ``(N, S, S, 3)``; never a person's.
        outputs
            Number of probabilities an image.
        extra_files
            Kept beside the model, by name.
        """
        fields = {
            "file": str(onnx_file),
            "input_example": input_example.tolist(),
            "outputs": outputs,
            "tags": dict(tags),
            "extra_files": {name: str(file) for name, file in extra_files.items()},
            "alias": alias,
        }
        self._put(job, "model", fields)

    def revoke_older_versions(self, job: str, epoch: int) -> None:
        """Tag every version under an erasure epoch as revoked."""
        self._put(job, "revoke", {"epoch": epoch})

    def finish_job(self, job: str, status: RunStatus) -> None:
        """Close a job's run and those of its sites."""
        self._put(job, "finish", {"status": status, "at": milliseconds(datetime.now(UTC))})

    # ------------------------------------------------------------------ what a job asks

    def champion(self) -> ChampionVersion | None:
        """Return the version that the alias ``champion`` points at, if there is one.

        Raises
        ------
        TrackingError
            If the server does not answer.
        """
        try:
            with self._using_mlflow:
                version = self._sender.champion()
        except Exception as error:
            raise TrackingError(f"MLflow at {self.uri} does not answer ({type(error).__name__}).") from error
        if version is None:
            return None
        return ChampionVersion(str(version.version), dict(version.tags), str(version.run_id))

    def job_of(self, version: str) -> str | None:
        """Return the job that made a registered version, by the registry's number; None if there is no such version.

        Raises
        ------
        TrackingError
            If the server does not answer.
        """
        try:
            with self._using_mlflow:
                return self._sender.job_of(version)
        except Exception as error:
            raise TrackingError(f"MLflow at {self.uri} does not answer ({type(error).__name__}).") from error

    @property
    def waiting(self) -> int:
        """Entries that the server has not taken yet."""
        return self._outbox.waiting()

    @property
    def refused(self) -> int:
        """Entries that the server will never take; they are kept in the outbox with the reason."""
        return self._outbox.refused()

    def flush(self, patience: float) -> int:
        """Wait until everything is sent, or the server turns out not to answer; return what still waits.

        Parameters
        ----------
        patience
            Longest wait, seconds.
        """
        deadline, failures = time.monotonic() + patience, self._failures
        self._wake.set()
        while (waiting := self.waiting) and time.monotonic() < deadline and self._failures == failures:
            time.sleep(0.05)
        return waiting

    def close(self) -> None:
        """Stop sending; what is left waits for the next process."""
        self._closing.set()
        self._wake.set()
        self._thread.join()
        self._outbox.close()

    # ------------------------------------------------------------------ sending

    def _put(self, job: str, kind: str, fields: Mapping[str, Any], content: bytes | None = None) -> None:
        self._outbox.put(job, kind, fields, content)
        if not self._failures:
            self._wake.set()

    def _run(self) -> None:
        pause = _SHORTEST_PAUSE
        while not self._closing.is_set():
            self._wake.clear()
            if self._send_all():
                pause, self._failures = _SHORTEST_PAUSE, 0
                self._wake.wait()
            else:
                self._failures += 1
                self._wake.wait(pause)
                pause = min(_LONGEST_PAUSE, pause * 2.0)

    def _send_all(self) -> bool:
        """Send what waits, in order; return False when the server did not answer."""
        while not self._closing.is_set() and (entry := self._outbox.first()):
            try:
                with self._using_mlflow, _quiet_mlflow():
                    self._sender.send(entry)
            except MlflowException as error:
                if http_status(error) not in _FOR_EVER:
                    logger.info("MLflow did not take an entry: %s", error)
                    return False
                self._refuse(entry.sequence, entry.kind, error)
            except OSError as error:  # connections, and requests' errors, are of this kind
                logger.info("MLflow did not take an entry: %s", error)
                return False
            except Exception as error:
                self._refuse(entry.sequence, entry.kind, error)
            else:
                self._outbox.sent(entry.sequence)
        return True

    def _refuse(self, sequence: int, kind: str, error: Exception) -> None:
        logger.warning("MLflow refused an entry of kind '%s': %s", kind, error)
        self._outbox.refuse(sequence, str(error))


def tracking_uri(settings: TrackingSettings, state_folder: Path) -> str:
    """Return where runs go: the setting's server, or a SQLite store in the state folder."""
    return settings.uri or f"sqlite:///{state_folder / 'mlflow.db'}"


@contextmanager
def open_tracker(settings: TrackingSettings, state_folder: Path) -> Iterator[Tracker]:
    """Open a tracker; sending stops when the context is left, and what is left waits on disk."""
    tracker = Tracker(settings, state_folder)
    try:
        yield tracker
    finally:
        tracker.close()


@contextmanager
def _quiet_mlflow() -> Iterator[None]:
    """Keep MLflow's chatter off a terminal that shows progress bars."""
    disable_logging()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        enable_logging()  # type: ignore[no-untyped-call]
