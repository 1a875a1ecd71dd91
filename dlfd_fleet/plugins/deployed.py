"""Store deployments through MLflow in the state folder: names for versions that devices are offered."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from dlfd_fleet.exceptions import JobError

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
    publication: int
    """Number of the publication for devices."""
    deployed_at: datetime


class Deployments:
    """The deployments of a state folder."""

    def __init__(self, state_folder: Path) -> None:
        self.folder = state_folder / "coordinator" / "deployments"

    def keep(self, deployment: Deployment) -> None:
        """Keep a deployment under its name, in place of an earlier one.

        Raises
        ------
        JobError
            If the state folder cannot be written.
        """
        file = self._file(deployment.name)
        new = file.with_name(f".{file.name}.new")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            new.write_text(deployment.model_dump_json(indent=2), encoding="utf-8")
            new.replace(file)
        except OSError as error:
            raise JobError(f"Cannot write {file}: {error.strerror}; check space and rights.") from error

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
        """Forget a deployment; what devices may run is not changed by that."""
        self._file(name).unlink(missing_ok=True)

    def _file(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise JobError(f"'{name}' is no name for a deployment; use letters, digits, '.', '_' and '-'.")
        return self.folder / f"{name}.json"


def new_deployment(name: str, model_uri: str, version: str, job: str, epoch: int, publication: int) -> Deployment:
    """Return a deployment of now."""
    return Deployment(
        name=name,
        model_uri=model_uri,
        version=version,
        job=job,
        epoch=epoch,
        publication=publication,
        deployed_at=datetime.now(UTC),
    )
