"""Who logged in at a desk, and who tried: the newest of each, in a file of its own.

It is kept apart from the ledger: nobody who fails to log in is to write there. Tokens are never in it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy as sa

from dlfd_fleet.database import sqlite_engine, transaction
from dlfd_fleet.exceptions import ConfigurationError

LOGINS_FILE = "desk-logins.db"
"""In a site's folder, or the coordinator's."""
MOST_KEPT = 1000
"""Successes, and as many failures: whoever fails often drives no success out."""
_TABLES = sa.MetaData()
_LOGIN = sa.Table(
    "login",
    _TABLES,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("at", sa.String, nullable=False),
    sa.Column("who", sa.String, nullable=False),
    sa.Column("address", sa.String, nullable=False),
    sa.Column("succeeded", sa.Boolean, nullable=False, index=True),
)


@dataclass(frozen=True)
class Login:
    """One login, or an attempt at one.

    Attributes
    ----------
    who
        Whose token it was; empty if it was nobody's.
    address
        Where it came from.
    """

    at: datetime
    who: str
    address: str
    succeeded: bool


class LoginRecord:
    """The logins of one desk; several processes may write to it. The first one makes the file."""

    def __init__(self, file: Path) -> None:
        self._file, self._engine = file, sqlite_engine(file, immediate=True)

    def note(self, who: str, address: str) -> None:
        """Note that somebody logged in; with an empty name, that somebody failed to.

        Raises
        ------
        ConfigurationError
            If the file cannot be written or is damaged.
        """
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.touch(mode=0o600)  # it has names and addresses
        except OSError as error:
            raise ConfigurationError(f"Cannot write {self._file}: {error.strerror}; check its rights.") from error
        row = {"at": datetime.now(UTC).isoformat(), "who": who, "address": address, "succeeded": bool(who)}
        alike = _LOGIN.c.succeeded == bool(who)
        kept = sa.select(_LOGIN.c.number).where(alike).order_by(_LOGIN.c.number.desc()).limit(MOST_KEPT)
        with self._transaction() as connection:
            _TABLES.create_all(connection)
            connection.execute(sa.insert(_LOGIN).values(row))
            connection.execute(sa.delete(_LOGIN).where(alike, _LOGIN.c.number.not_in(kept)))

    def all(self) -> list[Login]:
        """Return what is kept, newest first.

        Raises
        ------
        ConfigurationError
            If the file cannot be read or is damaged.
        """
        if not self._file.exists():
            return []
        with self._transaction() as connection:
            rows = connection.execute(sa.select(_LOGIN).order_by(_LOGIN.c.number.desc())).mappings().all()
        return [Login(datetime.fromisoformat(row["at"]), row["who"], row["address"], row["succeeded"]) for row in rows]

    def _transaction(self) -> AbstractContextManager[sa.Connection]:
        return transaction(self._engine, self._file, ConfigurationError, "move it away")
