"""Sign the files of a released model as targets, each with reference answers for the devices' self-test."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlfd_fleet.delivery import releases, rollout
from dlfd_fleet.delivery.contents import Contents
from dlfd_fleet.delivery.devices import DeviceStore, PublishedFile
from dlfd_fleet.delivery.repository import Repository
from dlfd_fleet.device.contract import MODELS_FOLDER, Release, Rollout, SelfTest
from dlfd_fleet.device.inference import DATA_SUFFIX, DeviceModel
from dlfd_fleet.exceptions import DeliveryError
from dlfd_fleet.formats import FORMATS
from dlfd_fleet.model_input import ModelInput
from dlfd_fleet.settings import Format

_REFERENCE_IMAGES, _REFERENCE_SEED = 8, 0


@dataclass(frozen=True)
class ReleasedModel:
    """A model that the coordinator has released.

    Attributes
    ----------
    version
        Version in the registry.
    epoch
        Erasure epoch.
    files
        Files by format. Weights over 2 GB are in a second file beside it.
    digests
        SHA-256 of the files that were audited at the sites; no other files are published.
    """

    version: str
    epoch: int
    files: Mapping[Format, Path]
    digests: Mapping[Format, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Publication:
    """A publication: its number, and the names of the model targets."""

    sequence: int
    targets: tuple[str, ...]


@dataclass(frozen=True)
class _Prepared:
    form: Format
    file: Path
    sha256: str
    self_test: bytes


def publish(repository: Repository, devices: DeviceStore, model: ReleasedModel, *, rings: bool = False) -> Publication:
    """Sign a model's files as the newest release.

    Parameters
    ----------
    rings
        If True, no device gets it before its rollout starts, and the floor rises when the rollout is complete. If
        False, all devices get it at once, and models under its epoch are forbidden and deleted.

    Raises
    ------
    DeliveryError
        If the model is under the floor, a file is not of this model, a rollout is not finished, or a key is missing.
    """
    if not model.files:
        raise DeliveryError(f"{model.version} has no files to publish.")
    prepared = [_prepare(model, form, file) for form, file in model.files.items()]
    with repository.lock():
        contents = repository.read()
        repository.keys.signers("targets", contents.root.signed)  # before any file is copied
        _check(repository, devices, contents, model)
        listed = releases.listed(contents).values()
        sequence = max([devices.last_sequence(), *(release.sequence for release in listed)]) + 1
        floor = max(releases.floor(contents), devices.floor())
        names = []
        for each in prepared:
            names.append(_add(repository, devices, contents, model, each, sequence, floor))
        before = rollout.read(repository, contents)
        if before is not None and before.state == "aborted":
            releases.withdraw(contents, lambda release: release.sequence == before.sequence)
        if not rings:
            releases.raise_floor(contents, max(floor, model.epoch))
        rollout.put(repository, contents, rollout.planned(sequence) if rings else rollout.for_everybody(sequence))
        repository.commit(contents, ("targets", "rollout"))
        devices.raise_floor(releases.floor(contents))
    return Publication(sequence, tuple(names))


def offered(repository: Repository, version: str) -> int | None:
    """Return the publication that offers a version to devices; None if there is none or it was withdrawn."""
    contents = repository.read()
    return _offered(contents, rollout.read(repository, contents), version)


def reference_inputs(model_input: ModelInput) -> NDArray[Any]:
    """Return synthetic inputs: coloured squares and noise, or random numbers.

    Returns
    -------
    ndarray
        Device inputs, the same for each model input.
    """
    if not model_input.is_image:
        return model_input.random(_REFERENCE_IMAGES, _REFERENCE_SEED)
    generator = np.random.default_rng(_REFERENCE_SEED)
    height, width, channels = model_input.device_shape
    squares = generator.integers(0, 256, (_REFERENCE_IMAGES, 4, 4, channels), dtype=np.uint8)
    images = squares.repeat(-(-height // 4), axis=1).repeat(-(-width // 4), axis=2)[:, :height, :width]
    noise = generator.integers(0, 256, images.shape, dtype=np.uint8)
    noisy = (np.arange(_REFERENCE_IMAGES) % 2 == 1)[:, None, None, None]
    return np.where(noisy, noise, images)


def _prepare(model: ReleasedModel, form: Format, file: Path) -> _Prepared:
    """Compute a file's answers, and check that its metadata are as expected."""
    loaded = DeviceModel(file)
    with file.open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    if model.digests.get(form, sha256) != sha256:
        raise DeliveryError(
            f"{file} is not the file that was audited at the sites: it was changed and is not published."
        )
    if (loaded.version, loaded.epoch) != (model.version, model.epoch):
        raise DeliveryError(
            f"{file} is of version {loaded.version}, epoch {loaded.epoch}, and not of {model.version}, epoch "
            f"{model.epoch}: it is not published."
        )
    images = reference_inputs(loaded.input)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=images, probabilities=loaded.predict(images))
    return _Prepared(form, file, sha256, buffer.getvalue())


def _check(repository: Repository, devices: DeviceStore, contents: Contents, model: ReleasedModel) -> None:
    floor = max(releases.floor(contents), devices.floor())
    if model.epoch < floor:
        raise DeliveryError(
            f"{model.version} is of epoch {model.epoch}, and devices run nothing under {floor}: it may remember people "
            "who were forgotten since, and is not published."
        )
    before = rollout.read(repository, contents)
    if before is not None and before.state in ("running", "paused"):
        raise DeliveryError(
            f"The rollout of publication {before.sequence} is {before.state}: complete or abort it before the next."
        )
    sequence = _offered(contents, before, model.version)
    if sequence is not None:
        raise DeliveryError(f"{model.version} is published already, as publication {sequence}.")


def _offered(contents: Contents, current: Rollout | None, version: str) -> int | None:
    aborted = current.sequence if current and current.state == "aborted" else None
    found = (release for release in releases.listed(contents).values() if release.version == version)
    return next((release.sequence for release in found if release.sequence != aborted), None)


def _add(
    repository: Repository,
    devices: DeviceStore,
    contents: Contents,
    model: ReleasedModel,
    prepared: _Prepared,
    sequence: int,
    floor: int,
) -> str:
    folder, file = f"{MODELS_FOLDER}/{model.epoch}-{sequence}", prepared.file
    target = repository.store(f"{folder}/{file.name}", file)
    if target.hashes["sha256"] != prepared.sha256:
        raise DeliveryError(f"{file} was changed while it was published: publish it again.")
    beside = [repository.store(f"{folder}/{file.name}.selftest.npz", prepared.self_test)]
    data = file.with_name(file.name + DATA_SUFFIX)
    if data.exists():
        beside.append(repository.store(f"{folder}/{data.name}", data))
    release = Release(
        version=model.version,
        format=prepared.form,
        epoch=model.epoch,
        minimum_epoch=floor,
        sequence=sequence,
        self_test=SelfTest(target=beside[0].path, tolerance=FORMATS.find(prepared.form).device_tolerance),
        data=beside[1].path if data.exists() else None,
    )
    # First of all: a device may report a file from the moment on when it can have it.
    for part in (target, *beside[1:]):
        devices.note_file(PublishedFile(part.hashes["sha256"], sequence, model.epoch, model.version, prepared.form))
    releases.add(contents, target, release, *beside)
    return target.path
