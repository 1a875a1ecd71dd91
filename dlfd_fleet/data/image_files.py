"""Find an image's file, and handle links inside and out of the image folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from dlfd_fleet.exceptions import DataError

Links = Literal["refuse", "follow"]
"""How links out of the image folder are treated, of images or of folders."""
_MOST_LINKS = 40  # as many as Linux follows


def image_file(root: Path, image: str, links: Links) -> Path:
    """Return the file of an image.

    Parameters
    ----------
    root
        The image folder; may be a link itself.
    image
        Path under it.

    Raises
    ------
    DataError
        If a link leads out of the image folder, and links are not followed.
    """
    if links == "refuse":
        out = [name for name in names_of(root, image) if not is_inside(root, name)]
        if out:
            raise DataError(
                f"The image {root / image} is a link that leaves the image folder, to {out[-1]}; put the file itself "
                "into the folder, or let links be followed: --follow-links, the setting data.links=follow, or "
                '"links": "follow" in site.json; a purge deletes then what the link leads to.'
            )
    return root / image


def names_of(root: Path, image: str, folders: dict[Path, Path] | None = None) -> tuple[Path, ...]:
    """Return an image's path, those of the links on the way, and last that of the file.

    Folders are resolved, so two names of one file are equal even if folders are links.

    Parameters
    ----------
    folders
        Cache of resolved folders, for many images.
    """
    known = {} if folders is None else folders
    path, names = _in_real_folder(root / image, known), list[Path]()
    while os.path.islink(path) and len(names) < _MOST_LINKS:  # noqa: PTH114 - Path.is_symlink raises in a closed folder
        names.append(path)
        path = _in_real_folder(path.parent / path.readlink(), known)
    return (*names, path)


def is_inside(root: Path, name: Path) -> bool:
    """Tell whether a resolved path is under the image folder."""
    return name.is_relative_to(os.path.realpath(root))


def _in_real_folder(path: Path, known: dict[Path, Path]) -> Path:
    if path.parent not in known:
        known[path.parent] = Path(os.path.realpath(path.parent))
    return known[path.parent] / path.name
