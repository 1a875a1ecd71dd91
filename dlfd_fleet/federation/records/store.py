"""What the coordinator keeps on disk: jobs, their finished steps, the models they made, and which is the champion.

Arrays are safetensors files in a job's folder, written beside their place and then renamed; everything else is in one
SQLite file, a transaction a change. Whenever a process dies, a step is finished or was never begun.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import filelock
import sqlalchemy as sa
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dlfd_fleet.database import sqlite_engine, transaction
from dlfd_fleet.exceptions import JobError
from dlfd_fleet.federation.records.job_record import (
    FINAL_STEPS,
    Champion,
    FinishedStep,
    JobKind,
    JobRecord,
    Promotion,
    SiteActivity,
)
from dlfd_fleet.federation.records.tables import CHAMPION, JOB, PROMOTION, SITE, STEP, STORE, TABLES
from dlfd_fleet.files import whole_file
from dlfd_fleet.names import plain_name
from dlfd_fleet.report.contents import Phase
from dlfd_fleet.settings import Settings

ONNX_FILE = "model.onnx"
"""In a job's model folder: the file that ships."""
LOCK_FILE = "coordinator.lock"
"""Locked while a coordinator works."""

_VERSION = 1
_IF_DAMAGED = "move the state folder away and start again"


def require_folder(state_folder: Path) -> None:
    """Refuse a state folder that is not there: a mistyped one is not an empty one.

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
    """Jobs and models under ``state_folder/coordinator``.

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
        # Two jobs that start at once would both make the tables, unless one waits for the other.
        making = sqlite_engine(self.file, immediate=True)
        with transaction(making, self.file, JobError, _IF_DAMAGED) as connection:
            known = sa.inspect(connection).get_table_names()
            if not known:
                TABLES.create_all(connection)
                connection.execute(sa.insert(STORE).values(version=_VERSION))
            version = connection.execute(sa.select(STORE.c.version)).scalar() if not known or "store" in known else 0
            if version == _VERSION and known and PROMOTION.name not in known:
                PROMOTION.create(connection)  # an earlier release made the file
        making.dispose()
        if version != _VERSION:
            raise JobError(
                f"{self.file} has the format {version}, and this release reads {_VERSION}; use the release that wrote "
                "it, or another state folder."
            )

    def close(self) -> None:
        """Let go of the file."""
        self._engine.dispose()

    @contextmanager
    def lock(self, patience: float = 3.0) -> Iterator[None]:
        """Be the one coordinator of this state folder; the lock goes with the process, however it ends.

        Parameters
        ----------
        patience
            Seconds to try: who looks whether there is a coordinator holds the lock for a moment.

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
        """Start a job under a readable, unique name; its settings stay what they are now, also when it is resumed."""
        with self._transaction() as connection:
            now = _after_all(connection)
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
            raise JobError(f"The settings of {job} in {self.file} are of another release; cancel the job.") from error

    def settings_as_written(self, job: str) -> dict[str, Any]:
        """Return the settings that a job was started with, whatever release wrote them."""
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

    def released_requests(self) -> dict[str, dict[str, int]]:
        """Return every request that a released model has forgotten, and that model's epoch, by site."""
        found: dict[str, dict[str, int]] = {}
        for record in self.jobs():
            served = frozenset(record.forgotten) if record.released else frozenset()
            for asked in record.proceedings.asked:
                if asked.request in served:
                    found.setdefault(asked.site, {})[asked.request] = record.epoch
        return found

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
        """Let a job that failed or was cancelled go on from its last finished step."""
        record = self.load(job).model_copy(update={"step": "started", "note": ""})
        with self._transaction() as connection:
            connection.execute(
                sa.update(JOB).where(JOB.c.job == job).values(record=record.model_dump_json(), cancelled_at=None)
            )
        return record

    # ------------------------------------------------------------------ steps

    def step(self, job: str, name: str) -> FinishedStep | None:
        """Return a finished step; None if it is still to be done."""
        condition = sa.and_(STEP.c.job == job, STEP.c.name == name)
        with self._transaction() as connection:
            row = connection.execute(sa.select(STEP).where(condition)).mappings().first()
        if row is None:
            return None
        arrays = self._read_arrays(self.job_folder(job) / row["arrays"]) if row["arrays"] else {}
        return FinishedStep(name, row["result"], arrays, row["seconds"], row["sent_bytes"])

    def steps(self, job: str) -> list[str]:
        """Return the names of a job's finished steps, in order."""
        query = sa.select(STEP.c.name).where(STEP.c.job == job).order_by(STEP.c.number)
        with self._transaction() as connection:
            return list(connection.execute(query).scalars())

    def phases(self, job: str) -> dict[str, Phase]:
        """Return what a job's steps took, those of one kind together: names are a kind and, for rounds, a number."""
        query = sa.select(STEP.c.name, STEP.c.seconds, STEP.c.sent_bytes).where(STEP.c.job == job)
        phases: dict[str, Phase] = {}
        with self._transaction() as connection:
            for name, seconds, sent in connection.execute(query.order_by(STEP.c.number)).all():
                kind = re.sub(r"-\d+$", "", name)
                so_far = phases.get(kind, Phase(steps=0, seconds=0.0, sent_bytes=0))
                phases[kind] = Phase(
                    steps=so_far.steps + 1, seconds=so_far.seconds + seconds, sent_bytes=so_far.sent_bytes + sent
                )
        return phases

    def finish_step(self, job: str, step: FinishedStep) -> None:
        """Keep a step's result; the arrays first, so that a row never names a file that is not whole."""
        file = f"steps/{step.name}.safetensors" if step.arrays else None
        if file:
            self._write_arrays(self.job_folder(job) / file, step.arrays)
        row: dict[str, Any] = {
            "job": job,
            "name": step.name,
            "result": step.result,
            "arrays": file,
            "seconds": step.seconds,
            "sent_bytes": step.sent_bytes,
            "finished_at": datetime.now(UTC).isoformat(),
        }
        with self._transaction() as connection:
            connection.execute(sa.insert(STEP).values(row))

    def forget_steps(self, job: str) -> None:
        """Delete a job's steps, once it is settled and needs them no more."""
        with self._transaction() as connection:
            connection.execute(sa.delete(STEP).where(STEP.c.job == job))
        shutil.rmtree(self.job_folder(job) / "steps", ignore_errors=True)

    # ------------------------------------------------------------------ sites

    def note_activity(self, job: str, activities: Mapping[str, str]) -> None:
        """Keep what sites do now."""
        if not activities:
            return
        now = datetime.now(UTC).isoformat()
        rows = [{"job": job, "site": site, "doing": doing, "since": now} for site, doing in activities.items()]
        with self._transaction() as connection:
            connection.execute(sa.insert(SITE).prefix_with("OR REPLACE"), rows)

    def forget_activities(self, job: str) -> None:
        """Delete what sites did when the job's last process died."""
        with self._transaction() as connection:
            connection.execute(sa.delete(SITE).where(SITE.c.job == job))

    def activities(self, job: str) -> list[SiteActivity]:
        """Return what each site of a job does, by site."""
        query = sa.select(SITE).where(SITE.c.job == job).order_by(SITE.c.site)
        with self._transaction() as connection:
            rows = connection.execute(query).mappings().all()
        return [SiteActivity(row["site"], row["doing"], datetime.fromisoformat(row["since"])) for row in rows]

    # ------------------------------------------------------------------ models

    def job_folder(self, job: str) -> Path:
        """Return a job's folder, made if need be."""
        folder = self._folder_of(job)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise JobError(f"Cannot make {folder}: {error.strerror}; check space and rights.") from error
        return folder

    def model_folder(self, job: str) -> Path:
        """Return where a job's model is, or will be."""
        return self._folder_of(job) / "model"

    def _folder_of(self, job: str) -> Path:
        try:
            return self.folder / "jobs" / plain_name(job)  # the name may come from a registry's tag
        except ValueError as error:
            raise JobError(f"The job {error}.") from error

    def champion(self) -> Champion | None:
        """Return the model that the fleet runs, if there is one."""
        with self._transaction() as connection:
            row = connection.execute(sa.select(CHAMPION)).mappings().first()
        return Champion(job=row["job"], epoch=row["epoch"]) if row else None

    def set_champion(self, champion: Champion, who: str = "", why: str = "") -> None:
        """Move the champion, and append that to the history of promotions; the epoch never falls.

        Parameters
        ----------
        who, why
            A person, or the job whose verdict it was, and the reason.
        """
        current = self.champion()
        if current is not None and champion.epoch < current.epoch:
            raise JobError(
                f"Job {champion.job} has the epoch {champion.epoch}, under the fleet's {current.epoch}: it may "
                "remember forgotten people and cannot become the champion."
            )
        row = {"who": who or champion.job, "why": why, **champion.model_dump()}
        with self._transaction() as connection:
            row["at"] = _after_all(connection).isoformat()
            connection.execute(sa.delete(CHAMPION))
            connection.execute(sa.insert(CHAMPION).values(champion.model_dump()))
            if current != champion:  # a job that goes over its steps again promotes nothing
                connection.execute(sa.insert(PROMOTION).values(row))

    def promotions(self) -> list[Promotion]:
        """Return every move of the champion, oldest first; nothing can be changed or taken out of it."""
        with self._transaction() as connection:
            rows = connection.execute(sa.select(PROMOTION).order_by(PROMOTION.c.number)).mappings().all()
        return [
            Promotion(datetime.fromisoformat(row["at"]), row["job"], row["epoch"], row["who"], row["why"])
            for row in rows
        ]

    def purge_remembering(self) -> list[str]:
        """Delete the arrays of ended jobs that may remember whom the champion has forgotten; return those jobs.

        These are all jobs, but the one that first had the champion's erasure epoch, that began before it was promoted.
        Records, scores and figures stay. While a job is unfinished, nothing is deleted.

        Raises
        ------
        JobError
            If something cannot be deleted.
        """
        champion = self.champion()
        if champion is None or not champion.epoch or self.unfinished():
            return []  # a job that goes on may need the model that it began with
        first = next((move for move in self.promotions() if move.epoch == champion.epoch), None)
        since = first.at if first else self.load(champion.job).started_at  # an earlier release kept no history
        kept, purged = {champion.job, first.job if first else champion.job}, []
        for record in self.jobs():
            if record.job not in kept and record.started_at < since and self.delete_model(record.job):
                purged.append(record.job)
        return purged

    def delete_model(self, job: str) -> bool:
        """Delete every array of a job, its model's files and those of its steps; tell whether there were any.

        Raises
        ------
        JobError
            If they cannot be deleted.
        """
        folders = [self.model_folder(job), self._folder_of(job) / "steps"]
        there = [folder for folder in folders if folder.exists()]
        for folder in there:
            try:
                shutil.rmtree(folder)
            except OSError as error:
                raise JobError(f"Cannot delete {folder}: {error.strerror}; the next job tries again.") from error
        self.forget_steps(job)
        return bool(there)

    # ------------------------------------------------------------------ the files

    def _write_arrays(self, file: Path, arrays: Mapping[str, Tensor]) -> None:
        with whole_file(file, JobError) as new:
            file.parent.mkdir(exist_ok=True)
            save_file({name: array.contiguous() for name, array in arrays.items()}, new)

    @staticmethod
    def _read_arrays(file: Path) -> dict[str, Tensor]:
        try:
            return load_file(file)
        except (OSError, SafetensorError) as error:
            raise JobError(f"Cannot read {file}: {error}; cancel the job and start another one.") from error

    def _record(self, text: str) -> JobRecord:
        try:
            return JobRecord.model_validate_json(text)
        except ValidationError as error:
            raise JobError(f"{self.file} is damaged; move the state folder away and start again.") from error

    def _transaction(self) -> AbstractContextManager[sa.Connection]:
        return transaction(self._engine, self.file, JobError, _IF_DAMAGED)


def _after_all(connection: sa.Connection) -> datetime:
    """Return the time now, but always after every job and promotion there is.

    A clock that was wrong and is set right must not make a later job the earlier one: which models remember somebody,
    and which job may go on, hang on that order.
    """
    written = (sa.select(sa.func.max(column)) for column in (JOB.c.started_at, PROMOTION.c.at))
    times = [datetime.fromisoformat(time) for time in map(connection.scalar, written) if time is not None]
    return max([datetime.now(UTC), *(time + timedelta(microseconds=1) for time in times)])
