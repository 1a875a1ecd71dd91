"""A site's own copy of its images: made when a fleet is simulated, purged when a person is forgotten."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Collection, Container
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from dlfd_fleet.data.loaded import digest_of_key
from dlfd_fleet.data.manifest import Manifest, Row, read_manifest, write_manifest
from dlfd_fleet.exceptions import DataError

_SETTLED_NS = 2_000_000_000  # a file that changed since may change again without a new time of change


def copy_images(manifest: Manifest, folder: Path) -> Path:
    """Copy a manifest's images under ``folder/images`` and write ``folder/manifest.csv``; return the manifest file.

    Raises
    ------
    DataError
        If an image is missing or cannot be written.
    """
    rows = []
    for row in manifest.rows:
        target = folder / "images" / row.image
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(manifest.file_of(row), target)
        except OSError as error:
            raise DataError(f"Cannot copy {manifest.root / row.image} to {target}: {error.strerror}.") from error
        rows.append(replace(row, image=f"images/{row.image}"))
    file = folder / "manifest.csv"
    write_manifest(rows, file)
    return file


def image_digest(manifest: Manifest, row: Row) -> str | None:
    """Return the SHA-256 of an image's file, or of a loader's row; None if there is none, or none that may be read.

    A process reads a file once, and again when its size or its time of change is another.
    """
    if manifest.loaded is not None:
        return digest_of_key(row.image)
    try:
        file = manifest.file_of(row)
        stat = file.stat()
        if time.time_ns() - stat.st_mtime_ns < _SETTLED_NS:
            return _digest(file)
        return _known_digest(file, stat.st_size, stat.st_mtime_ns, stat.st_ino)
    except (OSError, DataError):
        return None


@lru_cache(maxsize=1 << 18)
def _known_digest(file: Path, _size: int, _changed: int, _inode: int) -> str:
    return _digest(file)


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def returned_images(manifest: Manifest, tombstones: Container[str]) -> frozenset[Row]:
    """Return the rows whose files are those of purged images, whatever they are called now."""
    return frozenset(row for row in manifest.rows if image_digest(manifest, row) in tombstones)


def drop_rows(manifest_file: Path, root: Path, rows: Collection[Row]) -> None:
    """Take rows out of a manifest file.

    Raises
    ------
    DataError
        If it cannot be written; then it is what it was.
    """
    manifest = read_manifest(manifest_file, root, may_be_empty=True)
    kept = [row for row in manifest.rows if row not in rows]
    if len(kept) < len(manifest.rows):
        write_manifest(kept, manifest_file)
