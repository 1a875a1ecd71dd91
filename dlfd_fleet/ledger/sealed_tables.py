"""Read and change the ledger's tables, with seals on each row and on the set of all rows."""

from __future__ import annotations

import hmac
import json
import secrets
from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa

from dlfd_fleet.exceptions import LedgerError
from dlfd_fleet.ledger.states import DROPPED

VERSION = 8
UPGRADED = 7
"""An earlier format that is brought to this one when a ledger is opened."""
_SEAL_LABEL = b"\xffseal of the ledger"  # no UTF-8 text has this byte, so no person's keyed digest is the seals' key
_NO_ROWS = bytes(32)

TABLES = sa.MetaData()
HEAD = sa.Table(
    "ledger",
    TABLES,
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("epoch", sa.Integer, nullable=False),  # of the last release that the site was told of; it never falls
    sa.Column("last", sa.Integer, nullable=False),  # sequence of the newest row of the history
    sa.Column("rows", sa.Integer, nullable=False),  # of all other tables
    sa.Column("nonce", sa.String, nullable=False),
    sa.Column("members", sa.String, nullable=False),  # which rows these are: XOR of a keyed digest of each, masked
    sa.Column("seal", sa.String, nullable=False),
)
REQUEST = sa.Table(
    "request",
    TABLES,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("person_digest", sa.String, nullable=False),
    sa.Column("identity", sa.String),  # deleted once the person is purged
    sa.Column("state", sa.String, nullable=False),
    sa.Column("requested_at", sa.String, nullable=False),
    sa.Column("received", sa.String, nullable=False),
    sa.Column("deadline", sa.String, nullable=False),
    sa.Column("first_deadline", sa.String, nullable=False),
    sa.Column("verified_by", sa.String, nullable=False),  # this and the note: overwritten once the person is purged
    sa.Column("note", sa.String, nullable=False),
    sa.Column("job", sa.String),
    sa.Column("epoch", sa.Integer),
    sa.Column("seal", sa.String, nullable=False),
)
STANDING = sa.and_(*(REQUEST.c.state != state.value for state in DROPPED))
_ONE_REQUEST = sa.Index(  # who has withdrawn, was refused, or was unknown, may ask again
    "one_request_a_person",
    REQUEST.c.person_digest,
    unique=True,
    sqlite_where=STANDING,
    postgresql_where=STANDING,
)
sa.Index("request_by_state", REQUEST.c.state, REQUEST.c.person_digest)
HISTORY = sa.Table(
    "history",
    TABLES,
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("request", sa.String, sa.ForeignKey("request.id"), nullable=False, index=True),
    sa.Column("at", sa.String, nullable=False),
    sa.Column("action", sa.String, nullable=False),
    sa.Column("state", sa.String, nullable=False),
    sa.Column("reason", sa.String, nullable=False),
    sa.Column("done_by", sa.String, nullable=False),
    sa.Column("ground", sa.String),
    sa.Column("due", sa.String),
    sa.Column("noticed", sa.String),
    sa.Column("remark", sa.String, nullable=False),  # what people wrote: overwritten once the person is purged
    sa.Column("job", sa.String),
    sa.Column("epoch", sa.Integer),
    sa.Column("seal", sa.String, nullable=False),
)
TOMBSTONE = sa.Table(
    "tombstone",
    TABLES,
    sa.Column("content_digest", sa.String, primary_key=True),
    sa.Column("request", sa.String, sa.ForeignKey("request.id"), nullable=False, index=True),
    sa.Column("seal", sa.String, nullable=False),
)
LEFTOVER = sa.Table(
    "leftover",
    TABLES,
    sa.Column("request", sa.String, sa.ForeignKey("request.id"), primary_key=True),
    sa.Column("file", sa.String, primary_key=True),
    sa.Column("sha256", sa.String),
    sa.Column("listed", sa.Boolean, nullable=False),
    sa.Column("reason", sa.String, nullable=False),
    sa.Column("seal", sa.String, nullable=False),
)
TRAINED = sa.Table(  # nobody of them counts as unseen ever again
    "trained",
    TABLES,
    sa.Column("person_digest", sa.String, primary_key=True),
    sa.Column("seal", sa.String, nullable=False),
)
EXPORT = sa.Table(  # of whole periods, so no row of the history, which is of requests
    "export",
    TABLES,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at", sa.String, nullable=False),
    sa.Column("done_by", sa.String, nullable=False),
    sa.Column("first_day", sa.String, nullable=False),
    sa.Column("last_day", sa.String, nullable=False),
    sa.Column("destination", sa.String, nullable=False),
    sa.Column("with_names", sa.Boolean, nullable=False),
    sa.Column("seal", sa.String, nullable=False),
)
_SEALED = (REQUEST, HISTORY, TOMBSTONE, LEFTOVER, TRAINED, EXPORT)


class SealedTables:
    """The tables of a ledger in one transaction. Without the key nobody can change, add or remove a row unnoticed.

    Each row has a seal, an HMAC-SHA-256 of its columns. The head has a seal over the epoch and the set of all rows. The
    set is hashed by MSet-XOR-Hash (Clarke et al., Asiacrypt 2003), so the cost of a change depends only on the changed
    rows.

    Parameters
    ----------
    name
        Name of the ledger in errors.
    create
        Make the tables of a new ledger.

    Raises
    ------
    LedgerError
        If the head was changed without the key, or sealed with another key.
    """

    def __init__(self, connection: sa.Connection, key: bytes, name: str, *, create: bool = False) -> None:
        self._connection, self._name = connection, name
        self._key = hmac.digest(key, _SEAL_LABEL, "sha256")
        if create:
            TABLES.create_all(connection)
            self.epoch, self.last, self._rows, self._members = 0, 0, 0, _NO_ROWS
            connection.execute(sa.insert(HEAD).values(self._head()))
            return
        heads = [dict(row) for row in connection.execute(sa.select(HEAD)).mappings()]
        if len(heads) != 1 or not self._holds(HEAD, heads[0]):
            raise LedgerError(
                f"The ledger {name} was tampered with, or is not sealed with this site's key: restore the ledger and "
                "site.key together from one backup."
            )
        head = heads[0]
        self.epoch, self.last, self._rows = int(head["epoch"]), int(head["last"]), int(head["rows"])
        self._members = _xor(bytes.fromhex(head["members"]), self._mask(head["nonce"]))

    def read(
        self, table: sa.Table, condition: sa.ColumnElement[bool], *order: sa.ColumnElement[Any]
    ) -> list[dict[str, Any]]:
        """Return rows of a table; a :class:`LedgerError` names a row that was changed without the key."""
        found = self._connection.execute(sa.select(table).where(condition).order_by(*order)).mappings()
        rows = [dict(row) for row in found]
        for row in rows:
            if not self._holds(table, row):
                raise LedgerError(
                    f"The ledger {self._name} was tampered with: {_described(table, row)} is not as sealed."
                )
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

    def upgrade(self) -> None:
        """Bring a ledger of the format before to this one; of its rows only the head changes."""
        _ONE_REQUEST.drop(self._connection, checkfirst=True)  # it did not know the state NO_DATA
        _ONE_REQUEST.create(self._connection)
        EXPORT.create(self._connection, checkfirst=True)  # a process of the release before may have sealed it since
        self.seal_head()

    def seal_head(self) -> None:
        """Write the head at the end of a change."""
        self._connection.execute(sa.update(HEAD).values(self._head()))

    def verify(self) -> None:
        """Check the seal of every row, and that no row is missing or was restored."""
        rows, members, last = 0, _NO_ROWS, 0
        for table in _SEALED:
            for row in self.read(table, sa.true(), *table.primary_key):
                rows, members = rows + 1, _xor(members, self._member(row["seal"]))
                if table is HISTORY:
                    last += 1
                    if row["sequence"] != last:
                        raise LedgerError(
                            f"The ledger {self._name} was tampered with: row {last} of its history is missing."
                        )
        if (rows, members, last) != (self._rows, self._members, self.last):
            few = (
                f"{rows} rows, and its seal says {self._rows}"
                if rows != self._rows
                else "older rows than its seal says"
            )
            raise LedgerError(f"The ledger {self._name} was tampered with: it holds {few}.")

    def _head(self) -> dict[str, Any]:
        nonce = secrets.token_hex(16)  # masks the set: without it, two heads would tell which rows are between them
        head: dict[str, Any] = {
            "version": VERSION,
            "epoch": self.epoch,
            "last": self.last,
            "rows": self._rows,
            "nonce": nonce,
            "members": _xor(self._members, self._mask(nonce)).hex(),
        }
        return {**head, "seal": self._seal(HEAD, head)}

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


def _described(table: sa.Table, row: Mapping[str, Any]) -> str:
    keys = ", ".join(str(row[column.name]) for column in table.primary_key)
    return f"row {keys} of its history" if table is HISTORY else f"the {table.name} {keys}"


def _xor(one: bytes, other: bytes) -> bytes:
    return bytes(left ^ right for left, right in zip(one, other, strict=True))
