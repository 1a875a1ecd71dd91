"""The contract of a face set: a table ``image,identity,label[,site][,split]`` and the folder that images start from."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path, PurePosixPath

from dlfd_fleet.exceptions import DataError
from dlfd_fleet.files import whole_file

SPLITS = ("train", "validation", "test")
REQUIRED = ("image", "identity", "label")
OPTIONAL = ("site", "split")


@dataclass(frozen=True)
class Row:
    """One image.

    Attributes
    ----------
    image
        Path under the manifest's root, with forward slashes.
    identity
        The person; never leaves the site.
    label
        Class of the task, not of the person.
    site
        Who holds the image; empty for people never trained on whom every site may hold.
    split
        ``train``, ``validation`` or ``test``; empty until people are assigned.
    """

    image: str
    identity: str
    label: str
    site: str = ""
    split: str = ""


@dataclass(frozen=True)
class Manifest:
    """A face set: its rows, and the folder that their images start from."""

    rows: tuple[Row, ...]
    root: Path

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels in order."""
        return tuple(sorted({row.label for row in self.rows}))

    @property
    def identities(self) -> tuple[str, ...]:
        """The people in order."""
        return tuple(sorted({row.identity for row in self.rows}))

    def of_site(self, site: str) -> Manifest:
        """Return what one site holds: its own rows, and those of people whom every site holds."""
        return replace(self, rows=tuple(row for row in self.rows if row.site in (site, "")))

    def by_person(self) -> dict[str, list[Row]]:
        """Return the rows of each person, people in order."""
        people: dict[str, list[Row]] = {identity: [] for identity in self.identities}
        for row in self.rows:
            people[row.identity].append(row)
        return people


def read_manifest(file: Path, root: Path | None = None) -> Manifest:
    """Read a manifest, CSV or Parquet by its suffix.

    Parameters
    ----------
    file
        The table.
    root
        Folder that image paths start from; the table's own folder when omitted.

    Raises
    ------
    DataError
        At the first problem of the table itself, with its row; images are not looked at.
    """
    rows = []
    for number, cells in read_cells(file):
        for column, sentence in cell_problems(cells):
            raise DataError(f"{file}, row {number}, column '{column}': {sentence}.")
        rows.append(Row(**cells))
    if not rows:
        raise DataError(f"{file} has no rows; list at least one image.")
    return Manifest(tuple(rows), (root or file.parent).absolute())


def read_cells(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield each row's number (the header is row 1) and its cells, without judging them.

    Raises
    ------
    DataError
        If the table cannot be read or its columns are not the contract's.
    """
    try:
        table = _read_parquet(file) if file.suffix == ".parquet" else _read_csv(file)
    except FileNotFoundError as error:
        raise DataError(f"There is no manifest {file}.") from error
    except (OSError, UnicodeDecodeError, csv.Error, ValueError) as error:
        raise DataError(f"The manifest {file} cannot be read: {error}.") from error
    columns, rows = table
    missing = [name for name in REQUIRED if name not in columns]
    unknown = [name for name in columns if name not in REQUIRED + OPTIONAL]
    if missing or unknown:
        wrong = f"lacks the column '{missing[0]}'" if missing else f"has an unknown column '{unknown[0]}'"
        raise DataError(f"The manifest {file} {wrong}; its columns are image,identity,label[,site][,split].")
    yield from enumerate(rows, start=2)


def cell_problems(cells: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the column and the sentence of every problem of one row's cells."""
    for name in REQUIRED:
        if not cells.get(name):
            yield name, "the cell is empty"
    image, split = PurePosixPath(cells.get("image") or "."), cells.get("split", "")
    if image.is_absolute() or ".." in image.parts:
        yield "image", f"'{image}' leaves the image folder; give a path under it"
    if split and split not in SPLITS:
        yield "split", f"'{split}' is no split; use {', '.join(SPLITS)} or leave it empty"


def write_manifest(rows: Iterable[Row], file: Path) -> None:
    """Write a manifest, CSV or Parquet by its suffix, whole or not at all.

    Raises
    ------
    DataError
        If the disk refuses.
    """
    columns = [field.name for field in fields(Row)]
    table = [[getattr(row, name) for name in columns] for row in rows]
    with whole_file(file, DataError) as new:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".parquet":
            import pyarrow
            from pyarrow import parquet

            series = [pyarrow.array([line[index] for line in table], pyarrow.string()) for index in range(len(columns))]
            parquet.write_table(pyarrow.table(series, names=columns), new)
        else:
            with new.open("w", newline="", encoding="utf-8") as stream:
                csv.writer(stream).writerows([columns, *table])


def _read_csv(file: Path) -> tuple[list[str], list[dict[str, str]]]:
    with file.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream, restval="", strict=True)
        rows = []
        for line in reader:
            if None in line:
                raise ValueError(f"row {reader.line_num} has more cells than the header")
            rows.append(dict(line))
        return list(reader.fieldnames or []), rows


def _read_parquet(file: Path) -> tuple[list[str], list[dict[str, str]]]:
    from pyarrow import parquet

    table = parquet.read_table(file)
    rows = [{name: "" if cell is None else str(cell) for name, cell in line.items()} for line in table.to_pylist()]
    return list(table.column_names), rows
