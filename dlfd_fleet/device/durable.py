"""Write small files that survive a power cut: whole or not at all, and important ones twice."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from dlfd_fleet.device.download import sync_folder

_COPY_SUFFIX = ".copy"
_DIGEST_LENGTH = 64


def write_durably(file: Path, content: bytes) -> None:
    """Replace a file so that after a power cut it has the old or the new content."""
    new = file.with_name(file.name + ".new")
    with new.open("wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
    new.replace(file)
    sync_folder(file.parent)


def write_twice(file: Path, content: bytes) -> None:
    """Replace a file and then its copy, each with a digest."""
    sealed = hashlib.sha256(content).hexdigest().encode() + b"\n" + content
    for copy in _copies(file):
        write_durably(copy, sealed)


def read_copies(file: Path) -> list[bytes]:
    """Return the undamaged contents of a file and its copy, the newer first."""
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
    """Flush a folder's files and names to disk."""
    for file in filter(Path.is_file, folder.iterdir()):
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    sync_folder(folder)


def _copies(file: Path) -> tuple[Path, Path]:
    return file, file.with_name(file.name + _COPY_SUFFIX)
