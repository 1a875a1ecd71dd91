"""Read and write manifests: tables ``image,identity,label[,site][,split]`` of images under a folder."""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from dlfd_fleet.data.classes import labels_in
from dlfd_fleet.data.identity import canonical
from dlfd_fleet.data.image_files import Links, image_file
from dlfd_fleet.data.table import read_table, with_whole_numbers
from dlfd_fleet.exceptions import DataError
from dlfd_fleet.files import whole_file
from dlfd_fleet.names import plain_name

if TYPE_CHECKING:
    from dlfd_fleet.data.loaded import LoadedRows

SPLITS = ("train", "validation", "test")
REQUIRED = ("image", "identity", "label")
OPTIONAL = ("site", "split")
MISSING = frozenset(
    (
        *("nan", "NaN", "NAN", "-nan", "-NaN", "NaT", "1.#QNAN", "-1.#QNAN", "1.#IND", "-1.#IND", "-nan(ind)"),
        *("None", "NONE", "null", "NULL", "nil", "NIL", "\\N", "?"),
        *("NA", "<NA>", "<na>", "N/A", "n/a", "#N/A", "#N/A N/A", "#NA"),
    )
)
"""Texts that programs write for a missing value; they are no names of people."""

# Where these stand for a person, nobody is known; a class may be called so, such as "-" beside "+".
_NOBODY = frozenset({"none", "-"})

_LONGEST_CELL = 1000
_LONGEST_FILE_NAME = 255  # bytes
_ELSEWHERE = re.compile(r"[A-Za-z]:/|[A-Za-z][A-Za-z0-9+.-]*://|~[^/]*/")
_SPREADSHEET_ERROR = re.compile(r"#(REF!|VALUE!|NAME\?|DIV/0!|NULL!|NUM!|GETTING_DATA|SPILL!|CALC!)")
_SHORTENED_NUMBER = re.compile(r"\d([.,]\d+)?[Ee]\+\d+")


@dataclass(frozen=True, slots=True)  # a site may have 100,000 of them
class Row:
    """One image.

    Attributes
    ----------
    image
        Path under the manifest's root, with forward slashes.
    identity
        The person's name, which never leaves the site. A :class:`Manifest` uses the first spelling of each person.
    label
        Class of the image, also in its first spelling. With labels, all of them
        (:func:`~dlfd_fleet.data.classes.labels_in`).
    site
        Site that holds the image; empty for people never trained on, whom every site may hold.
    split
        ``train``, ``validation`` or ``test``; empty until people are assigned.
    """

    image: str
    identity: str
    label: str
    site: str = ""
    split: str = ""
    written: tuple[str, str] | None = field(default=None, compare=False, repr=False)
    """Identity and label as in the file, if the manifest has another spelling."""

    @property
    def written_identity(self) -> str:
        """The identity as the file spells it."""
        return self.written[0] if self.written else self.identity


@dataclass(frozen=True)
class Manifest:
    """A face set: its rows, and where they are read from.

    Rows are image files under ``root``; ``links`` tells whether links may leave it. Or they are rows of a loader
    (``loaded``), and their paths are keys (:func:`~dlfd_fleet.data.loaded.digest_of_key`).

    Identities that are equal by :func:`~dlfd_fleet.data.identity.canonical` get one spelling, and so do labels.
    :func:`write_manifest` writes the spellings of the file.
    """

    rows: tuple[Row, ...]
    root: Path
    links: Links = "refuse"
    loaded: LoadedRows | None = None

    def __post_init__(self) -> None:
        """Give each person and each class one spelling."""
        people, labels = dict[str, str](), dict[str, str]()
        rows = []
        for row in self.rows:
            identity = people.setdefault(canonical(row.identity), row.identity)
            label = labels.setdefault(canonical(row.label), row.label)
            if (identity, label) != (row.identity, row.label):
                written = row.written or (row.identity, row.label)
                rows.append(replace(row, identity=identity, label=label, written=written))
            else:
                rows.append(row)
        object.__setattr__(self, "rows", tuple(rows))

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels in order; of their canonical forms, so that sites which spell them in other ways agree."""
        return tuple(sorted({row.label for row in self.rows}, key=canonical))

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels in order, where a cell names several; in the spelling that comes first."""
        first: dict[str, str] = {}
        for cell in dict.fromkeys(row.label for row in self.rows):
            for name in labels_in(cell, multi_label=True):
                first.setdefault(canonical(name), name)
        return tuple(first[name] for name in sorted(first))

    @property
    def identities(self) -> tuple[str, ...]:
        """The people in order."""
        return tuple(sorted({row.identity for row in self.rows}, key=canonical))

    def spellings(self) -> tuple[tuple[str, ...], ...]:
        """Return the spellings of each person and of each class who has several in the file, the first one first."""
        found: dict[tuple[str, str], dict[str, None]] = {}
        for row in self.rows:
            for kind, name, written in zip(
                ("identity", "label"), (row.identity, row.label), row.written or (row.identity, row.label), strict=True
            ):
                found.setdefault((kind, name), {})[written] = None
        return tuple(tuple(names) for names in found.values() if len(names) > 1)

    def file_of(self, row: Row) -> Path:
        """Return an image's file; a :class:`~dlfd_fleet.exceptions.DataError` if a link leaves the image folder."""
        return image_file(self.root, row.image, self.links)

    def of_site(self, site: str) -> Manifest:
        """Return what one site holds: its own rows, and those of people whom every site holds."""
        return replace(self, rows=tuple(row for row in self.rows if row.site in (site, "")))

    def by_person(self) -> dict[str, list[Row]]:
        """Return the rows of each person, people in order."""
        people: dict[str, list[Row]] = {identity: [] for identity in self.identities}
        for row in self.rows:
            people[row.identity].append(row)
        return people


def read_manifest(
    file: Path, root: Path | None = None, links: Links = "refuse", *, may_be_empty: bool = False
) -> Manifest:
    """Read a manifest, CSV or Parquet by its suffix.

    Parameters
    ----------
    file
        The table.
    root
        Folder that image paths start from. Default: the table's folder.
    links
        Whether images may be links that leave this folder.
    may_be_empty
        Whether a table with only a header is valid: a site may have forgotten everybody.

    Raises
    ------
    DataError
        At the first problem of the table, with its row. Images are not checked.
    """
    rows = []
    folder = (root or file.parent).absolute()
    for number, cells in read_cells(file, folder):
        for column, sentence in cell_problems(cells):
            raise DataError(f"{file}, row {number}, column '{column}': {sentence}.")
        image, identity, label, site, split = (cells.get(name, "") for name in (*REQUIRED, *OPTIONAL))
        rows.append(Row(image, identity, label, site, split))
    if not rows and not may_be_empty:
        raise DataError(f"{file} has no rows; list at least one image.")
    return Manifest(tuple(rows), folder, links)


def read_cells(file: Path, root: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield each row's number (the header is row 1) and its cells, without judging them.

    Image paths are relative to the root, with forward slashes. Blanks around paths, sites and splits are removed.

    Raises
    ------
    DataError
        If the table cannot be read or its columns are not the contract's.
    """
    rows = read_table(file, REQUIRED, OPTIONAL)
    with_whole_numbers([cells for _, cells in rows], [name for name in REQUIRED + OPTIONAL if name != "image"])
    for number, cells in rows:
        plain = {name: cells[name].strip() for name in OPTIONAL if name in cells}
        if plain.get("split") and plain["split"] not in MISSING:
            plain["split"] = plain["split"].lower()
        yield number, cells | plain | {"image": _under(root, cells["image"].strip())}


def cell_problems(cells: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the column and the sentence of every problem of one row's cells."""
    for name, cell in cells.items():
        sentence = _text_problem(cell)
        if not sentence and name in REQUIRED:
            sentence = _name_problem(name, cell)
        if sentence:
            yield name, sentence
    image, split = cells.get("image", ""), cells.get("split", "")
    path = PurePosixPath(image)
    if path.is_absolute() or ".." in path.parts:
        yield "image", f"'{image}' leaves the image folder; give a path under it"
    elif _ELSEWHERE.match(image):
        yield "image", f"'{image}' is no path on this machine; give one under the image folder"
    elif any(len(part.encode()) > _LONGEST_FILE_NAME for part in path.parts):
        yield "image", "a name in the path is longer than file systems allow"
    elif image == ".":
        yield "image", "'.' is the image folder itself; give a path under it"
    if split in MISSING:
        yield "split", f"'{split}' means an empty cell; leave it empty, or use {', '.join(SPLITS)}"
    elif split and split not in SPLITS:
        yield "split", f"'{split}' is no split; use {', '.join(SPLITS)} or leave it empty"
    if cells.get("site"):
        try:
            site_name(cells["site"])
        except ValueError as error:
            yield "site", str(error)


def site_name(name: str) -> str:
    """Return a valid site name of a manifest: a plain name that does not mean a missing value.

    Raises
    ------
    ValueError
        If it is not valid; the text says why.
    """
    if name in MISSING:
        raise ValueError(f"'{name}' means an empty cell; give the site another name")
    return plain_name(name)


def _text_problem(cell: str) -> str:
    if len(cell) > _LONGEST_CELL:
        return f"the cell has {len(cell):,} characters; a quotation mark before it may not be closed"
    if cell.isprintable() and "\ufffd" not in cell:  # nearly every cell, and quick to tell
        return ""
    if strange := next((letter for letter in cell if unicodedata.category(letter) in ("Cc", "Cs")), ""):
        return f"the cell holds the control character U+{ord(strange):04X}; remove it"
    if "\ufffd" in cell:
        return f"'{cell}' holds a letter that was lost (U+FFFD); write the table again from its source"
    return ""


def _name_problem(column: str, cell: str) -> str:
    """Return what is wrong with a cell that must name something."""
    name = cell.strip()
    if not (name if column == "image" else canonical(name)):
        return "the cell is empty"
    if column == "image":
        return ""
    if name in MISSING or (column == "identity" and name in _NOBODY):
        other = "'none'" if column == "label" and name.casefold() == "none" else "another spelling"
        return f"'{name}' means an empty cell; give the {column}, or use {other} if it is meant"
    if _SPREADSHEET_ERROR.fullmatch(name):
        return f"'{name}' is an error of a spreadsheet; give the {column}"
    if _SHORTENED_NUMBER.fullmatch(name):
        return f"'{name}' is a number that a spreadsheet shortened; format the column as text, and enter it again"
    return ""


def _under(root: Path, path: str) -> str:
    """Return an image's path from the root on, if it is under it; any other path as it is, with forward slashes."""
    posix = path.replace("\\", "/")
    if not posix:
        return ""
    plain = PurePosixPath(posix)
    if plain.is_absolute() and ".." not in plain.parts:
        for folder in (root, root.resolve()):
            if plain.is_relative_to(folder):
                return str(plain.relative_to(folder))
    return posix if "://" in posix else str(plain)


def write_manifest(rows: Iterable[Row], file: Path) -> None:
    """Write a manifest, CSV or Parquet by its suffix, whole or not at all.

    Raises
    ------
    DataError
        If the disk refuses.
    """
    columns = [*REQUIRED, *OPTIONAL]
    table = [
        [row.image, *(row.written or (row.identity, row.label)), *(getattr(row, name) for name in OPTIONAL)]
        for row in rows
    ]
    with whole_file(file, DataError) as new:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix.lower() == ".parquet":
            import pyarrow
            from pyarrow import parquet

            series = [pyarrow.array([line[index] for line in table], pyarrow.string()) for index in range(len(columns))]
            parquet.write_table(pyarrow.table(series, names=columns), new)
        else:
            with new.open("w", newline="", encoding="utf-8") as stream:
                csv.writer(stream).writerows([columns, *table])
