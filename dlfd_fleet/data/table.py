"""Read tables as text: CSV with any delimiter in UTF-8 or UTF-16, or Parquet.

A file that can be read in more than one way is refused, with the row and what to do. Cells are not checked here.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dlfd_fleet.exceptions import DataError

_DELIMITERS = ",;\t|"
_BYTE_ORDER_MARKS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\x00\x00": "utf-32",  # before UTF-16, whose mark it begins with
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
_PARQUET = b"PAR1"
_AS_CSV = "save it as CSV UTF-8"
_NO_TABLES = {
    b"PK\x03\x04": f"it is a spreadsheet (such as .xlsx or .ods) or another zip file; {_AS_CSV}",
    b"\xd0\xcf\x11\xe0": f"it is an old or encrypted Excel file; {_AS_CSV}",
    b"\x1f\x8b": "it is compressed with gzip; unpack it first",
    b"ARROW1": "it is an Arrow file; save it as Parquet or CSV UTF-8",
    b"PARE": "it is an encrypted Parquet file; decrypt it first",
}
_WHOLE_IMAGES = (
    "the column 'image' holds whole images, as Hugging Face writes them, and no paths; `dlfd-fleet site init "
    "--parquet` takes such a file, or write each image to a file and list its path"
)
_MOST_SHOWN = 60  # characters of a cell in a sentence
_EXCEL_FIRST_LINE = re.compile(r"sep=([,;\t|])\r?\n", re.IGNORECASE)
_PANDAS_INDEX = re.compile(r"__index_level_\d+__")
_WHOLE = re.compile(r"(-?\d+)\.0+")
_FRACTION = re.compile(r"-?\d+\.\d*[1-9]\d*")
_CSV_FAULTS = {
    "unexpected end of data": "a quotation mark is opened and not closed",
    "expected after": "a quotation mark stands inside a cell; double it, or remove it",
    "field larger": "a cell is too long; a quotation mark before it may not be closed",
}

Lines = Iterator[tuple[int, list[str]]]
"""Rows with their numbers as in a spreadsheet; the header is row 1."""


class _UnreadableError(Exception):
    """A table cannot be read; the text says why and what to do."""


def read_table(
    file: Path, required: Sequence[str], optional: Sequence[str], what: str = "manifest"
) -> list[tuple[int, dict[str, str]]]:
    """Return each row's number (the header is row 1) and its cells by column, without blank rows.

    Column names may be padded or in capitals.

    Parameters
    ----------
    file
        CSV or Parquet, recognised by content.
    required, optional
        Columns that it must have and may have.
    what
        Name of the table in errors.

    Raises
    ------
    DataError
        If the table cannot be read or has other columns.
    """
    with _sentences(file, what):
        lines = _lines(file, (*required, *optional))
        _, header = next(lines, (1, []))
        columns = _columns(f"{what} {file}", header, required, optional)
        return [(number, row) for number, cells in lines if (row := _row(number, cells, columns)) is not None]


def read_lines(file: Path, what: str) -> list[tuple[int, str]]:
    """Return each line of a text file with its number, stripped, without blank lines.

    Raises
    ------
    DataError
        If it cannot be read, or is no text.
    """
    with _sentences(file, what):
        content = file.read_bytes()
        for mark, sentence in _NO_TABLES.items():
            if content.startswith(mark):
                raise _UnreadableError(sentence)
        lines = enumerate(_text(content).splitlines(), start=1)
        return [(number, line.strip()) for number, line in lines if line.strip()]


@contextmanager
def _sentences(file: Path, what: str) -> Iterator[None]:
    """Turn errors of reading a file into one sentence."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"There is no {what} {file}.") from error
    except OSError as error:
        raise DataError(f"The {what} {file} cannot be read: {error.strerror or _first_line(error)}.") from error
    except _UnreadableError as error:
        raise DataError(f"The {what} {file} cannot be read: {error}.") from error


def _lines(file: Path, known: Sequence[str]) -> Lines:
    with file.open("rb") as stream:
        head = stream.read(8)
        for mark, sentence in _NO_TABLES.items():
            if head.startswith(mark):
                raise _UnreadableError(sentence)
        if head.startswith(_PARQUET) or file.suffix.lower() == ".parquet":
            return _parquet_lines(file)
        return _csv_lines(_text(head + stream.read()), known)


def _columns(table: str, header: list[str], required: Sequence[str], optional: Sequence[str]) -> list[str]:
    """Return the plain names of the columns; an empty one for a column without a name."""
    known, contract = (*required, *optional), ",".join(required) + "".join(f"[,{name}]" for name in optional)
    names = [_plain_name(cell) for cell in header]
    wrong = ""
    if missing := [name for name in required if name not in names]:
        wrong = f"lacks the column '{missing[0]}'"
        if not set(names) & set(known):
            wrong = f"{wrong}, for its first row names no column but is '{_shortened(','.join(header))}'"
    elif repeated := [name for name in known if names.count(name) > 1]:
        wrong = f"has the column '{repeated[0]}' twice"
    elif unknown := [cell for cell, name in zip(header, names, strict=True) if name and name not in known]:
        wrong = f"has an unknown column '{_shortened(unknown[0])}'"
    if wrong:
        raise DataError(f"The {table} {wrong}; its columns are {contract}.")
    return names


def _row(number: int, cells: list[str], columns: list[str]) -> dict[str, str] | None:
    """Return the cells of a row by column, or None if it is blank."""
    if not any(cell.strip() for cell in cells):
        return None
    if any(cell.strip() for cell in cells[len(columns) :]):
        raise _UnreadableError(f"row {number} has more cells than the header; quote a cell that holds the delimiter")
    padded = cells[: len(columns)] + [""] * (len(columns) - len(cells))
    if any(cell.strip() for name, cell in zip(columns, padded, strict=True) if not name):
        raise _UnreadableError(f"row {number} has a cell in a column without a name; name the column, or delete it")
    if [_plain_name(cell) for cell in padded] == columns:
        raise _UnreadableError(f"row {number} is the header again; delete it")
    return {name: cell for name, cell in zip(columns, padded, strict=True) if name}


def _text(content: bytes) -> str:
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS.items() if content.startswith(mark)), "utf-8")
    if encoding == "utf-8" and 0 in content[:2]:  # Western letters of UTF-16 have a zero byte each
        encoding = "utf-16-be" if content[:1] == b"\0" else "utf-16-le"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        row = content[: error.start].count(b"\n") + 1
        shown = encoding.removesuffix("-sig").upper()
        raise _UnreadableError(f"row {row} is not {shown} text (byte {error.start + 1}); {_AS_CSV}") from error


def _csv_lines(text: str, known: Sequence[str]) -> Lines:
    start, given = 0, _EXCEL_FIRST_LINE.match(text)
    if given:
        start, text = 1, text[given.end() :]
    first = next((line for line in io.StringIO(text) if line.strip(f" {_DELIMITERS}\r\n")), "")
    delimiter = given[1] if given else max(_DELIMITERS, key=lambda mark: _known_names(first, mark, known))
    # Blanks after the delimiters of the header: then those of the rows stand before quotation marks, too.
    padded = re.search(f"{re.escape(delimiter)} ", first) is not None
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=padded)
    lines = _numbered(reader, start + 1)
    header = next(((number, cells) for number, cells in lines if any(cell.strip() for cell in cells)), None)
    if header is None:
        raise _UnreadableError("it is empty")
    yield header
    yield from lines


def _known_names(line: str, delimiter: str, known: Sequence[str]) -> int:
    return sum(_plain_name(cell.strip().strip('"')) in known for cell in line.split(delimiter))


def _numbered(reader: Iterator[list[str]], start: int) -> Lines:
    number = start
    while True:
        try:
            yield number, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            words = next((ours for theirs, ours in _CSV_FAULTS.items() if theirs in str(error)), str(error))
            raise _UnreadableError(f"row {number}: {words}") from error
        number += 1


def _parquet_lines(file: Path) -> Lines:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file) as opened:
            schema = opened.schema_arrow
            indices = [index for index, name in enumerate(schema.names) if not _PANDAS_INDEX.fullmatch(name)]
            names = [schema.names[index] for index in indices]
            yield 1, names
            readers = [_cell_reader(schema.field(index)) for index in indices]
            table = opened.read()
        columns = [table.column(index).to_pylist() for index in indices]
    except (pyarrow.ArrowException, OSError) as error:  # the second also for damage, and then without a number
        if getattr(error, "errno", None):
            raise
        raise _UnreadableError(f"it is damaged or no Parquet file ({_first_line(error)})") from error
    except UnicodeDecodeError as error:
        raise _UnreadableError("it holds text that is not UTF-8; write it again from its source") from error
    for number, values in enumerate(zip(*columns, strict=True), start=2):
        cells = []
        for name, reader, value in zip(names, readers, values, strict=True):
            try:
                cells.append("" if value is None else reader(value))
            except ValueError as error:
                raise _UnreadableError(f"row {number}, column '{name}': {error}") from error
        yield number, cells


def _cell_reader(field: Any) -> Callable[[Any], str]:
    """Return how the values of a Parquet column become text."""
    from pyarrow import types

    kind = field.type.value_type if types.is_dictionary(field.type) else field.type
    if types.is_floating(kind):
        exact = 2 ** {16: 11, 32: 24, 64: 53}[kind.bit_width]
        return lambda value: "" if math.isnan(value) else _whole_number(value, exact)
    if types.is_decimal(kind):
        return lambda value: _whole_number(value, 10**76)
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        return lambda value: _bytes_as_text(value, _plain_name(field.name))
    if any(test(kind) for test in (types.is_string, types.is_large_string, types.is_string_view, types.is_integer)):
        return str
    if types.is_null(kind) or (types.is_boolean(kind) and _plain_name(field.name) == "label"):
        return str
    if types.is_nested(kind) and _plain_name(field.name) == "image":
        raise _UnreadableError(_WHOLE_IMAGES)
    raise _UnreadableError(f"the column '{field.name}' is of type {_shortened(str(kind))}; make it text")


def _whole_number(value: Any, exact: int) -> str:
    """Return ``7`` for 7.0.

    Parameters
    ----------
    exact
        Limit from which the column's numbers are rounded, so that two may have become equal.

    Raises
    ------
    ValueError
        If it is no whole number, or may be a rounded one.
    """
    if not math.isfinite(value) or value != int(value) or abs(value) >= exact:
        raise ValueError(f"{value} is no whole number that is exact in this column; make the column text")
    return str(int(value))


def _bytes_as_text(value: bytes, name: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise ValueError(_WHOLE_IMAGES if name == "image" else "its bytes are no UTF-8 text; make it text") from error


def with_whole_numbers(rows: Sequence[dict[str, str]], columns: Sequence[str]) -> None:
    """Make ``7`` of ``7.0``, in place, in columns without fractions.

    Programs write whole numbers this way in columns that had empty cells.
    """
    for name in columns:
        cells = [row.get(name, "").strip() for row in rows]
        if any(_FRACTION.fullmatch(cell) for cell in cells):
            continue
        for row, cell in zip(rows, cells, strict=True):
            if found := _WHOLE.fullmatch(cell):
                row[name] = found[1]


def _plain_name(cell: str) -> str:
    return cell.strip().strip("\ufeff").strip().casefold()


def _first_line(error: object) -> str:
    return _shortened((str(error).splitlines() or [""])[0])


def _shortened(text: str) -> str:
    printable = "".join(letter if letter.isprintable() else "?" for letter in text)
    return printable if len(printable) <= _MOST_SHOWN else printable[:_MOST_SHOWN] + "..."
