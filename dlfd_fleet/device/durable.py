"""Small files that outlive a power cut: each whole or not at all, and what must never be lost kept twice."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from dlfd_fleet.device.download import sync_folder

_COPY_SUFFIX = ".copy"
_DIGEST_LENGTH = 64


def write_durably(file: Path, content: bytes) -> None:
    """Replace a file; after a power cut at any point, the old content is there or the new."""
    new = file.with_name(file.name + ".new")
    with new.open("wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
    new.replace(file)
    sync_folder(file.parent)


def write_twice(file: Path, content: bytes) -> None:
    """Replace a file and its copy, one after the other, each under its own digest."""
    sealed = hashlib.sha256(content).hexdigest().encode() + b"\n" + content
    for copy in _copies(file):
        write_durably(copy, sealed)


def read_copies(file: Path) -> list[bytes]:
    """Return what the undamaged ones of a file and its copy hold, the newer first; damage is no error here."""
    found = []
    for copy in _copies(file):
        try:
            sealed = copy.read_bytes()
        except OSError:
            continue
        digest, content = sealed[:_DIGEST_LENGTH], sealed[_DIGEST_LENGTH + 1 :]
        if hashlib.sha256(content).hexdigest().encode() == digest:
            found.append(content)
    return found


def sync_tree(folder: Path) -> None:
    """Make a folder's files and their names outlive a power cut."""
    for file in filter(Path.is_file, folder.iterdir()):
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    sync_folder(folder)


def _copies(file: Path) -> tuple[Path, Path]:
    return file, file.with_name(file.name + _COPY_SUFFIX)
