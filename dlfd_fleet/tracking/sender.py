"""Send each kind of entry to MLflow.

Sending twice has the effect of sending once, because a process may die in between.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnx
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, Experiment, InputTag, LifecycleStage, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import infer_signature
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_PARENT_RUN_ID

from dlfd_fleet.configuration import MLFLOW_VARIABLE
from dlfd_fleet.exceptions import TrackingError
from dlfd_fleet.settings import TrackingSettings
from dlfd_fleet.tracking.flavor import has_names, log_named
from dlfd_fleet.tracking.outbox import Entry, Outbox
from dlfd_fleet.tracking.purge import WEIGHTS_FOLDER, revoke_remembering
from dlfd_fleet.tracking.registry import (
    ATTEMPT_TAG,
    CHAMPION,
    JOB_TAG,
    KIND_TAG,
    ORIGINAL,
    SITE_TAG,
    RegisteredVersion,
    Registry,
    is_unknown,
)

_BATCH = 100
_LONGEST_TAG = 8000  # characters that MLflow takes


class Sender:
    """Sends entries to one MLflow server, or to a local store.

    Parameters
    ----------
    artifacts
        Folder for artifacts of a local store; a server has its own.
    """

    def __init__(self, settings: TrackingSettings, uri: str, artifacts: Path, outbox: Outbox) -> None:
        self.settings, self.uri, self._artifacts, self._outbox = settings, uri, artifacts, outbox
        self.registry = Registry(settings, uri)
        self._experiment = ""

    @property
    def client(self) -> MlflowClient:
        """MLflow's client."""
        return self.registry.client

    def send(self, entries: Sequence[Entry]) -> None:
        """Send one entry, or several entries with metrics of one job together."""
        entry = entries[0]
        match entry.kind:
            case "start":
                self._start(entry)
            case "metrics":
                self._metrics(entries)
            case "tags":
                self._tag(entry)
            case "dataset":
                self._dataset(entry)
            case "artifact":
                self._artifact(entry)
            case "model":
                self._model(entry)
            case "revoke":
                fields = entry.fields
                revoke_remembering(self.registry, entry.job, fields["epoch"], also_purge=fields.get("purge", False))
            case "finish":
                for run in [*self._outbox.child_runs(self.uri, entry.job), self._run(entry.job)]:
                    self.client.set_terminated(run, entry.fields["status"], entry.fields["at"])

    def mend(self, job: str) -> bool:
        """Repair what a refusal shows, and tell whether another try may succeed.

        A run that no longer exists, for example on a new server, is forgotten, so that another one is made.

        Raises
        ------
        ConnectionError
            If somebody deleted the experiment: everything waits until it is restored.
        """
        experiment = self.client.get_experiment_by_name(self.settings.experiment)
        if experiment is None:
            self._experiment = ""
            self._experiment_id()
        else:
            _require_active(experiment)
        mended = False
        for run_id in self._outbox.runs(self.uri, job):
            run = self._known_run(run_id)
            if run is None or run.info.lifecycle_stage != LifecycleStage.ACTIVE:
                if run is not None:
                    _require_active(self.client.get_experiment(run.info.experiment_id))
                self._outbox.forget_run(run_id)
                mended = True
        return mended

    def _known_run(self, run_id: str) -> Run | None:
        try:
            return self.client.get_run(run_id)
        except MlflowException as error:
            if is_unknown(error):
                return None
            raise

    def _start(self, entry: Entry) -> None:
        run = self._run(entry.job)
        parameters = [Param(name, _storable(value)) for name, value in entry.fields["parameters"].items()]
        for start in range(0, len(parameters), _BATCH):
            self.client.log_batch(run, params=parameters[start : start + _BATCH])
        self._tag(entry)

    def _tag(self, entry: Entry) -> None:
        tags = [RunTag(name, _storable(value)[:_LONGEST_TAG]) for name, value in entry.fields["tags"].items()]
        self.client.log_batch(self._run(entry.job), tags=tags)

    def _metrics(self, entries: Sequence[Entry]) -> None:
        """Log the metrics of each run in one request."""
        by_run: dict[str, list[Metric]] = {}
        for entry in entries:
            fields = entry.fields
            run = self._run(entry.job, fields["site"], fields.get("attempt", ""))
            metrics = (Metric(name, value, fields["at"], fields["step"]) for name, value in fields["metrics"].items())
            by_run.setdefault(run, []).extend(metrics)
        for run, batch in by_run.items():
            self.client.log_batch(run, metrics=batch)

    def _dataset(self, entry: Entry) -> None:
        fields = entry.fields
        dataset = Dataset(
            name=fields["name"],
            digest=fields["digest"],
            source_type="dlfd-fleet",
            source=json.dumps({"sites": fields["profile"]["sites"]}),
            profile=json.dumps(fields["profile"]),
        )
        tag = InputTag(MLFLOW_DATASET_CONTEXT, fields["context"])
        self.client.log_inputs(self._run(entry.job), [DatasetInput(dataset, [tag])])

    def _artifact(self, entry: Entry) -> None:
        folder, name = Path(entry.fields["folder"]), entry.fields["name"]
        with tempfile.TemporaryDirectory() as temporary:
            file = Path(temporary) / name
            file.write_bytes(entry.content or b"")
            run = self._run(entry.job)
            self.client.log_artifact(run, str(file), str(folder))
        kept = {Path(found.path).name for found in self.client.list_artifacts(run, str(folder))}
        if name not in kept:  # a gateway's page for logging in is an answer, too
            raise ConnectionError(f"MLflow said that it took {folder / name}, and does not have it.")

    def _model(self, entry: Entry) -> None:
        fields = entry.fields
        version = self.registry.version_of(entry.job) or self._registered(entry)
        for tag, value in fields["tags"].items():
            self.registry.tag(version, tag, value)
        champion = self.registry.champion()
        tagged = replace(version, tags={**version.tags, **fields["tags"]})
        if champion is not None and _is_superseded(tagged, champion):
            # It comes late, after a release whose revocation could not see it.
            self.registry.revoke(tagged, f"under epoch {champion.epoch} of job {champion.job}")
            return
        if fields["alias"] == CHAMPION:
            self.registry.promote(version, f"job {entry.job}", "the verdict")
        elif fields["alias"]:
            self.registry.point(fields["alias"], version)

    def _registered(self, entry: Entry) -> RegisteredVersion:
        """Log the ONNX model with signature and input example, and register it."""
        fields, run = entry.fields, self._run(entry.job)
        for file in (fields["file"], *fields["extra_files"].values()):
            if not Path(file).exists():
                raise TrackingError(f"The model file {file} is gone, so job {entry.job} cannot be registered.")
        example = np.array(fields["input_example"], dtype=fields.get("input_type", "uint8"))
        model = _read_onnx(fields["file"])
        options = {
            "save_as_external_data": False,
            "onnx_execution_providers": ["CPUExecutionProvider"],
            "pip_requirements": ["onnxruntime", "numpy"],
            "tags": fields["tags"],
        }
        with _as_default(self.uri), mlflow.start_run(run_id=run):
            if has_names(model):
                logged = log_named(model, example, **options)
            else:
                answer = np.zeros((len(example), fields["outputs"]), dtype=np.float32)
                signature = infer_signature(example, answer)
                logged = mlflow.onnx.log_model(
                    model, name="model", signature=signature, input_example=example, **options
                )
        for target, file in fields["extra_files"].items():
            with tempfile.TemporaryDirectory() as temporary:
                copy = Path(temporary) / target
                copy.write_bytes(Path(file).read_bytes())
                self.client.log_artifact(run, str(copy), WEIGHTS_FOLDER)
        for folder, found in (
            ("the model", self.client.list_logged_model_artifacts(logged.model_id)),
            (WEIGHTS_FOLDER, self.client.list_artifacts(run, WEIGHTS_FOLDER) if fields["extra_files"] else [None]),
        ):
            if not found:
                raise ConnectionError(f"MLflow said that it took {folder} of {entry.job}, and does not have it.")
        return self.registry.register(logged.model_uri, run, logged.model_id, fields["tags"], fields["description"])

    def _run(self, job: str, site: str = "", attempt: str = "") -> str:
        """Return the run of a job, or of one of its sites or attempts; make it on first use."""
        child = site or (f"attempt-{attempt}" if attempt else "")
        known = self._outbox.run_id(self.uri, job, child)
        if known:
            return known
        own = {name: value for name, value in ((SITE_TAG, site), (ATTEMPT_TAG, attempt)) if value}
        tags = {JOB_TAG: job} | own | ({MLFLOW_PARENT_RUN_ID: self._run(job)} if child else {})
        # A process that died between making a run and noting it left one behind.
        found = [
            run
            for run in self.client.search_runs([self._experiment_id()], f"tags.`{JOB_TAG}` = '{job}'")
            if {name: run.data.tags[name] for name in (SITE_TAG, ATTEMPT_TAG) if name in run.data.tags} == own
        ]
        run = found[0] if found else self.client.create_run(self._experiment_id(), tags=tags, run_name=child or job)
        if not run.info.run_id:  # whoever answered was not MLflow
            raise ConnectionError(f"MLflow made no run for {job}.")
        self._outbox.note_run(self.uri, job, child, run.info.run_id)
        return str(run.info.run_id)

    def _experiment_id(self) -> str:
        if not self._experiment:
            name = self.settings.experiment
            found = self.client.get_experiment_by_name(name)
            # A relative artifact folder would follow the working directory; a server has a place of its own.
            local = self._artifacts.as_uri() if self.uri.startswith("sqlite:") else None
            self._experiment = found.experiment_id if found else self.client.create_experiment(name, local)
        return self._experiment


@contextmanager
def _as_default(uri: str) -> Iterator[None]:
    """Make MLflow's own functions use this server inside a block.

    MLflow writes the address to the environment. There it would change this process's settings, so it is restored
    afterwards.
    """
    before = {name: os.environ.get(name) for name in (MLFLOW_VARIABLE, "MLFLOW_REGISTRY_URI")}
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _require_active(experiment: Experiment) -> None:
    if experiment.lifecycle_stage != LifecycleStage.ACTIVE:
        raise ConnectionError(
            f"The experiment '{experiment.name}' is deleted in MLflow: restore it (`mlflow experiments restore "
            f"--experiment-id {experiment.experiment_id}`), or name another one (tracking.experiment)."
        )


def _is_superseded(version: RegisteredVersion, champion: RegisteredVersion) -> bool:
    """Tell whether a version may remember people whom the champion has forgotten."""
    if version.job == champion.job:
        return False
    erased = champion.tags.get(KIND_TAG, ORIGINAL) != ORIGINAL
    return version.epoch < champion.epoch or (erased and version.remembers(champion.epoch, champion.job))


def _read_onnx(file: str) -> onnx.ModelProto:
    try:
        return onnx.load(file)
    except OSError:
        raise
    except Exception as error:  # of protobuf, which hides its own kind
        raise TrackingError(f"The model file {file} is damaged; it cannot be registered.") from error


def _storable(value: object) -> str:
    """Return a text that every database accepts, without NUL and lone surrogates."""
    return str(value).replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def milliseconds(moment: datetime) -> int:
    """Return MLflow's time stamp."""
    return int(moment.timestamp() * 1000)


def as_text(values: Mapping[str, Any]) -> dict[str, str]:
    """Return settings as MLflow keeps parameters: texts."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
