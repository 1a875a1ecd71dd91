"""Make a manifest of images in folders ``person/label`` or ``label/person``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from dlfd_fleet.data.image_files import Links
from dlfd_fleet.data.manifest import Manifest, Row
from dlfd_fleet.exceptions import DataError

FolderOrder = Literal["person/label", "label/person"]
"""The order of the two folders above an image."""
_LEVELS = 3


def folders_manifest(root: Path, order: FolderOrder, links: Links = "refuse") -> Manifest:
    """Return the manifest of images in folders; names that begin with a dot are left out.

    Raises
    ------
    DataError
        If there is no image, or one is not in a folder of a folder.
    """
    rows = []
    for file in _files_under(root):
        parts = file.relative_to(root).parts
        if len(parts) != _LEVELS:
            raise DataError(f"{file} is not in a folder of the form {root}/{order.upper()}; move it there, or away.")
        first, second = parts[:2]
        person, label = (first, second) if order == "person/label" else (second, first)
        rows.append(Row("/".join(parts), person, label))
    if not rows:
        raise DataError(f"There is no image in folders of the form {root}/{order.upper()}.")
    return Manifest(tuple(rows), root.absolute(), links)


def _files_under(root: Path) -> list[Path]:
    found = []
    for folder, below, names in os.walk(root, followlinks=True):
        below[:] = [name for name in below if not name.startswith(".")] if len(_parts(root, folder)) < _LEVELS else []
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(found)


def _parts(root: Path, folder: str) -> tuple[str, ...]:
    return Path(folder).relative_to(root).parts
