"""The tables of :mod:`~dlfd_fleet.delivery.devices`."""

from __future__ import annotations

import sqlalchemy as sa

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
    sa.Column("last_nonce", sa.String),  # of the report that was taken last: the next one follows it
    sa.Column("floor", sa.Integer, nullable=False, server_default="0"),  # greatest that it has reported
)
PURGED = sa.Table(
    "purged",
    TABLES,
    sa.Column("device", sa.String, sa.ForeignKey("device.id"), primary_key=True),
    sa.Column("sha256", sa.String, primary_key=True),
)
ALARM = sa.Table(
    "alarm",
    TABLES,
    sa.Column("device", sa.String, sa.ForeignKey("device.id"), primary_key=True),
    sa.Column("kind", sa.String, primary_key=True),  # one of each kind: the first one counts
    sa.Column("at", sa.String, nullable=False),
    sa.Column("said", sa.String, nullable=False),
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
