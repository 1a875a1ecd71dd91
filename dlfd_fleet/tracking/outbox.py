"""Keep a job's records for MLflow on disk (SQLite), in order, until the server has taken them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from dlfd_fleet.database import sqlite_engine, transaction
from dlfd_fleet.exceptions import OutboxError

_tables = sa.MetaData()
_entry = sa.Table(
    "entry",
    _tables,
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("job", sa.String, nullable=False),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("fields", sa.String, nullable=False),
    sa.Column("content", sa.LargeBinary),
    sa.Column("refused", sa.String),  # why the server did not take it; until it is tried again
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
_logged = sa.Table(  # what a job has logged, so that a job that goes over its steps again does not say it twice
    "told",
    _tables,
    sa.Column("job", sa.String, primary_key=True),
    sa.Column("digest", sa.String, primary_key=True),
)
METRICS, MODEL, REVOKE = "metrics", "model", "revoke"
REGISTRY_KINDS = (MODEL, REVOKE)
"""Kinds that the registry must get: each job tries them again, even after a refusal."""
_IF_DAMAGED = "delete it: MLflow never gets what waited in it, and nothing else is lost"
_MOST_METRICS = 1000  # that MLflow takes in one request


@dataclass(frozen=True)
class Entry:
    """One record."""

    sequence: int
    job: str
    kind: str
    fields: Mapping[str, Any]
    content: bytes | None
    refused: str | None = None
    """Why MLflow did not take it."""


class Outbox:
    """A queue that survives its process.

    Raises
    ------
    OutboxError
        In every method, if the file cannot be written or read. Its content stays.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutboxError(f"Cannot make {file.parent}: {error.strerror}; check space and rights.") from error
        self._engine = sqlite_engine(file)
        with self._transaction() as connection:
            _tables.create_all(connection)

    def put(self, job: str, kind: str, fields: Mapping[str, Any], content: bytes | None = None) -> None:
        """Append an entry."""
        row = {"job": job, "kind": kind, "fields": json.dumps(dict(fields)), "content": content}
        with self._transaction() as connection:
            connection.execute(sa.insert(_entry).values(row))

    def put_metrics(self, job: str, fields: Mapping[str, Any]) -> None:
        """Append metrics, unless the job has recorded them for the same step before."""
        said = {name: value for name, value in fields.items() if name != "at"}
        digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
        row = {"job": job, "kind": METRICS, "fields": json.dumps(dict(fields))}
        with self._transaction() as connection:
            new = connection.execute(sa.insert(_logged).prefix_with("OR IGNORE").values(job=job, digest=digest))
            if new.rowcount:
                connection.execute(sa.insert(_entry).values(row))

    def forget_logged(self, job: str) -> None:
        """Forget which metrics a job has recorded, because it has ended."""
        with self._transaction() as connection:
            connection.execute(sa.delete(_logged).where(_logged.c.job == job))

    def next(self) -> list[Entry]:
        """Return the oldest waiting entry; metrics together with those of the same job that follow directly."""
        waiting = sa.select(_entry).where(_entry.c.refused.is_(None)).order_by(_entry.c.sequence)
        with self._transaction() as connection:
            row = connection.execute(waiting.limit(1)).mappings().first()
            if row is None:
                return []
            if row["kind"] != METRICS:
                return [_entry_of(row)]
            other = sa.select(sa.func.min(_entry.c.sequence)).where(
                _entry.c.refused.is_(None), sa.or_(_entry.c.kind != METRICS, _entry.c.job != row["job"])
            )
            end = connection.execute(other).scalar()
            if end is not None:
                waiting = waiting.where(_entry.c.sequence < end)
            rows = connection.execute(waiting.limit(_MOST_METRICS)).mappings().all()
        entries, count = [_entry_of(rows[0])], len(json.loads(rows[0]["fields"])["metrics"])
        for row in rows[1:]:
            entry = _entry_of(row)
            count += len(entry.fields["metrics"])
            if count > _MOST_METRICS:
                break
            entries.append(entry)
        return entries

    def sent(self, sequences: Iterable[int]) -> None:
        """Delete entries that the server has taken."""
        with self._transaction() as connection:
            connection.execute(sa.delete(_entry).where(_entry.c.sequence.in_(list(sequences))))

    def refuse(self, sequence: int, reason: str) -> None:
        """Mark an entry as refused and keep it with the reason."""
        with self._transaction() as connection:
            connection.execute(sa.update(_entry).where(_entry.c.sequence == sequence).values(refused=reason))

    def try_again(self, champion: str | None, kinds: Iterable[str] | None = None) -> None:
        """Make refused entries wait again, in their order: of these kinds, or all.

        Parameters
        ----------
        champion
            The job of the current champion. A model of another job is registered, but gets no alias.
        """
        chosen: sa.ColumnElement[bool] = _entry.c.refused.is_not(None)
        if kinds is not None:
            chosen = sa.and_(chosen, _entry.c.kind.in_(list(kinds)))
        models = sa.select(_entry.c.sequence, _entry.c.fields).where(
            chosen, _entry.c.kind == MODEL, _entry.c.job != (champion or _entry.c.job)
        )
        with self._transaction() as connection:
            for sequence, fields in connection.execute(models).all():
                known = json.dumps(json.loads(fields) | {"alias": None})
                connection.execute(sa.update(_entry).where(_entry.c.sequence == sequence).values(fields=known))
            connection.execute(sa.update(_entry).where(chosen).values(refused=None))

    def drop(self, sequence: int) -> Entry | None:
        """Delete an entry and return it; None if there is no such entry."""
        found = next((entry for entry in self.entries() if entry.sequence == sequence), None)
        if found is not None:
            self.sent([sequence])
        return found

    def entries(self) -> list[Entry]:
        """Return all waiting and refused entries, oldest first, without content."""
        columns = [column for column in _entry.c if column.name != "content"]
        with self._transaction() as connection:
            rows = connection.execute(sa.select(*columns).order_by(_entry.c.sequence)).mappings().all()
        return [_entry_of({**row, "content": None}) for row in rows]

    def waiting(self) -> int:
        """Return how many entries wait."""
        return self._count(_entry.c.refused.is_(None))

    def refused(self) -> int:
        """Return how many entries were refused."""
        return self._count(_entry.c.refused.is_not(None))

    def refuses(self, job: str, kind: str) -> bool:
        """Tell whether an entry of this kind was refused."""
        return bool(self._count(sa.and_(_entry.c.job == job, _entry.c.kind == kind, _entry.c.refused.is_not(None))))

    def holds(self, job: str, kind: str) -> bool:
        """Tell whether an entry of this kind waits or was refused."""
        return bool(self._count(sa.and_(_entry.c.job == job, _entry.c.kind == kind)))

    def refusals(self, job: str) -> list[str]:
        """Return why entries of a job were refused."""
        query = sa.select(_entry.c.refused).where(_entry.c.job == job, _entry.c.refused.is_not(None))
        with self._transaction() as connection:
            return list(connection.execute(query.order_by(_entry.c.sequence)).scalars())

    def run_id(self, server: str, job: str, site: str) -> str | None:
        """Return the run of a job, or of one of its sites or attempts, on a server."""
        query = sa.select(_run.c.run_id).where(_run.c.server == server, _run.c.job == job, _run.c.site == site)
        with self._transaction() as connection:
            return connection.execute(query).scalar()

    def child_runs(self, server: str, job: str) -> list[str]:
        """Return the runs below a job's own on a server: of its sites and attempts."""
        query = sa.select(_run.c.run_id).where(_run.c.server == server, _run.c.job == job, _run.c.site != "")
        with self._transaction() as connection:
            return list(connection.execute(query).scalars())

    def runs(self, server: str, job: str) -> list[str]:
        """Return every run of a job on a server."""
        query = sa.select(_run.c.run_id).where(_run.c.server == server, _run.c.job == job)
        with self._transaction() as connection:
            return list(connection.execute(query).scalars())

    def forget_run(self, run_id: str) -> None:
        """Forget a run's id, because the run no longer exists."""
        with self._transaction() as connection:
            connection.execute(sa.delete(_run).where(_run.c.run_id == run_id))

    def note_run(self, server: str, job: str, site: str, run_id: str) -> None:
        """Keep a run's id."""
        with self._transaction() as connection:
            connection.execute(sa.insert(_run).values(server=server, job=job, site=site, run_id=run_id))

    def close(self) -> None:
        """Close the file."""
        self._engine.dispose()

    def _transaction(self) -> AbstractContextManager[sa.Connection]:
        return transaction(self._engine, self.file, OutboxError, _IF_DAMAGED)

    def _count(self, condition: sa.ColumnElement[bool]) -> int:
        with self._transaction() as connection:
            return int(connection.execute(sa.select(sa.func.count()).select_from(_entry).where(condition)).scalar_one())


def _entry_of(row: Mapping[Any, Any]) -> Entry:
    fields = json.loads(row["fields"])
    return Entry(row["sequence"], row["job"], row["kind"], fields, row["content"], row["refused"])
