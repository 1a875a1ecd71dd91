"""What a job has to tell MLflow, on disk and in order until the server has taken it (SQLite)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

_tables = sa.MetaData()
_entry = sa.Table(
    "entry",
    _tables,
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("job", sa.String, nullable=False),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("fields", sa.String, nullable=False),
    sa.Column("content", sa.LargeBinary),
    sa.Column("refused", sa.String),  # why the server will never take it
    sqlite_autoincrement=True,
)
_run = sa.Table(
    "run",
    _tables,
    sa.Column("server", sa.String, primary_key=True),
    sa.Column("job", sa.String, primary_key=True),
    sa.Column("site", sa.String, primary_key=True),
    sa.Column("run_id", sa.String, nullable=False),
)


@dataclass(frozen=True)
class Entry:
    """One thing to tell."""

    sequence: int
    job: str
    kind: str
    fields: Mapping[str, Any]
    content: bytes | None


class Outbox:
    """A queue that survives its process."""

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._engine = sa.create_engine(sa.URL.create("sqlite", database=str(file)), connect_args={"timeout": 30})
        _tables.create_all(self._engine)

    def put(self, job: str, kind: str, fields: Mapping[str, Any], content: bytes | None = None) -> None:
        """Append an entry."""
        row = {"job": job, "kind": kind, "fields": json.dumps(dict(fields)), "content": content}
        with self._engine.begin() as connection:
            connection.execute(sa.insert(_entry).values(row))

    def first(self) -> Entry | None:
        """Return the oldest entry that waits."""
        query = sa.select(_entry).where(_entry.c.refused.is_(None)).order_by(_entry.c.sequence).limit(1)
        with self._engine.begin() as connection:
            row = connection.execute(query).mappings().first()
        if row is None:
            return None
        return Entry(row["sequence"], row["job"], row["kind"], json.loads(row["fields"]), row["content"])

    def sent(self, sequence: int) -> None:
        """Drop an entry that the server has taken."""
        with self._engine.begin() as connection:
            connection.execute(sa.delete(_entry).where(_entry.c.sequence == sequence))

    def refuse(self, sequence: int, reason: str) -> None:
        """Set an entry aside that the server will never take; it is kept, with the reason."""
        with self._engine.begin() as connection:
            connection.execute(sa.update(_entry).where(_entry.c.sequence == sequence).values(refused=reason))

    def waiting(self) -> int:
        """Return how many entries wait."""
        return self._count(_entry.c.refused.is_(None))

    def refused(self) -> int:
        """Return how many entries were refused."""
        return self._count(_entry.c.refused.is_not(None))

    def run_id(self, server: str, job: str, site: str) -> str | None:
        """Return the run of a job, or of one of its sites, on a server."""
        query = sa.select(_run.c.run_id).where(_run.c.server == server, _run.c.job == job, _run.c.site == site)
        with self._engine.begin() as connection:
            return connection.execute(query).scalar()

    def site_runs(self, server: str, job: str) -> list[str]:
        """Return the runs of a job's sites on a server."""
        query = sa.select(_run.c.run_id).where(_run.c.server == server, _run.c.job == job, _run.c.site != "")
        with self._engine.begin() as connection:
            return list(connection.execute(query).scalars())

    def note_run(self, server: str, job: str, site: str, run_id: str) -> None:
        """Keep a run's id."""
        with self._engine.begin() as connection:
            connection.execute(sa.insert(_run).values(server=server, job=job, site=site, run_id=run_id))

    def close(self) -> None:
        """Let go of the file."""
        self._engine.dispose()

    def _count(self, condition: sa.ColumnElement[bool]) -> int:
        with self._engine.begin() as connection:
            return int(connection.execute(sa.select(sa.func.count()).select_from(_entry).where(condition)).scalar_one())
