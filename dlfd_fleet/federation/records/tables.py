"""The tables of :mod:`~dlfd_fleet.federation.records.store`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import sqlalchemy as sa

Transaction = Callable[[], AbstractContextManager[sa.Connection]]
"""Begins a transaction, whose errors are sentences."""

TABLES = sa.MetaData()
STORE = sa.Table("store", TABLES, sa.Column("version", sa.Integer, primary_key=True))
JOB = sa.Table(
    "job",
    TABLES,
    sa.Column("job", sa.String, primary_key=True),
    sa.Column("started_at", sa.String, nullable=False),
    sa.Column("record", sa.String, nullable=False),
    sa.Column("settings", sa.String, nullable=False),
    sa.Column("cancelled_at", sa.String),  # when somebody asked for it to be cancelled
)
STEP = sa.Table(
    "step",
    TABLES,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("job", sa.String, sa.ForeignKey("job.job"), nullable=False),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("result", sa.String, nullable=False),
    sa.Column("arrays", sa.String),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("sent_bytes", sa.Integer, nullable=False),
    sa.Column("finished_at", sa.String, nullable=False),
    sa.UniqueConstraint("job", "name"),
)
COST = sa.Table(  # beside its step, for files of before it was counted have no such table
    "cost",
    TABLES,
    sa.Column("job", sa.String, primary_key=True),
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("coordinator_seconds", sa.Float, nullable=False),
    sa.Column("sites", sa.String, nullable=False),
)
CHAMPION = sa.Table(
    "champion",
    TABLES,
    sa.Column("job", sa.String, primary_key=True),
    sa.Column("epoch", sa.Integer, nullable=False),
)
PROMOTION = sa.Table(  # MLflow's registry keeps no history of an alias
    "promotion",
    TABLES,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("at", sa.String, nullable=False),
    sa.Column("job", sa.String, nullable=False),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("who", sa.String, nullable=False),
    sa.Column("why", sa.String, nullable=False),
)
DECISION = sa.Table(  # beside the promotions: files of before there was a desk have no such table
    "decision",
    TABLES,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("at", sa.String, nullable=False),
    sa.Column("act", sa.String, nullable=False),
    sa.Column("about", sa.String, nullable=False),
    sa.Column("who", sa.String, nullable=False),
    sa.Column("why", sa.String, nullable=False),
)
for _table, _what in ((PROMOTION, "promotions"), (DECISION, "decisions")):
    for _change in ("UPDATE", "DELETE"):
        sa.event.listen(
            _table,
            "after_create",
            sa.DDL(  # type: ignore[no-untyped-call]
                f"CREATE TRIGGER {_table.name}_no_{_change.lower()} BEFORE {_change} ON {_table.name} "
                f"BEGIN SELECT RAISE(ABORT, 'the history of {_what} is append-only'); END"
            ),
        )
SITE = sa.Table(
    "site",
    TABLES,
    sa.Column("job", sa.String, sa.ForeignKey("job.job"), primary_key=True),
    sa.Column("site", sa.String, primary_key=True),
    sa.Column("doing", sa.String, nullable=False),
    sa.Column("since", sa.String, nullable=False),
)
