"""A site's own copy of its images: made when a fleet is simulated, purged when a person is forgotten."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from dlfd_fleet.data.manifest import Manifest, read_manifest, write_manifest
from dlfd_fleet.exceptions import DataError


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
            shutil.copyfile(manifest.root / row.image, target)
        except OSError as error:
            raise DataError(f"Cannot copy {manifest.root / row.image} to {target}: {error.strerror}.") from error
        rows.append(replace(row, image=f"images/{row.image}"))
    file = folder / "manifest.csv"
    write_manifest(rows, file)
    return file


def purge_people(manifest_file: Path, root: Path, identities: Collection[str]) -> list[str]:
    """Delete people's images from disk and their rows from the manifest.

    The rows go last: killed midway, the next call finds them and goes on; a file that is gone already is no error.

    Returns
    -------
    list of str
        SHA-256 of each file that was deleted: tombstones, so that an import cannot bring it back by accident.
    """
    manifest = read_manifest(manifest_file, root)
    digests = []
    for row in manifest.rows:
        if row.identity not in identities:
            continue
        file = root / row.image
        if file.exists():
            digests.append(hashlib.sha256(file.read_bytes()).hexdigest())
            file.unlink()
    kept = [row for row in manifest.rows if row.identity not in identities]
    if len(kept) < len(manifest.rows):
        write_manifest(kept, manifest_file)
    return digests
