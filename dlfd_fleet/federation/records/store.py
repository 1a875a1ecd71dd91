"""Store records of jobs, and the settings with which each was started, in SQLite.

It is one SQLite file, with one transaction for each change.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import filelock
import sqlalchemy as sa
from pydantic import ValidationError

from dlfd_fleet.database import sqlite_engine, transaction
from dlfd_fleet.exceptions import JobError
from dlfd_fleet.federation.records.activities import Activities
from dlfd_fleet.federation.records.champions import Champions
from dlfd_fleet.federation.records.decisions import Decisions
from dlfd_fleet.federation.records.job_folders import JobFolders
from dlfd_fleet.federation.records.job_record import (
    FINAL_STEPS,
    JobKind,
    JobRecord,
)
from dlfd_fleet.federation.records.order import time_after_all
from dlfd_fleet.federation.records.steps import Steps
from dlfd_fleet.federation.records.tables import COST, DECISION, JOB, STORE, TABLES
from dlfd_fleet.settings import Settings

LOCK_FILE = "coordinator.lock"
"""Locked while a coordinator works."""

_VERSION = 1
_IF_DAMAGED = "move the state folder away and start again"


def require_folder(state_folder: Path) -> None:
    """Refuse a state folder that does not exist, because it may be mistyped.

    Raises
    ------
    JobError
        If there is no such folder.
    """
    try:
        if state_folder.is_dir():
            return
    except OSError as error:
        raise JobError(f"Cannot read {state_folder}: {error.strerror}; name another state folder.") from error
    raise JobError(f"There is no {state_folder}; name the coordinator's state folder: --set state_folder=FOLDER.")


class Store:
    """Jobs under ``state_folder/coordinator``: their records here, and the rest by what it is.

    Attributes
    ----------
    folders, steps, activities, champions, decisions
        Where a job's files are; its finished steps; what its sites do; which job's model the fleet runs; what people
        decided.

    Raises
    ------
    JobError
        If the folder cannot be made or read, or another release wrote it.
    """

    def __init__(self, state_folder: Path) -> None:
        self.folder = state_folder / "coordinator"
        self.file = self.folder / "jobs.db"
        try:
            (self.folder / "jobs").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise JobError(f"The state folder {state_folder} cannot be used: {error.strerror}.") from error
        self._engine = sqlite_engine(self.file)
        self.folders = JobFolders(self.folder / "jobs")
        self.steps = Steps(self._transaction, self.folders)
        self.activities = Activities(self._transaction)
        self.champions = Champions(self._transaction)
        self.decisions = Decisions(self._transaction)
        # Two jobs that start at once would both make the tables, unless one waits for the other.
        making = sqlite_engine(self.file, immediate=True)
        with transaction(making, self.file, JobError, _IF_DAMAGED) as connection:
            known = sa.inspect(connection).get_table_names()
            if not known:
                TABLES.create_all(connection)
                connection.execute(sa.insert(STORE).values(version=_VERSION))
            COST.create(connection, checkfirst=True)
            DECISION.create(connection, checkfirst=True)
            version = connection.execute(sa.select(STORE.c.version)).scalar() if not known or "store" in known else 0
        making.dispose()
        if version != _VERSION:
            raise JobError(
                f"{self.file} has the format {version}, and this release reads {_VERSION}; use the release that wrote "
                "it, or another state folder."
            )

    def close(self) -> None:
        """Close the file."""
        self._engine.dispose()

    @contextmanager
    def lock(self, patience: float = 3.0) -> Iterator[None]:
        """Lock the state folder for one coordinator; the lock ends with the process.

        Parameters
        ----------
        patience
            Seconds to try, because a check for a coordinator holds the lock briefly.

        Raises
        ------
        JobError
            If there is another one.
        """
        lock = filelock.FileLock(self.folder / LOCK_FILE, timeout=patience)
        try:
            with lock:
                yield
        except filelock.Timeout as error:
            unfinished = self.unfinished()
            job = f" (its job is {unfinished[-1].job})" if unfinished else ""
            raise JobError(
                f"Another coordinator works on {self.folder.parent}{job}; wait until it has ended, or name another "
                "state folder."
            ) from error

    def is_locked(self) -> bool:
        """Tell whether a coordinator works on this state folder now."""
        try:
            with self.lock(0.0):
                return False
        except JobError:
            return True

    # ------------------------------------------------------------------ jobs

    def new_job(self, kind: JobKind, settings: Settings) -> JobRecord:
        """Start a job under a readable, unique name, and store its settings for resuming."""
        with self._transaction() as connection:
            now = time_after_all(connection)
            name = f"{kind}-{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
            record = JobRecord(job=name, kind=kind, step="started", started_at=now)
            row = {
                "job": name,
                "started_at": now.isoformat(),
                "record": record.model_dump_json(),
                "settings": settings.model_dump_json(),
            }
            connection.execute(sa.insert(JOB).values(row))
        return record

    def save(self, record: JobRecord) -> None:
        """Write a job's record."""
        with self._transaction() as connection:
            connection.execute(sa.update(JOB).where(JOB.c.job == record.job).values(record=record.model_dump_json()))

    def load(self, job: str) -> JobRecord:
        """Read a job's record; a :class:`JobError` if there is none or it is damaged."""
        with self._transaction() as connection:
            text = connection.execute(sa.select(JOB.c.record).where(JOB.c.job == job)).scalar()
        if text is None:
            raise JobError(f"There is no job '{job}' in {self.folder.parent}; `dlfd-fleet job list` shows them.")
        return self._record(text)

    def settings_of(self, job: str) -> Settings:
        """Return the settings that a job was started with."""
        with self._transaction() as connection:
            text = connection.execute(sa.select(JOB.c.settings).where(JOB.c.job == job)).scalar_one()
        try:
            return Settings.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise JobError(
                f"The settings of {job} in {self.file} cannot be used: '{key}' is {first['input']!r}: {first['msg']}. "
                "Install what they name, or cancel the job."
            ) from error

    def settings_as_written(self, job: str) -> dict[str, Any]:
        """Return the settings that a job was started with, unchecked: what they name may not be installed any more."""
        with self._transaction() as connection:
            text = connection.execute(sa.select(JOB.c.settings).where(JOB.c.job == job)).scalar_one()
        tree: dict[str, Any] = json.loads(text)
        return tree

    def jobs(self) -> list[JobRecord]:
        """Return all jobs, oldest first."""
        with self._transaction() as connection:
            texts = connection.execute(sa.select(JOB.c.record).order_by(JOB.c.started_at)).scalars().all()
        return [self._record(text) for text in texts]

    def unfinished(self) -> list[JobRecord]:
        """Return jobs that have not come to their last step."""
        return [record for record in self.jobs() if record.step not in FINAL_STEPS]

    def interrupted(self) -> list[JobRecord]:
        """Return unfinished jobs that nobody has cancelled: the next job goes on with these, and ends the others."""
        return [record for record in self.unfinished() if not self.is_cancelled(record.job)]

    def ask_to_cancel(self, job: str) -> None:
        """Note that a job is to stop before its next step."""
        with self._transaction() as connection:
            now = datetime.now(UTC).isoformat()
            connection.execute(sa.update(JOB).where(JOB.c.job == job).values(cancelled_at=now))

    def is_cancelled(self, job: str) -> bool:
        """Tell whether somebody asked for a job to be cancelled."""
        with self._transaction() as connection:
            return connection.execute(sa.select(JOB.c.cancelled_at).where(JOB.c.job == job)).scalar() is not None

    def reopen(self, job: str) -> JobRecord:
        """Reopen a failed job, to continue after its last finished step."""
        record = self.load(job).model_copy(update={"step": "started", "note": ""})
        with self._transaction() as connection:
            connection.execute(
                sa.update(JOB).where(JOB.c.job == job).values(record=record.model_dump_json(), cancelled_at=None)
            )
        return record

    def _record(self, text: str) -> JobRecord:
        try:
            return JobRecord.model_validate_json(text)
        except ValidationError as error:
            raise JobError(f"{self.file} is damaged; move the state folder away and start again.") from error

    def _transaction(self) -> AbstractContextManager[sa.Connection]:
        return transaction(self._engine, self.file, JobError, _IF_DAMAGED)
