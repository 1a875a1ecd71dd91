"""Record a job in MLflow without waiting for the server."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dlfd_fleet.current_job import set_current_job
from dlfd_fleet.exceptions import OutboxError, TrackingError
from dlfd_fleet.plain_text import visible
from dlfd_fleet.settings import TrackingSettings
from dlfd_fleet.tracking.outbox import MODEL, REGISTRY_KINDS, REVOKE, Entry, Outbox

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
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE  # noqa: E402

from dlfd_fleet.tracking.registry import RegisteredVersion, Registry, answers, in_words, is_refusal  # noqa: E402
from dlfd_fleet.tracking.sender import Sender, as_text, milliseconds  # noqa: E402

logger = logging.getLogger(__name__)
RunStatus = Literal["FINISHED", "FAILED", "KILLED"]
_SHORTEST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
_AFTER_ITS_MODEL = "waits for the model of its job, which was refused: else no version would be left that may run"


class Tracker:
    """Writes a job's records into the outbox and sends them from one background thread.

    Raises
    ------
    OutboxError
        If a record cannot be written to disk. The job stops, and can be resumed when there is space.
    """

    def __init__(self, settings: TrackingSettings, state_folder: Path) -> None:
        self.uri = tracking_uri(settings, state_folder)
        self._outbox = Outbox(state_folder / "coordinator" / "outbox.db")
        self._sender = Sender(settings, self.uri, state_folder / "mlartifacts", self._outbox)
        self._using_mlflow = threading.Lock()
        self._wake, self._closing = threading.Event(), threading.Event()
        self._failures, self._problem = 0, ""
        self._thread = threading.Thread(target=self._run, name="mlflow-sender", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------ what a job says

    def start_job(self, job: str, *, kind: str, parameters: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Open a job's run, with every setting as a parameter."""
        tags = {"dlfd.kind": kind} | dict(tags)
        set_current_job({"dlfd.job": job} | tags)
        self._put(job, "start", {"parameters": as_text(parameters), "tags": tags})

    def log_metrics(
        self, job: str, metrics: Mapping[str, float], *, step: int, site: str | None = None, attempt: int | None = None
    ) -> None:
        """Record metrics of a round for the job, for one site (by pseudonym), or for one attempt.

        Metrics that a resumed job repeats are recorded once.
        """
        finite = {name: float(value) for name, value in metrics.items() if np.isfinite(value)}
        fields = {"metrics": finite, "step": step, "site": site or "", "attempt": str(attempt or "")}
        self._outbox.put_metrics(job, fields | {"at": milliseconds(datetime.now(UTC))})
        self._notify()

    def set_tags(self, job: str, tags: Mapping[str, str]) -> None:
        """Set tags of a job's run."""
        self._put(job, "tags", {"tags": dict(tags)})

    def describe(self, job: str, text: str) -> None:
        """Set the description of a job's run, in Markdown."""
        self.set_tags(job, {MLFLOW_RUN_NOTE: text})

    def log_dataset(self, job: str, name: str, profile: Mapping[str, Any], context: str) -> None:
        """Record a job's data set: counts, and a digest of these counts.

        Parameters
        ----------
        profile
            Counts without names, paths or data of single people. ``sites`` is the number of sites.
        context
            Its purpose, such as ``training``.
        """
        digest = hashlib.sha256(json.dumps(dict(profile), sort_keys=True).encode()).hexdigest()[:8]
        self._put(job, "dataset", {"name": name, "digest": digest, "profile": dict(profile), "context": context})

    def log_image(self, job: str, name: str, png: bytes) -> None:
        """Keep a picture with a job's run, as ``figures/NAME.png``."""
        self.log_file(job, f"figures/{name}.png", png)

    def log_file(self, job: str, path: str, content: bytes) -> None:
        """Keep a file with a job's run, under ``FOLDER/NAME``."""
        folder, _, name = path.rpartition("/")
        self._put(job, "artifact", {"folder": folder, "name": name}, content)

    def log_model(
        self,
        job: str,
        onnx_file: Path,
        *,
        input_example: NDArray[Any],
        outputs: int,
        tags: Mapping[str, str],
        extra_files: Mapping[str, Path] = MappingProxyType({}),
        alias: str | None = None,
        description: str = "",
    ) -> None:
        """Log and register a job's ONNX model, once for any number of calls, and move an alias to it.

        Parameters
        ----------
        input_example
            Synthetic inputs, such as images ``(N, S, S, 3)``; never those of a person.
        outputs
            Number of probabilities of an image.
        extra_files
            Files to store with the model, by name.
        description
            Description of the version, in Markdown.
        """
        fields = {
            "file": str(onnx_file),
            "input_example": input_example.tolist(),
            "input_type": str(input_example.dtype),
            "outputs": outputs,
            "tags": dict(tags),
            "extra_files": {name: str(file) for name, file in extra_files.items()},
            "alias": alias,
            "description": description,
        }
        self._put(job, "model", fields)

    def revoke_older_versions(self, job: str, epoch: int, *, purge: bool = False) -> None:
        """Revoke every version that may remember people whom the model of this job and epoch has forgotten.

        Parameters
        ----------
        purge
            Whether to delete their files.
        """
        self._put(job, "revoke", {"epoch": epoch, "purge": purge})

    def finish_job(self, job: str, status: RunStatus) -> None:
        """Close a job's run and those of its sites."""
        set_current_job({})
        self._put(job, "finish", {"status": status, "at": milliseconds(datetime.now(UTC))})
        if status == "FINISHED":
            self._outbox.forget_logged(job)

    # ------------------------------------------------------------------ what a job asks

    def champion(self) -> RegisteredVersion | None:
        """Return the version that the alias ``champion`` points at, if there is one.

        Raises
        ------
        TrackingError
            If the server does not answer.
        """
        with self.registry() as registry:
            return registry.champion()

    @contextmanager
    def registry(self) -> Iterator[Registry]:
        """Lend the registry while nothing is sent; MLflow's exceptions become a :class:`TrackingError`."""
        with self._using_mlflow, _quiet_mlflow(), answers(self.uri):
            yield self._sender.registry

    @property
    def waiting(self) -> int:
        """Number of entries that the server has not taken yet."""
        return self._outbox.waiting()

    @property
    def refused(self) -> int:
        """Number of entries that MLflow refused; they stay in the outbox with the reason."""
        return self._outbox.refused()

    def owes_model(self, job: str) -> bool:
        """Tell whether the registry does not have a job's model yet."""
        return self._outbox.holds(job, "model")

    def refusals(self, job: str) -> list[str]:
        """Return why MLflow refused some of a job's entries."""
        return self._outbox.refusals(job)

    @property
    def problem(self) -> str:
        """Why nothing is sent now; empty while entries are taken."""
        return self._problem

    def owed(self, job: str | None = None) -> list[str]:
        """Return sentences about what the registry still lacks of a job's model, or of all."""
        return [
            f"the {entry.kind} of {entry.job}: {entry.refused or self._problem or 'not sent yet'}"
            for entry in self._outbox.entries()
            if job in (None, entry.job) and entry.kind in REGISTRY_KINDS
        ]

    def try_again(self, champion: str | None, *, everything: bool = False) -> None:
        """Send refused entries again: those that the registry must get, or all.

        Parameters
        ----------
        champion
            The job of the current champion, if any. A late model of another job gets no alias.
        """
        self._outbox.try_again(champion, None if everything else REGISTRY_KINDS)
        self._wake.set()

    def flush(self, patience: float) -> int:
        """Wait until everything is sent or the server does not answer; return the number of waiting entries.

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
        """Stop sending; remaining entries wait for the next process."""
        self._closing.set()
        self._wake.set()
        self._thread.join()
        self._outbox.close()

    # ------------------------------------------------------------------ sending

    def _put(self, job: str, kind: str, fields: Mapping[str, Any], content: bytes | None = None) -> None:
        self._outbox.put(job, kind, fields, content)
        self._notify()

    def _notify(self) -> None:
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
        """Send what waits, in order; return False when the server did not answer, or the disk is full."""
        try:
            while not self._closing.is_set() and (entries := self._outbox.next()):
                if not self._send(entries):
                    return False
        except OutboxError as error:
            logger.info("Nothing is sent to MLflow: %s", error)
            return False
        return True

    def _send(self, entries: Sequence[Entry]) -> bool:
        """Send entries together; those that are refused, one by one. Return False if they wait."""
        if entries[0].kind == REVOKE and self._outbox.refuses(entries[0].job, MODEL):
            self._outbox.refuse(entries[0].sequence, _AFTER_ITS_MODEL)
            return True
        try:
            with self._using_mlflow, _quiet_mlflow():
                _ = self._sender.client  # whatever is wrong with the server's address says nothing against an entry
                reason = self._try(entries)
        except OutboxError:
            raise
        except Exception as error:  # a connection, a gateway, a login, a database that is away: it may pass
            self._wait_for(in_words(error))
            return False
        if reason is None:
            self._problem = ""
            self._outbox.sent(entry.sequence for entry in entries)
            return True
        if len(entries) > 1:
            return all(self._send([entry]) for entry in entries)
        logger.warning("MLflow refused an entry of kind '%s': %s", entries[0].kind, reason)
        self._outbox.refuse(entries[0].sequence, reason)
        return True

    def _try(self, entries: Sequence[Entry], *, mended: bool = False) -> str | None:
        """Send entries; return why MLflow, or we, refuse them for good. Whatever else is raised may pass."""
        try:
            self._sender.send(entries)
        except TrackingError as error:
            return visible(str(error))
        except MlflowException as error:
            if not is_refusal(error):
                raise
            if not mended and self._sender.mend(entries[0].job):
                return self._try(entries, mended=True)
            return in_words(error)
        return None

    def _wait_for(self, problem: str) -> None:
        logger.info("MLflow did not take an entry: %s", problem)
        self._problem = problem


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
def open_registry(settings: TrackingSettings, state_folder: Path) -> Iterator[Registry]:
    """Open the registry alone; what MLflow raises becomes a :class:`TrackingError`."""
    uri = tracking_uri(settings, state_folder)
    with _quiet_mlflow(), answers(uri):
        yield Registry(settings, uri)


@contextmanager
def _quiet_mlflow() -> Iterator[None]:
    """Keep MLflow's chatter off a terminal that shows progress bars."""
    disable_logging()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        enable_logging()  # type: ignore[no-untyped-call]
