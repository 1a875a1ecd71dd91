"""Write the repository's files whole, and delete those that are no longer listed."""

from __future__ import annotations

import os
import re
import shutil
import time
from contextlib import suppress
from pathlib import Path

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Targets

from dlfd_fleet.delivery.contents import Contents, as_role
from dlfd_fleet.device.contract import ROLLOUT_ROLE
from dlfd_fleet.device.download import sync_folder

_NEW = ".new"
_GRACE_SECONDS = 3600.0
_VERSIONED = re.compile(r"(\d+)\.(targets|rollout|snapshot)\.json")


def write_whole(file: Path, content: Path | bytes) -> None:
    """Write a file whole or not at all, also in case of a power cut.

    Parameters
    ----------
    content
        Its bytes, or a file to copy.
    """
    new = file.with_name(f".{file.name}{_NEW}")
    file.parent.mkdir(parents=True, exist_ok=True)
    with new.open("wb") as opened:
        if isinstance(content, bytes):
            opened.write(content)
        else:
            with content.open("rb") as source:
                shutil.copyfileobj(source, opened)
        opened.flush()
        os.fsync(opened.fileno())
    new.replace(file)
    sync_folder(file.parent)


def sweep(served: Path, contents: Contents) -> None:
    """Delete files that are no longer listed, such as withdrawn models.

    Metadata and rollouts stay for a while, because devices may be reading them.
    """
    metadata, targets = served / "metadata", served / "targets"
    for file in list(metadata.iterdir()):
        if file.name.endswith(_NEW) or _is_over(file, contents):
            file.unlink(missing_ok=True)
    listed = [*contents.target_files().values()]
    for file in metadata.glob(f"*.{ROLLOUT_ROLE}.json"):
        with suppress(RepositoryError):
            listed += Metadata[Targets].from_bytes(file.read_bytes()).signed.targets.values()
    kept = {path for target in listed for path in target.get_prefixed_paths()}
    for file in [file for file in targets.rglob("*") if file.is_file()]:
        if file.relative_to(targets).as_posix() not in kept:
            file.unlink(missing_ok=True)
            with suppress(OSError):
                file.parent.rmdir()  # unless something else is in it


def _is_over(file: Path, contents: Contents) -> bool:
    """Tell whether a metadata file was replaced long enough ago to be deleted."""
    named = _VERSIONED.fullmatch(file.name)
    if not named or int(named[1]) >= contents.of(as_role(named[2])).signed.version:
        return False
    successor = file.with_name(f"{int(named[1]) + 1}.{named[2]}.json")
    return not successor.exists() or time.time() - successor.stat().st_mtime > _GRACE_SECONDS
