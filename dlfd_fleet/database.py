"""SQL databases: a SQLite file that several processes use at once, or PostgreSQL by its URL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError, OperationalError

from dlfd_fleet.exceptions import FleetError
from dlfd_fleet.passwords import WHY_REFUSED, holds_password

BUSY_SECONDS = 30
_CONNECT_SECONDS = 10
_LOCK_NOT_AVAILABLE = "55P03"  # PostgreSQL's code


def sqlite_engine(file: Path, *, immediate: bool = False) -> sa.Engine:
    """Return an engine for a SQLite file, with a write-ahead log and foreign keys; its folder must be there.

    Parameters
    ----------
    immediate
        Let one writer in at a time, from the beginning of each transaction: one that reads and then writes finds
        nothing changed in between, and the next one waits instead of failing, up to 30 seconds.
    """
    engine = sa.create_engine(sa.URL.create("sqlite", database=str(file)), connect_args={"timeout": BUSY_SECONDS})
    sa.event.listen(engine, "connect", _prepare)
    if immediate:
        sa.event.listen(engine, "connect", _leave_transactions_to_us)
        sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine


@contextmanager
def transaction(
    engine: sa.Engine, file: Path, error_type: type[FleetError], if_damaged: str
) -> Iterator[sa.Connection]:
    """Make one change to a SQLite file, wholly or not at all; what the database raises becomes one sentence.

    Parameters
    ----------
    file
        What the engine is of.
    error_type
        Of the errors raised.
    if_damaged
        What to do then, in words.

    Raises
    ------
    FleetError
        If the file cannot be written, because the disk is full for example, or is damaged.
    """
    try:
        with engine.begin() as connection:
            yield connection
    except OperationalError as error:
        raise error_type(f"Cannot write {file}: {error.orig}; check space and rights.") from error
    except DatabaseError as error:
        raise error_type(f"{file} is damaged ({error.orig}); {if_damaged}.") from error


def shared_engine(location: Path | str, name: str, error_type: type[FleetError]) -> sa.Engine:
    """Return an engine for an immediate SQLite file, or for the URL of a PostgreSQL database.

    Parameters
    ----------
    name
        What the URL is called where its user wrote it, for errors.
    error_type
        Of the errors raised.

    Raises
    ------
    FleetError
        If the URL is none of PostgreSQL, holds a password, or its driver is not installed.
    """
    if isinstance(location, Path):
        return sqlite_engine(location, immediate=True)
    if holds_password(location):
        raise error_type(f"{name} is refused: {WHY_REFUSED}.")
    try:
        url = sa.make_url(location)
        waits = "connect_timeout" in url.query or not url.drivername.startswith("postgresql+psycopg")
        engine = sa.create_engine(
            url,
            pool_pre_ping=True,  # the server may have been started again
            connect_args={} if waits else {"connect_timeout": _CONNECT_SECONDS},
        )
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
        raise error_type(
            f"{name} '{location}' cannot be used ({error}); write postgresql+psycopg://host/database, and install "
            "dlfd-fleet[postgresql]."
        ) from error
    if engine.dialect.name != "postgresql":
        raise error_type(f"{name} '{location}' is not of PostgreSQL; without a URL a SQLite file is used.")
    return engine


def limit_waits(connection: sa.Connection) -> None:
    """Limit how long a PostgreSQL transaction waits for a lock, as in SQLite."""
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{BUSY_SECONDS * 1000:.0f}ms'")


def refusal(error: DatabaseError) -> str:
    """Return in words why a database did not do what it was asked."""
    reason = " ".join(str(error.orig).split())
    if "database is locked" in reason or getattr(error.orig, "sqlstate", None) == _LOCK_NOT_AVAILABLE:
        return f"another process has kept it locked for {BUSY_SECONDS} seconds; wait until it ends, or end it"
    return reason


def _prepare(connection: Any, _record: object) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("PRAGMA secure_delete=ON")  # else, by SQLite's build, a deleted name may stay in the file


def _leave_transactions_to_us(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver's own begin would not lock out other writers
