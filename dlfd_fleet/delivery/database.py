"""The tables of :mod:`~dlfd_fleet.delivery.devices`, in SQLite or PostgreSQL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from dlfd_fleet.exceptions import DeliveryError

_BUSY_SECONDS = 30

TABLES = sa.MetaData()
DELIVERY = sa.Table(
    "delivery",
    TABLES,
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("floor", sa.Integer, nullable=False),  # least epoch that devices may run; it never falls
)
DEVICE = sa.Table(
    "device",
    TABLES,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("public_key", sa.String, nullable=False),
    sa.Column("canary", sa.Boolean, nullable=False),
    sa.Column("enrolled_at", sa.String, nullable=False),
    sa.Column("retirement", sa.String),  # DSSE envelope that says why
    sa.Column("report", sa.String),  # the last one
    sa.Column("received_at", sa.String),
)
NONCE = sa.Table(
    "nonce",
    TABLES,
    sa.Column("device", sa.String, sa.ForeignKey("device.id"), primary_key=True),
    sa.Column("nonce", sa.String, primary_key=True),
    sa.Column("received_at", sa.String, nullable=False, index=True),
)
ATTACK = sa.Table(
    "attack",
    TABLES,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("device", sa.String, sa.ForeignKey("device.id"), nullable=False),
    sa.Column("at", sa.String, nullable=False),
    sa.Column("said", sa.String, nullable=False),
)
FILE = sa.Table(
    "file",
    TABLES,
    sa.Column("sha256", sa.String, primary_key=True),
    sa.Column("sequence", sa.Integer, primary_key=True),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("version", sa.String, nullable=False),
    sa.Column("format", sa.String, nullable=False),
    sa.Column("published_at", sa.String, nullable=False),
)


def engine_of(location: Path | str) -> sa.Engine:
    """Return an engine for a SQLite file, or for the URL of a PostgreSQL database.

    Raises
    ------
    DeliveryError
        If the file's folder cannot be made, or the URL is none of PostgreSQL.
    """
    return _sqlite(location) if isinstance(location, Path) else _postgresql(location)


def _sqlite(file: Path) -> sa.Engine:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DeliveryError(f"The folder {file.parent} cannot be made: {error.strerror}.") from error
    engine = sa.create_engine(sa.URL.create("sqlite", database=str(file)), connect_args={"timeout": _BUSY_SECONDS})
    sa.event.listen(engine, "connect", _prepare)
    sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine


def _prepare(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # transactions are begun above, so that writers wait instead of failing
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA foreign_keys=ON")


def _postgresql(location: str) -> sa.Engine:
    try:
        engine = sa.create_engine(location)
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
        raise DeliveryError(
            f"delivery.database '{location}' cannot be used ({error}); write postgresql+psycopg://host/database, and "
            "install dlfd-fleet[postgresql]."
        ) from error
    if engine.dialect.name != "postgresql":
        raise DeliveryError(f"delivery.database '{location}' is not of PostgreSQL; leave it unset for SQLite.")
    return engine
