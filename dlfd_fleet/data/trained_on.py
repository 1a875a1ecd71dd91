"""Read on whom a model was trained before it came to this fleet."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from dlfd_fleet.data.identity import canonical
from dlfd_fleet.data.manifest import OPTIONAL, REQUIRED, SPLITS, Manifest, Row, cell_problems
from dlfd_fleet.data.table import read_lines, read_table, with_whole_numbers
from dlfd_fleet.exceptions import DataError

EVERYBODY = "all"
_WHAT = "list of people"
_TABLES = (".csv", ".tsv", ".parquet")


@dataclass(frozen=True)
class TrainedOn:
    """The people on whom a model was trained.

    Attributes
    ----------
    file
        The file of the list; None for everybody of the manifest.
    rows
        The row of each person of the list, by canonical identity; empty for everybody.
    """

    file: Path | None = None
    rows: Mapping[str, int] | None = None

    @classmethod
    def read(cls, said: str) -> Self:
        """Return the people of an option: ``all``, or a file.

        The file is text with one identity a line, or a table with a column ``identity``, such as a manifest.

        Raises
        ------
        DataError
            If the file cannot be read, names nobody, or a line is no identity.
        """
        if said == EVERYBODY:
            return cls()
        file = Path(said)
        rows = [(number, {"identity": cells["identity"]}) for number, cells in _cells(file)]
        with_whole_numbers([cells for _, cells in rows], ["identity"])
        people = dict[str, int]()
        for number, cells in rows:
            for _, sentence in cell_problems(cells):
                raise DataError(f"{file}, row {number}: {sentence}.")
            people.setdefault(canonical(cells["identity"]), number)
        if not people:
            raise DataError(f"{file} names nobody; give one identity a line, or '{EVERYBODY}' for everybody.")
        return cls(file, people)

    def __contains__(self, identity: str) -> bool:
        return self.rows is None or canonical(identity) in self.rows

    def people(self, manifest: Manifest) -> Collection[str]:
        """Return the people of the list, or everybody of a manifest."""
        return manifest.identities if self.rows is None else self.rows.keys()

    def marked(self, manifest: Manifest, name: Path) -> Manifest:
        """Return a manifest in which these people have the split ``train``.

        Parameters
        ----------
        name
            Name of the manifest in errors.

        Raises
        ------
        DataError
            If the manifest lists one of them among the unseen people.
        """
        return replace(manifest, rows=tuple(self._marked(row, name) for row in manifest.rows))

    def _marked(self, row: Row, name: Path) -> Row:
        if row.identity not in self:
            return row
        if row.split in SPLITS[1:]:
            said = "--trained-on all" if self.rows is None else f"{self.file}, row {self.rows[canonical(row.identity)]}"
            raise DataError(
                f"{said}: '{row.identity}' was trained on, and {name} has {row.image} of theirs in the split "
                f"'{row.split}', for people who were not; correct one of the two."
            )
        return replace(row, split=SPLITS[0])


def _cells(file: Path) -> list[tuple[int, dict[str, str]]]:
    if file.suffix.lower() not in _TABLES:
        lines = read_lines(file, _WHAT)
        header = re.split(r"[,;|\t]", lines[0][1].casefold()) if lines else []
        if "identity" not in [name.strip(' "\ufeff') for name in header]:
            return [(number, {"identity": line}) for number, line in lines]
    others = [name for name in (*REQUIRED, *OPTIONAL) if name != "identity"]
    return read_table(file, ("identity",), others, _WHAT)
