"""A revoked version's bytes, deleted and shown to be gone.

Deleting a model version deletes no bytes in MLflow, nor does deleting a logged model. So the files are deleted through
the artifact API, which a server and a local store have alike; then the whole artifact folder of the experiment is
searched for their digests; and only then the rows go, so that a purge that was interrupted is done again.
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
from pydantic import BaseModel, ConfigDict

from dlfd_fleet.exceptions import TrackingError
from dlfd_fleet.tracking.registry import RegisteredVersion, Registry, is_unknown

WEIGHTS_FOLDER = "weights"
"""Where a job's run has the files of its model that are not part of the logged model."""
PURGED_TAG = "dlfd.purged."
"""Tag of the registered model, followed by the version's number: what is left of it."""
_DIGESTS_TAG = "dlfd.purging"
_OF_WEIGHTS = (".onnx", ".ort", ".safetensors", ".data")


class Purged(BaseModel):
    """What is known of a version that is gone."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: str
    job: str
    epoch: int
    reason: str
    at: datetime
    digests: tuple[str, ...]
    """SHA-256 of its files with weights; none of them is in the artifact store any more."""
    searched: int
    """Files of the artifact store that were searched."""


def purge(registry: Registry, versions: Iterable[RegisteredVersion]) -> list[Purged]:
    """Delete revoked versions: bytes, then proof that they are gone, then their rows.

    Raises
    ------
    TrackingError
        If one was not revoked before, or one of its digests is still in the store.
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
    """Delete the files of a version, and keep a note with the registered model of what they were."""
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
    """Return what is known of the versions that are gone, oldest first."""
    if not registry.client.search_registered_models(f"name = '{registry.name}'"):
        return []
    tags = registry.client.get_registered_model(registry.name).tags
    found = [Purged.model_validate_json(value) for name, value in tags.items() if name.startswith(PURGED_TAG)]
    return sorted(found, key=lambda purged: int(purged.version))


def revoke_remembering(registry: Registry, job: str, epoch: int, *, also_purge: bool) -> None:
    """Revoke every version that may remember whom a released model has forgotten.

    Parameters
    ----------
    job, epoch
        Of the released model.
    also_purge
        Whether the bytes of those that our jobs made are deleted as well.
    """
    reason = f"under epoch {epoch} of job {job}"
    revoked = [registry.revoke(version, reason) for version in registry.versions() if version.remembers(epoch, job)]
    if also_purge:
        purge(registry, (version for version in revoked if version.job))


def _digests(
    registry: Registry, version: RegisteredVersion, places: list[tuple[ArtifactRepository, str]]
) -> dict[str, int]:
    """Return SHA-256 and size of every file with weights; kept as a tag, for a purge that is interrupted."""
    known = version.tags.get(_DIGESTS_TAG)
    if known is not None:
        return {str(digest): int(size) for digest, size in json.loads(known).items()}
    digests = {}
    for place, folder in places:
        for file in _files(place, folder):
            if file.path.endswith(_OF_WEIGHTS):
                digest, size = _sha256(place, file.path)
                digests[digest] = size
    registry.tag(version, _DIGESTS_TAG, json.dumps(digests))
    return digests


def _prove_gone(store: ArtifactRepository, digests: Mapping[str, int], number: str) -> int:
    """Search every file of the store; only one of the same size can have the same digest, so only those are read.

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
    """Remove what is left of deleted logged models from a local store, by MLflow's own collector.

    A server's database is its operator's to collect (``mlflow gc``): what is left there are rows without bytes.
    """
    if not uri.startswith("sqlite:"):
        return
    command = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", uri, "--logged-model-ids", ",".join(models)]
    environment = dict(os.environ) | {"MLFLOW_TRACKING_URI": uri}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)  # noqa: S603 - MLflow's own command, on ids of ours
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise TrackingError(f"`mlflow gc` could not remove the logged models {', '.join(models)}: {last}")
