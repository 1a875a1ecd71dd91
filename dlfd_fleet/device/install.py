"""Download, test, load and delete model files on a device."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from dlfd_fleet.device.download import PART_SUFFIX, sync_folder
from dlfd_fleet.device.folder import DeviceFolder
from dlfd_fleet.device.inference import DATA_SUFFIX, DeviceModel
from dlfd_fleet.device.rules import check_may_run
from dlfd_fleet.device.self_test import LARGEST, run_self_test
from dlfd_fleet.device.state import Slot
from dlfd_fleet.device.update import UpdateClient
from dlfd_fleet.exceptions import UpdateRefusedError

_SELF_TEST = ".self-test.npz"
_NAME = re.compile("([0-9]+)-([0-9a-f]{64})")


def folder_name(slot: Slot) -> str:
    """Return the name of a model's folder: its epoch and its digest."""
    return f"{slot.release.epoch}-{slot.sha256}"


def is_whole(folder: DeviceFolder, slot: Slot) -> bool:
    """Tell whether an installed model's files have their signed digests."""
    file = folder.models / folder_name(slot) / slot.file_name
    files = {file: slot.sha256} | ({_data(file): slot.data_sha256} if slot.data_sha256 else {})
    try:
        return all(_sha256(path) == digest for path, digest in files.items())
    except OSError:
        return False


def load(folder: DeviceFolder, slot: Slot, floor: int) -> DeviceModel:
    """Load an installed model, if its files are as signed and the floor allows it.

    Raises
    ------
    DeviceError
        If it does not load.
    UpdateRefusedError
        If it may not run.
    """
    model = DeviceModel(folder.models / folder_name(slot) / slot.file_name, folder.settings.threads, slot.sha256)
    check_may_run(slot.release, model.epoch, floor)
    return model


def bring(folder: DeviceFolder, updates: UpdateClient, slot: Slot) -> None:
    """Download a model and its self-test, and continue earlier downloads.

    Raises
    ------
    UpdateRefusedError
        If the bytes differ from those signed, or exceed a limit.
    UpdateUnreachableError
        If they do not arrive.
    """
    staging = folder.staging / folder_name(slot)
    size = updates.size(slot.release.self_test.target)
    if size > LARGEST:
        raise UpdateRefusedError(f"The self-test of {slot.target} has {size} bytes; at most {LARGEST} are taken.")
    updates.download(slot.release.self_test.target, staging / _SELF_TEST)
    if slot.release.data:
        updates.download(slot.release.data, _data(staging / slot.file_name))
    updates.download(slot.target, staging / slot.file_name)


def put_in_place(folder: DeviceFolder, slot: Slot, floor: int) -> None:
    """Move a downloaded model to its folder, after all checks.

    Raises
    ------
    UpdateRefusedError
        If it may not run.
    DeviceError
        If it does not load, or fails its self-test.
    OSError
        If the disk refuses.
    """
    staging, place = folder.staging / folder_name(slot), folder.models / folder_name(slot)
    model = DeviceModel(staging / slot.file_name, folder.settings.threads, slot.sha256)
    check_may_run(slot.release, model.epoch, floor)
    run_self_test(model, staging / _SELF_TEST, slot.release.self_test.tolerance)
    (staging / _SELF_TEST).unlink()
    folder.models.mkdir(exist_ok=True)
    shutil.rmtree(place, ignore_errors=True)  # of an installation that was broken off, or damaged since
    staging.replace(place)
    sync_folder(folder.models)


def download_size(updates: UpdateClient, slot: Slot) -> int:
    """Return the bytes of a model with its self-test."""
    targets = [slot.target, slot.release.self_test.target, *([slot.release.data] if slot.release.data else [])]
    return sum(updates.size(target) for target in targets)


def model_folders(folder: DeviceFolder) -> list[Path]:
    """Return the folders of installed and partly downloaded models."""
    return [path for parent in (folder.models, folder.staging) if parent.exists() for path in sorted(parent.iterdir())]


def epoch_of(path: Path) -> int:
    """Return the epoch in a folder's name; other names count as under every floor."""
    name = _NAME.fullmatch(path.name)
    return int(name[1]) if name else -1


def digests_of(folder: DeviceFolder, doomed: list[Path]) -> Iterator[str]:
    """Yield the signed and the actual digests of model files in these folders."""
    for path in doomed:
        name = _NAME.fullmatch(path.name)
        if name and path.parent == folder.models:
            yield name[2]
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file() and file.suffix != PART_SUFFIX and file.name != _SELF_TEST:
                yield _sha256(file)


def delete(paths: list[Path]) -> None:
    """Delete folders.

    Raises
    ------
    OSError
        If the disk refuses.
    """
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    for parent in {path.parent for path in paths}:
        sync_folder(parent)


def _data(file: Path) -> Path:
    return file.with_name(file.name + DATA_SUFFIX)


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
