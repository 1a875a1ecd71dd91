"""What was deployed through MLflow, in the state folder; and the least epoch that may be deployed from now on.

A deployment is a name and a version. The files stay where they are, in the folder of the job that made them: a copy
would be one more thing that remembers.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from dlfd_fleet.exceptions import JobError
from dlfd_fleet.federation.store import ONNX_FILE

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Deployment(BaseModel):
    """One deployment."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    name: str
    flavor: str = "onnx"
    model_uri: str
    version: str
    job: str
    epoch: int
    deployed_at: datetime


class Deployments:
    """The deployments of a state folder."""

    def __init__(self, state_folder: Path) -> None:
        self.folder = state_folder / "coordinator" / "deployments"

    def floor(self) -> int:
        """Return the greatest epoch that was ever deployed; deleting deployments does not lower it."""
        file = self.folder / "floor"
        return int(file.read_text(encoding="ascii")) if file.exists() else 0

    def publish(self, model_folder: Path, deployment: Deployment) -> None:
        """Publish a model's files to the fleet: the one place where a deployed version leaves the coordinator.

        Parameters
        ----------
        model_folder
            Where the files are that were attacked and judged.

        Raises
        ------
        JobError
            If the files are gone, the epoch is under the floor, or the state folder cannot be written.
        """
        if not (model_folder / ONNX_FILE).exists():
            raise JobError(f"This coordinator has no files of {deployment.job}; deploy the version where it was made.")
        if deployment.epoch < self.floor():
            raise JobError(f"The epoch {deployment.epoch} is under {self.floor()}, which was deployed before.")
        # The floor first: whatever happens then, nothing older is deployed again.
        self._write(self.folder / "floor", str(deployment.epoch))
        self._write(self._file(deployment.name), deployment.model_dump_json(indent=2))

    def get(self, name: str) -> Deployment | None:
        """Return one deployment, if there is one of this name."""
        file = self._file(name)
        try:
            return Deployment.model_validate_json(file.read_text(encoding="utf-8")) if file.exists() else None
        except (OSError, ValidationError) as error:
            raise JobError(f"{file} cannot be read; delete the deployment and create it anew.") from error

    def all(self) -> list[Deployment]:
        """Return every deployment, by name."""
        found = [self.get(file.stem) for file in sorted(self.folder.glob("*.json"))]
        return [deployment for deployment in found if deployment]

    def delete(self, name: str) -> None:
        """Forget a deployment; the floor stays."""
        self._file(name).unlink(missing_ok=True)

    def _file(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise JobError(f"'{name}' is no name for a deployment; use letters, digits, '.', '_' and '-'.")
        return self.folder / f"{name}.json"

    @staticmethod
    def _write(file: Path, text: str) -> None:
        new = file.with_name(f".{file.name}.new")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            new.write_text(text, encoding="utf-8")
            new.replace(file)
        except OSError as error:
            raise JobError(f"Cannot write {file}: {error.strerror}; check space and rights.") from error


def new_deployment(name: str, model_uri: str, version: str, job: str, epoch: int) -> Deployment:
    """Return a deployment of now."""
    return Deployment(
        name=name, model_uri=model_uri, version=version, job=job, epoch=epoch, deployed_at=datetime.now(UTC)
    )
