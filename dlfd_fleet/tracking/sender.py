"""How each kind of entry is told to MLflow. Told twice, it must come to the same: a process may die in between."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnx
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import infer_signature
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from sqlalchemy.exc import SADeprecationWarning

from dlfd_fleet.exceptions import TrackingError
from dlfd_fleet.settings import TrackingSettings
from dlfd_fleet.tracking.outbox import Entry, Outbox

JOB_TAG, SITE_TAG, EPOCH_TAG, REVOKED_TAG = "dlfd.job", "dlfd.site", "dlfd.epoch", "dlfd.revoked"
_BATCH = 100


class Sender:
    """Carries entries to one MLflow server, or to a local store.

    Parameters
    ----------
    artifacts
        Where a local store puts artifacts; a server decides itself.
    """

    def __init__(self, settings: TrackingSettings, uri: str, artifacts: Path, outbox: Outbox) -> None:
        self.settings, self.uri, self._artifacts, self._outbox = settings, uri, artifacts, outbox
        self._client: MlflowClient | None = None
        self._experiment = ""

    @property
    def client(self) -> MlflowClient:
        """MLflow's client; made late, because a local store creates its tables then."""
        if self._client is None:
            # MLflow 3.17 uses a loader strategy that SQLAlchemy 2.1 has deprecated; nobody here can act on that.
            warnings.filterwarnings("ignore", category=SADeprecationWarning, module=r"mlflow\.")
            self._client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        return self._client

    def send(self, entry: Entry) -> None:
        """Tell one entry."""
        match entry.kind:
            case "start":
                self._start(entry)
            case "metrics":
                self._metrics(entry)
            case "artifact":
                self._artifact(entry)
            case "model":
                self._model(entry)
            case "revoke":
                self._revoke(entry)
            case "finish":
                for run in [*self._outbox.site_runs(self.uri, entry.job), self._run(entry.job)]:
                    self.client.set_terminated(run, entry.fields["status"], entry.fields["at"])

    def version_of(self, job: str) -> ModelVersion | None:
        """Return the registered version that a job made, if it did."""
        return next((version for version in self._versions() if version.tags.get(JOB_TAG) == job), None)

    def champion(self) -> ModelVersion | None:
        """Return the version that the alias points at, if there is one."""
        try:
            return self.client.get_model_version_by_alias(self.settings.registered_model, "champion")
        except MlflowException as error:
            # An alias that is not there is an invalid parameter for some stores, a missing resource for others.
            if http_status(error) in (400, 404):
                return None
            raise

    def job_of(self, version: str) -> str | None:
        """Return the job that made a registered version, if there is such a version."""
        try:
            return self.client.get_model_version(self.settings.registered_model, version).tags.get(JOB_TAG)
        except MlflowException as error:
            if http_status(error) in (400, 404):
                return None
            raise

    def _start(self, entry: Entry) -> None:
        run = self._run(entry.job)
        parameters = [Param(name, str(value)) for name, value in entry.fields["parameters"].items()]
        for start in range(0, len(parameters), _BATCH):
            self.client.log_batch(run, params=parameters[start : start + _BATCH])
        for name, value in entry.fields["tags"].items():
            self.client.set_tag(run, name, value)

    def _metrics(self, entry: Entry) -> None:
        fields = entry.fields
        run = self._run(entry.job, fields["site"])
        metrics = [Metric(name, value, fields["at"], fields["step"]) for name, value in fields["metrics"].items()]
        self.client.log_batch(run, metrics=metrics)

    def _artifact(self, entry: Entry) -> None:
        folder, name = Path(entry.fields["folder"]), entry.fields["name"]
        with tempfile.TemporaryDirectory() as temporary:
            file = Path(temporary) / name
            file.write_bytes(entry.content or b"")
            self.client.log_artifact(self._run(entry.job), str(file), str(folder))

    def _model(self, entry: Entry) -> None:
        name, fields = self.settings.registered_model, entry.fields
        version = self.version_of(entry.job) or self._registered(entry)
        for tag, value in fields["tags"].items():
            self.client.set_model_version_tag(name, version.version, tag, value)
        if fields["alias"]:
            self.client.set_registered_model_alias(name, fields["alias"], version.version)

    def _registered(self, entry: Entry) -> ModelVersion:
        """Log the ONNX model with signature and input example, and register it."""
        fields, run = entry.fields, self._run(entry.job)
        for file in (fields["file"], *fields["extra_files"].values()):
            if not Path(file).exists():
                raise TrackingError(f"The model file {file} is gone, so job {entry.job} cannot be registered.")
        example = np.array(fields["input_example"], dtype=np.uint8)
        answer = np.zeros((len(example), fields["outputs"]), dtype=np.float32)
        mlflow.set_tracking_uri(self.uri)
        mlflow.set_registry_uri(self.uri)
        with mlflow.start_run(run_id=run):
            logged = mlflow.onnx.log_model(
                onnx.load(fields["file"]),
                name="model",
                signature=infer_signature(example, answer),
                input_example=example,
                save_as_external_data=False,
                onnx_execution_providers=["CPUExecutionProvider"],
                pip_requirements=["onnxruntime", "numpy"],
                tags=fields["tags"],
            )
        for target, file in fields["extra_files"].items():
            with tempfile.TemporaryDirectory() as temporary:
                copy = Path(temporary) / target
                copy.write_bytes(Path(file).read_bytes())
                self.client.log_artifact(run, str(copy), "weights")
        name = self.settings.registered_model
        if not self.client.search_registered_models(f"name = '{name}'"):
            self.client.create_registered_model(name)
        return self.client.create_model_version(
            name, logged.model_uri, run, tags=fields["tags"], model_id=logged.model_id
        )

    def _revoke(self, entry: Entry) -> None:
        """Tag every version of an older erasure epoch: it remembers somebody."""
        for version in self._versions():
            epoch = int(version.tags.get(EPOCH_TAG, "0"))
            if epoch < entry.fields["epoch"] and REVOKED_TAG not in version.tags:
                reason = f"under epoch {entry.fields['epoch']} of job {entry.job}"
                self.client.set_model_version_tag(self.settings.registered_model, version.version, REVOKED_TAG, reason)

    def _versions(self) -> list[ModelVersion]:
        try:
            return list(self.client.search_model_versions(f"name = '{self.settings.registered_model}'"))
        except MlflowException as error:
            if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                return []
            raise

    def _run(self, job: str, site: str = "") -> str:
        """Return the run of a job, or of one of its sites below it; made when first needed."""
        known = self._outbox.run_id(self.uri, job, site)
        if known:
            return known
        tags = {JOB_TAG: job} | ({SITE_TAG: site, MLFLOW_PARENT_RUN_ID: self._run(job)} if site else {})
        # A process that died between making a run and noting it left one behind.
        found = [
            run
            for run in self.client.search_runs([self._experiment_id()], f"tags.`{JOB_TAG}` = '{job}'")
            if run.data.tags.get(SITE_TAG, "") == site
        ]
        run = found[0] if found else self.client.create_run(self._experiment_id(), tags=tags, run_name=site or job)
        self._outbox.note_run(self.uri, job, site, run.info.run_id)
        return str(run.info.run_id)

    def _experiment_id(self) -> str:
        if not self._experiment:
            name = self.settings.experiment
            found = self.client.get_experiment_by_name(name)
            # A relative artifact folder would follow the working directory; a server has a place of its own.
            local = self._artifacts.as_uri() if self.uri.startswith("sqlite:") else None
            self._experiment = found.experiment_id if found else self.client.create_experiment(name, local)
        return self._experiment


def http_status(error: MlflowException) -> int:
    """Return the status that a server answered with, or would have."""
    return int(error.get_http_status_code())  # type: ignore[no-untyped-call]


def milliseconds(moment: datetime) -> int:
    """Return MLflow's time stamp."""
    return int(moment.timestamp() * 1000)


def as_text(values: Mapping[str, Any]) -> dict[str, str]:
    """Return settings as MLflow keeps parameters: texts."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
