"""Delete the files of revoked versions, and search the artifact store for their digests.

MLflow deletes no bytes when a model version or a logged model is deleted. So a purge has three steps: delete the files
through the artifact API, search the experiment's whole artifact folder for their digests, and delete the rows. An
interrupted purge is repeated, because the rows go last.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from mlflow.entities import FileInfo
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from dlfd_fleet.exceptions import TrackingError
from dlfd_fleet.plain_text import last_line
from dlfd_fleet.tracking.registry import RegisteredVersion, Registry, is_unknown

WEIGHTS_FOLDER = "weights"
"""Folder of a job's run with model files that are not part of the logged model."""
PURGED_TAG = "dlfd.purged."
"""Tag of the registered model, followed by the version's number: what remains of it."""
_DIGESTS_TAG = "dlfd.purging"
_DIGESTS = TypeAdapter(dict[str, int])
_OF_WEIGHTS = (".onnx", ".ort", ".safetensors", ".data")


class Purged(BaseModel):
    """What is known of a purged version."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: str
    job: str
    epoch: int
    reason: str
    at: datetime
    digests: tuple[str, ...]
    """SHA-256 of its files with weights; none is in the artifact store any more."""
    searched: int
    """Number of searched files of the artifact store."""


def purge(registry: Registry, versions: Iterable[RegisteredVersion]) -> list[Purged]:
    """Delete revoked versions: first the files, then a search for their digests, then the rows.

    Raises
    ------
    TrackingError
        If one was not revoked, or one of its digests is still in the store.
    """
    purged, models = [], []
    for version in versions:
        if not version.revoked:
            raise TrackingError(f"Version {version.version} is not revoked; revoke it before its bytes are deleted.")
        purged.append(_delete_bytes(registry, version))
        if version.model_id and not _is_gone(registry, version.model_id):
            registry.client.delete_logged_model(version.model_id)
            models.append(version.model_id)
        registry.client.delete_model_version(registry.name, version.version)
    if models:
        _collect(registry.uri, models)
    return purged


def _delete_bytes(registry: Registry, version: RegisteredVersion) -> Purged:
    """Delete the files of a version, and note their digests at the registered model."""
    client, uri = registry.client, registry.uri
    run = client.get_run(version.run_id)
    places = [(get_artifact_repository(run.info.artifact_uri, tracking_uri=uri), WEIGHTS_FOLDER)]
    if not _is_gone(registry, version.model_id):
        location = client.get_logged_model(version.model_id).artifact_location
        places.append((get_artifact_repository(location, tracking_uri=uri), ""))
    digests = _digests(registry, version, places)
    for place, folder in places:
        if place.list_artifacts(folder or None):
            place.delete_artifacts(folder or None)  # type: ignore[no-untyped-call]
    experiment = client.get_experiment(run.info.experiment_id)
    store = get_artifact_repository(experiment.artifact_location, tracking_uri=uri)
    purged = Purged(
        version=version.version,
        job=version.job,
        epoch=version.epoch,
        reason=version.revoked,
        at=datetime.now(UTC),
        digests=tuple(sorted(digests)),
        searched=_prove_gone(store, digests, version.version),
    )
    client.set_registered_model_tag(registry.name, PURGED_TAG + version.version, purged.model_dump_json())
    return purged


def purged_versions(registry: Registry) -> list[Purged]:
    """Return what is known of purged versions, oldest first."""
    if not registry.client.search_registered_models(f"name = '{registry.name}'"):
        return []
    tags = registry.client.get_registered_model(registry.name).tags
    found = list[Purged]()
    for name, value in tags.items():
        if name.startswith(PURGED_TAG):
            try:
                found.append(Purged.model_validate_json(value))
            except ValidationError as error:
                raise TrackingError(
                    f"The tag '{name}' of the model '{registry.name}' is not what a purge wrote there; delete it if "
                    "another program did."
                ) from error
    return sorted(found, key=lambda purged: int(purged.version))


def revoke_remembering(registry: Registry, job: str, epoch: int, *, also_purge: bool) -> None:
    """Revoke every version that may remember people whom a released model has forgotten.

    Parameters
    ----------
    job, epoch
        Job and epoch of the released model.
    also_purge
        Whether to delete the files of versions that our jobs made.
    """
    reason = f"under epoch {epoch} of job {job}"
    revoked = [registry.revoke(version, reason) for version in registry.versions() if version.remembers(epoch, job)]
    if also_purge:
        purge(registry, (version for version in revoked if version.job))


def _digests(
    registry: Registry, version: RegisteredVersion, places: list[tuple[ArtifactRepository, str]]
) -> dict[str, int]:
    """Return SHA-256 and size of every file with weights, kept as a tag for an interrupted purge."""
    known = version.tags.get(_DIGESTS_TAG)
    if known is not None:
        try:
            return _DIGESTS.validate_json(known)
        except ValidationError as error:
            raise TrackingError(
                f"The tag '{_DIGESTS_TAG}' of version {version.version} of '{registry.name}' is not what a purge wrote "
                "there; if the version's files are still there, delete the tag, and the next job purges it again."
            ) from error
    digests = {}
    for place, folder in places:
        for file in _files(place, folder):
            if file.path.endswith(_OF_WEIGHTS):
                digest, size = _sha256(place, file.path)
                digests[digest] = size
    registry.tag(version, _DIGESTS_TAG, json.dumps(digests))
    return digests


def _prove_gone(store: ArtifactRepository, digests: Mapping[str, int], number: str) -> int:
    """Search every file of the store; only files of the same size are read.

    Raises
    ------
    TrackingError
        If a digest is found.
    """
    searched, sizes = 0, set(digests.values())
    for file in _files(store):
        searched += 1
        # Some stores do not tell sizes.
        if file.file_size in sizes or (file.file_size is None and file.path.endswith(_OF_WEIGHTS)):
            digest, _ = _sha256(store, file.path)
            if digest in digests:
                raise TrackingError(
                    f"Version {number} was deleted, but its bytes are still in the artifact store, as {file.path}: "
                    f"delete that file, then `dlfd-fleet registry revoke {number} --purge` again."
                )
    return searched


def _files(place: ArtifactRepository, folder: str = "") -> Iterator[FileInfo]:
    for entry in place.list_artifacts(folder or None):
        if entry.is_dir:
            yield from _files(place, entry.path)
        else:
            yield entry


def _sha256(place: ArtifactRepository, path: str) -> tuple[str, int]:
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(place.download_artifacts(path, dst_path=temporary))  # type: ignore[no-untyped-call]
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest(), file.stat().st_size


def _is_gone(registry: Registry, model_id: str) -> bool:
    try:
        registry.client.get_logged_model(model_id)
    except MlflowException as error:
        if is_unknown(error):  # a gateway's 404 says nothing about it
            return True
        raise
    return False


def _collect(uri: str, models: list[str]) -> None:
    """Remove deleted logged models from a local store, with MLflow's own collector.

    On a server the operator runs ``mlflow gc``; only rows without files remain there.
    """
    if not uri.startswith("sqlite:"):
        return
    command = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", uri, "--logged-model-ids", ",".join(models)]
    environment = dict(os.environ) | {"MLFLOW_TRACKING_URI": uri}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)  # noqa: S603 - MLflow's own command, on ids of ours
    if done.returncode:
        why = last_line(done.stderr, done.stdout)
        raise TrackingError(f"`mlflow gc` could not remove the logged models {', '.join(models)}: {why}")
