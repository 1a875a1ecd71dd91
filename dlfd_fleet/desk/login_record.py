"""Who logged in at a desk, and who tried: the newest of each, in a file of its own, sealed as a ledger is.

It is kept apart from the ledger: nobody who fails to log in is to write there, and a coordinator has none. Tokens are
never in it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy as sa

from dlfd_fleet.database import sqlite_engine, transaction
from dlfd_fleet.exceptions import ConfigurationError
from dlfd_fleet.ledger.sealed_rows import SealedFormat, SealedRows, head_table

LOGINS_FILE = "desk-logins.db"
"""In a site's folder, or the coordinator's; the key of its seals is beside it."""
MOST_KEPT = 1000
"""Successes, and as many failures: whoever fails often drives no success out."""
_TABLES = sa.MetaData()
_HEAD = head_table("logins", _TABLES)
_LOGIN = sa.Table(
    "login",
    _TABLES,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at", sa.String, nullable=False),
    sa.Column("who", sa.String, nullable=False),
    sa.Column("address", sa.String, nullable=False),
    sa.Column("succeeded", sa.Boolean, nullable=False, index=True),
    sa.Column("seal", sa.String, nullable=False),
)
_AFTERWARDS = "ask whoever may write there; to begin a new record, move both files away and keep them"
_FORMAT = SealedFormat(
    what="The record of logins",
    if_not_ours=f"is not sealed with the key beside it: {_AFTERWARDS}",
    version=1,
    tables=_TABLES,
    head=_HEAD,
    sealed=(_LOGIN,),
    numbered=_LOGIN,
    numbered_as="logins",
    error=ConfigurationError,
    has_gaps=True,  # the oldest ones are not kept
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
    """The logins of one desk; several processes may write to it. The first one makes the file and its key.

    Parameters
    ----------
    file
        The database; the key of its seals is beside it, with the ending ``.key``.
    """

    def __init__(self, file: Path) -> None:
        self._file, self._key_file = file, file.with_suffix(".key")
        self._engine = sqlite_engine(file, immediate=True)

    def note(self, who: str, address: str) -> None:
        """Note that somebody logged in; with an empty name, that somebody failed to.

        Raises
        ------
        ConfigurationError
            If the files cannot be written, are damaged or were tampered with.
        """
        alike = _LOGIN.c.succeeded == bool(who)
        kept = sa.select(_LOGIN.c.number).where(alike).order_by(_LOGIN.c.number.desc()).limit(MOST_KEPT)
        with self._rows() as rows:
            rows.last += 1
            at = datetime.now(UTC).isoformat()
            row = {"number": rows.last, "at": at, "who": who, "address": address, "succeeded": bool(who)}
            rows.insert(_LOGIN, [row])
            rows.delete(_LOGIN, sa.and_(alike, _LOGIN.c.number.not_in(kept)))
            rows.seal_head()

    def all(self) -> list[Login]:
        """Return what is kept, newest first, once its seals are checked.

        Raises
        ------
        ConfigurationError
            If the files cannot be read, are damaged or were tampered with.
        """
        if not self._file.exists() and not self._key_file.exists():
            return []
        with self._rows() as rows:
            rows.verify()
            found = rows.read(_LOGIN, sa.true(), _LOGIN.c.number.desc())
        return [Login(datetime.fromisoformat(row["at"]), row["who"], row["address"], row["succeeded"]) for row in found]

    @contextmanager
    def _rows(self) -> Iterator[SealedRows]:
        if not self._file.exists():
            self._make_file()
        with transaction(self._engine, self._file, ConfigurationError, "move it away") as connection:
            known = set(sa.inspect(connection).get_table_names())
            if "login" in known and "logins" not in known:
                raise ConfigurationError(
                    f"{self._file} is not sealed: an earlier release wrote it, or somebody has changed it; keep it "
                    f"elsewhere, and move {self._key_file.name} away with it, if there is one."
                )
            if known and not self._key_file.exists():
                raise ConfigurationError(f"{self._key_file}, which seals {self._file.name}, is gone: {_AFTERWARDS}.")
            if not known and self._key_file.exists():
                raise self._gone()
            key = self._key() if known else self._new_key()
            yield SealedRows(connection, key, str(self._file), _FORMAT, create=not known)

    def _make_file(self) -> None:
        if self._key_file.exists():
            raise self._gone()
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.touch(mode=0o600)  # it has names and addresses
        except OSError as error:
            raise ConfigurationError(f"Cannot write {self._file}: {error.strerror}; check its rights.") from error

    def _key(self) -> bytes:
        try:
            return bytes.fromhex(self._key_file.read_text(encoding="ascii"))
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"{self._key_file}, which seals {self._file.name}, cannot be read ({type(error).__name__}); check its "
                "rights, or restore it from a backup."
            ) from error

    def _new_key(self) -> bytes:
        key = secrets.token_bytes(32)
        try:
            self._key_file.touch(mode=0o600, exist_ok=False)
            self._key_file.write_text(key.hex(), encoding="ascii")
        except OSError as error:
            raise ConfigurationError(f"Cannot write {self._key_file}: {error.strerror}; check its rights.") from error
        return key

    def _gone(self) -> ConfigurationError:
        return ConfigurationError(
            f"The record of logins {self._file} is gone, and {self._key_file.name}, which sealed it, is still there: "
            f"{_AFTERWARDS}."
        )
