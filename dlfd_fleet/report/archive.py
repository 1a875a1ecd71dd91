"""Records over a period in one signed archive: tables as CSV and JSON, other documents, and a signed manifest.

Nothing in it says when it was made, so the same records of the same period are the same bytes.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from securesystemslib.signer import CryptoSigner, SSlibKey

from dlfd_fleet.exceptions import EvidenceError
from dlfd_fleet.report.envelope import (
    Claims,
    Digests,
    InTotoStatement,
    Subject,
    read_signed,
    sign,
    verify_signature,
)

MANIFEST = "manifest.json"
Cell = str | int | bool | None
_LARGEST = 2**30
_OBEYED_BY_SPREADSHEETS = ("=", "+", "-", "@", "\t", "\r")
_FIRST_YEAR = 1980  # of dates in a ZIP


@dataclass(frozen=True)
class Table:
    """Rows of an archive, and the names of their columns in order."""

    columns: tuple[str, ...]
    rows: Sequence[Mapping[str, Cell]]


class RecordsPredicate(Claims):
    """Whose records of which days an archive holds."""

    holder: str
    """The site, or the fleet, that they are of."""
    begin: date
    end: date
    """The first and the last day of the period."""
    with_names: bool
    """Whether people's names and free texts are in it."""
    rows: dict[str, Annotated[int, Field(ge=0)]]
    """How many each table has."""


class Records(InTotoStatement):
    """The manifest of an archive: its files by their digests, and what they are."""

    predicate_type: Literal["urn:dlfd-fleet:records:1"] = Field("urn:dlfd-fleet:records:1", alias="predicateType")
    predicate: RecordsPredicate


def write_archive(
    file: Path,
    tables: Mapping[str, Table],
    documents: Mapping[str, bytes],
    *,
    holder: str,
    begin: date,
    end: date,
    with_names: bool,
    signer: CryptoSigner,
    note: Callable[[], None] = lambda: None,
) -> Records:
    """Write records as a ZIP file, and return its manifest.

    Parameters
    ----------
    tables
        By name: each becomes ``NAME.csv`` and ``NAME.json``.
    documents
        Other files, by their names in the archive.
    signer
        Signs the manifest.
    note
        Called once the archive is written and before it has its name: if it fails, there is no archive.

    Raises
    ------
    EvidenceError
        If the file cannot be written, or the period is none; then it is what it was before.
    """
    from dlfd_fleet.files import whole_file  # late: who only verifies, with the device's extra, has no safetensors

    refuse_period(begin, end)
    files = dict(documents)
    for name, table in tables.items():
        files[f"{name}.csv"], files[f"{name}.json"] = _csv(table), _json(table)
    names = sorted(files)
    records = Records(
        subject=tuple(Subject(name=name, digest=Digests(sha256=_sha256(files[name]))) for name in names),
        predicate=RecordsPredicate(
            holder=holder,
            begin=begin,
            end=end,
            with_names=with_names,
            rows={name: len(table.rows) for name, table in sorted(tables.items())},
        ),
    )
    with whole_file(file, EvidenceError) as new:
        with zipfile.ZipFile(new, "w") as archive:
            for name, content in ((MANIFEST, sign(records, signer)), *((name, files[name]) for name in names)):
                entry = zipfile.ZipInfo(name, (end.year, end.month, end.day, 0, 0, 0))
                entry.create_system, entry.external_attr = 3, 0o644 << 16  # the same on every system
                archive.writestr(entry, content)  # not compressed: another zlib would make other bytes
        note()
    return records


def verify_archive(file: Path, key: SSlibKey) -> Records:
    """Check an archive offline: its manifest's signature, and that its files are those of the manifest.

    Parameters
    ----------
    key
        Public key of whoever is trusted to have written it; there is no default.

    Raises
    ------
    EvidenceError
        If anything does not hold.
    """
    contents = _contents(file)
    if MANIFEST not in contents:
        raise EvidenceError(f"{file} is no archive of records: it has no {MANIFEST}.")
    manifest = f"The {MANIFEST} of {file}"
    envelope, records = read_signed(contents.pop(MANIFEST), Records, manifest, "manifest of records")
    verify_signature(envelope, key, manifest)
    signed = {subject.name: subject.digest.sha256 for subject in records.subject}
    for name in sorted(signed.keys() | contents.keys()):
        if name not in contents:
            raise EvidenceError(f"{file} lacks {name}, which its manifest lists.")
        if name not in signed:
            raise EvidenceError(f"{file} holds {name}, which its manifest does not list.")
        if _sha256(contents[name]) != signed[name]:
            raise EvidenceError(f"{name} in {file} was changed: its SHA-256 is not the manifest's.")
    return records


def refuse_period(begin: date, end: date) -> None:
    """Refuse a period that ends before it begins, or is too long ago.

    Raises
    ------
    EvidenceError
        If it is refused.
    """
    if begin > end:
        raise EvidenceError(f"The period from {begin} to {end} ends before it begins.")
    if begin.year < _FIRST_YEAR:
        raise EvidenceError(f"The period begins on {begin}; name a day from {_FIRST_YEAR} on.")


def last_day(begin: date, end: date, today: date) -> date:
    """Return the last day of an archive: that of its period, or today while the period goes on.

    Raises
    ------
    EvidenceError
        If the period is none, or has not begun.
    """
    refuse_period(begin, end)
    if begin > today:
        raise EvidenceError(
            f"The period begins on {begin}, after today, {today}: nobody knows yet what happens then.", "from"
        )
    return min(end, today)


def _contents(file: Path) -> dict[str, bytes]:
    """Return the files of an archive by name; never more than the archive's own size."""
    try:
        if file.stat().st_size > _LARGEST:
            raise EvidenceError(f"{file} is no archive of records: it has more than {_LARGEST} bytes.")
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            if len(set(names)) < len(names) or any(entry.compress_type for entry in entries):
                raise EvidenceError(f"{file} was not written by dlfd-fleet: a file is compressed or there twice.")
            return {entry.filename: archive.read(entry) for entry in entries}
    except EvidenceError:
        raise
    except OSError as error:
        raise EvidenceError(f"The archive {file} cannot be read: {error.strerror or error}.") from error
    # The library answers to damaged bytes with whatever it trips over.
    except Exception as error:
        raise EvidenceError(f"{file} is no ZIP archive, or is damaged.") from error


def _csv(table: Table) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(table.columns)
    writer.writerows([_cell(row[name]) for name in table.columns] for row in table.rows)
    return text.getvalue().encode()


def _cell(value: Cell) -> str | int:
    """Return a value as a cell; an apostrophe keeps a spreadsheet from taking a text for a formula."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"'{value}" if isinstance(value, str) and value.startswith(_OBEYED_BY_SPREADSHEETS) else value


def _json(table: Table) -> bytes:
    rows = [{name: row[name] for name in table.columns} for row in table.rows]
    return (json.dumps(rows, indent=2, ensure_ascii=False) + "\n").encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
