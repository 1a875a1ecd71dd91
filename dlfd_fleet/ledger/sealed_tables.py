"""The tables of a ledger, and how they are sealed."""

from __future__ import annotations

import sqlalchemy as sa

from dlfd_fleet.exceptions import LedgerError
from dlfd_fleet.ledger.sealed_rows import SealedFormat, SealedRows, head_table
from dlfd_fleet.ledger.states import DROPPED

VERSION = 8
UPGRADED = 7
"""An earlier format that is brought to this one when a ledger is opened."""

TABLES = sa.MetaData()
HEAD = head_table("ledger", TABLES)
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
_FORMAT = SealedFormat(
    what="The ledger",
    if_not_ours="is not sealed with this site's key: restore the ledger and site.key together from one backup",
    version=VERSION,
    tables=TABLES,
    head=HEAD,
    sealed=(REQUEST, HISTORY, TOMBSTONE, LEFTOVER, TRAINED, EXPORT),
    numbered=HISTORY,
    numbered_as="history",
    error=LedgerError,
)


class SealedTables(SealedRows):
    """The tables of a ledger in one transaction, under the site's key."""

    def __init__(self, connection: sa.Connection, key: bytes, name: str, *, create: bool = False) -> None:
        super().__init__(connection, key, name, _FORMAT, create=create)

    def upgrade(self) -> None:
        """Bring a ledger of the format before to this one; of its rows only the head changes."""
        _ONE_REQUEST.drop(self._connection, checkfirst=True)  # it did not know the state NO_DATA
        _ONE_REQUEST.create(self._connection)
        EXPORT.create(self._connection, checkfirst=True)  # a process of the release before may have sealed it since
        self.seal_head()
