"""Read and change tables of a database, with seals on each row and on the set of all rows."""

from __future__ import annotations

import hmac
import json
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from dlfd_fleet.exceptions import FleetError

_SEAL_LABEL = b"\xffseal of the ledger"  # no UTF-8 text has this byte, so no person's keyed digest is the seals' key
_NO_ROWS = bytes(32)


def head_table(name: str, tables: sa.MetaData) -> sa.Table:
    """Return the table of one row that seals all rows of the others."""
    return sa.Table(
        name,
        tables,
        sa.Column("version", sa.Integer, primary_key=True),
        sa.Column("epoch", sa.Integer, nullable=False),  # a ledger's: of the last release that it heard of; never falls
        sa.Column("last", sa.Integer, nullable=False),  # number of the newest row of the numbered table
        sa.Column("rows", sa.Integer, nullable=False),  # of all other tables
        sa.Column("nonce", sa.String, nullable=False),
        sa.Column("members", sa.String, nullable=False),  # which rows these are: XOR of a keyed digest of each, masked
        sa.Column("seal", sa.String, nullable=False),
    )


@dataclass(frozen=True)
class SealedFormat:
    """Tables that are sealed together.

    Attributes
    ----------
    what, if_not_ours
        For errors: what they are, such as "The ledger", and whose key they lack else, with what to do then.
    sealed
        The tables of ``tables`` but for the head.
    numbered, numbered_as
        The one whose first column counts its rows, and its name in errors.
    has_gaps
        Whether rows of that may have been deleted.
    """

    what: str
    if_not_ours: str
    version: int
    tables: sa.MetaData
    head: sa.Table
    sealed: tuple[sa.Table, ...]
    numbered: sa.Table
    numbered_as: str
    error: type[FleetError]
    has_gaps: bool = False


class SealedRows:
    """Sealed tables in one transaction. Without the key nobody can change, add or remove a row unnoticed.

    Each row has a seal, an HMAC-SHA-256 of its columns. The head has a seal over the epoch and the set of all rows. The
    set is hashed by MSet-XOR-Hash (Clarke et al., Asiacrypt 2003), so the cost of a change depends only on the changed
    rows.

    Parameters
    ----------
    name
        Where they are, in errors.
    create
        Make the tables.

    Raises
    ------
    FleetError
        Of the format's type, if the head was changed without the key, or sealed with another key.
    """

    def __init__(
        self, connection: sa.Connection, key: bytes, name: str, format_: SealedFormat, *, create: bool = False
    ) -> None:
        self._connection, self._name, self._format = connection, name, format_
        self._key = hmac.digest(key, _SEAL_LABEL, "sha256")
        if create:
            format_.tables.create_all(connection)
            self.epoch, self.last, self._rows, self._members = 0, 0, 0, _NO_ROWS
            connection.execute(sa.insert(format_.head).values(self._head()))
            return
        heads = [dict(row) for row in connection.execute(sa.select(format_.head)).mappings()]
        if len(heads) != 1 or not self._holds(format_.head, heads[0]):
            raise self._tampered(f", or {format_.if_not_ours}.")
        head = heads[0]
        self.epoch, self.last, self._rows = int(head["epoch"]), int(head["last"]), int(head["rows"])
        self._members = _xor(bytes.fromhex(head["members"]), self._mask(head["nonce"]))

    def read(
        self, table: sa.Table, condition: sa.ColumnElement[bool], *order: sa.ColumnElement[Any]
    ) -> list[dict[str, Any]]:
        """Return rows of a table; an error names a row that was changed without the key."""
        found = self._connection.execute(sa.select(table).where(condition).order_by(*order)).mappings()
        rows = [dict(row) for row in found]
        for row in rows:
            if not self._holds(table, row):
                raise self._tampered(f": {self._described(table, row)} is not as sealed.")
        return rows

    def insert(self, table: sa.Table, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows."""
        sealed = [{**row, "seal": self._seal(table, row)} for row in rows]
        if sealed:
            self._connection.execute(sa.insert(table), sealed)
        for row in sealed:
            self._toggle(row["seal"], 1)

    def update(self, table: sa.Table, condition: sa.ColumnElement[bool], values: Mapping[str, Any]) -> int:
        """Change rows and return their number; a row that was changed without the key is not sealed again."""
        rows = self.read(table, condition)
        for row in rows:
            new = {**row, **values}
            new["seal"] = self._seal(table, new)
            keys = [column == row[column.name] for column in table.primary_key]
            self._connection.execute(sa.update(table).where(*keys).values(new))
            self._toggle(row["seal"], 0)
            self._toggle(new["seal"], 0)
        return len(rows)

    def delete(self, table: sa.Table, condition: sa.ColumnElement[bool]) -> None:
        """Delete rows."""
        for row in self.read(table, condition):
            self._toggle(row["seal"], -1)
        self._connection.execute(sa.delete(table).where(condition))

    def seal_head(self) -> None:
        """Write the head at the end of a change."""
        self._connection.execute(sa.update(self._format.head).values(self._head()))

    def verify(self) -> None:
        """Check the seal of every row, and that no row is missing or was restored."""
        rows, members, last = 0, _NO_ROWS, 0
        for table in self._format.sealed:
            for row in self.read(table, sa.true(), *table.primary_key):
                rows, members = rows + 1, _xor(members, self._member(row["seal"]))
                if table is self._format.numbered:
                    (column,) = table.primary_key
                    if row[column.name] != last + 1 and not self._format.has_gaps:
                        raise self._tampered(f": row {last + 1} of its {self._format.numbered_as} is missing.")
                    last = row[column.name]
        if (rows, members, last) != (self._rows, self._members, self.last):
            few = (
                f"{rows} rows, and its seal says {self._rows}"
                if rows != self._rows
                else "older rows than its seal says"
            )
            raise self._tampered(f": it holds {few}.")

    def _head(self) -> dict[str, Any]:
        nonce = secrets.token_hex(16)  # masks the set: without it, two heads would tell which rows are between them
        head: dict[str, Any] = {
            "version": self._format.version,
            "epoch": self.epoch,
            "last": self.last,
            "rows": self._rows,
            "nonce": nonce,
            "members": _xor(self._members, self._mask(nonce)).hex(),
        }
        return {**head, "seal": self._seal(self._format.head, head)}

    def _toggle(self, seal: str, rows: int) -> None:
        self._members = _xor(self._members, self._member(seal))
        self._rows += rows

    def _seal(self, table: sa.Table, row: Mapping[str, Any]) -> str:
        columns = [row.get(column.name) for column in table.columns if column.name != "seal"]
        content = json.dumps([table.name, *columns], default=repr)
        return hmac.digest(self._key, content.encode(), "sha256").hex()

    def _holds(self, table: sa.Table, row: Mapping[str, Any]) -> bool:
        return hmac.compare_digest(self._seal(table, row).encode(), str(row["seal"]).encode())

    def _member(self, seal: str) -> bytes:
        return hmac.digest(self._key, f"member {seal}".encode(), "sha256")

    def _mask(self, nonce: str) -> bytes:
        return hmac.digest(self._key, f"mask {nonce}".encode(), "sha256")

    def _described(self, table: sa.Table, row: Mapping[str, Any]) -> str:
        keys = ", ".join(str(row[column.name]) for column in table.primary_key)
        is_numbered = table is self._format.numbered
        return f"row {keys} of its {self._format.numbered_as}" if is_numbered else f"the {table.name} {keys}"

    def _tampered(self, how: str) -> FleetError:
        return self._format.error(f"{self._format.what} {self._name} was tampered with{how}")


def _xor(one: bytes, other: bytes) -> bytes:
    return bytes(left ^ right for left, right in zip(one, other, strict=True))
