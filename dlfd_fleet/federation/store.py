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
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import filelock
import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from sqlalchemy.exc import DatabaseError, OperationalError
from torch import Tensor

from dlfd_fleet.audit import Verdict
from dlfd_fleet.exceptions import JobError
from dlfd_fleet.report.contents import ModelResult, Phase, Proceedings
from dlfd_fleet.settings import Format, Settings

JobKind = Literal["train", "erase"]
JobStep = Literal["started", "judged", "exported", "released", "settled", "failed", "cancelled"]
STEPS: tuple[JobStep, ...] = ("started", "judged", "exported", "released", "settled", "failed", "cancelled")
FINAL_STEPS: frozenset[JobStep] = frozenset({"settled", "failed", "cancelled"})
ONNX_FILE = "model.onnx"
"""In a job's model folder."""

ONNX_FILE = "model.onnx"
"""In a job's model folder: the file that ships."""

_VERSION = 1
_BUSY_SECONDS = 30

_tables = sa.MetaData()
_store = sa.Table("store", _tables, sa.Column("version", sa.Integer, primary_key=True))
_job = sa.Table(
    "job",
    _tables,
    sa.Column("job", sa.String, primary_key=True),
    sa.Column("started_at", sa.String, nullable=False),
    sa.Column("record", sa.String, nullable=False),
    sa.Column("settings", sa.String, nullable=False),
    sa.Column("cancelled_at", sa.String),  # when somebody asked for it to be cancelled
)
_step = sa.Table(
    "step",
    _tables,
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
_champion = sa.Table(
    "champion",
    _tables,
    sa.Column("job", sa.String, primary_key=True),
    sa.Column("epoch", sa.Integer, nullable=False),
)
_promotion = sa.Table(  # MLflow's registry keeps no history of an alias
    "promotion",
    _tables,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("at", sa.String, nullable=False),
    sa.Column("job", sa.String, nullable=False),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("who", sa.String, nullable=False),
    sa.Column("why", sa.String, nullable=False),
)
for _change in ("UPDATE", "DELETE"):
    sa.event.listen(
        _promotion,
        "after_create",
        sa.DDL(  # type: ignore[no-untyped-call]
            f"CREATE TRIGGER promotion_no_{_change.lower()} BEFORE {_change} ON promotion "
            "BEGIN SELECT RAISE(ABORT, 'the history of promotions is append-only'); END"
        ),
    )
_site = sa.Table(
    "site",
    _tables,
    sa.Column("job", sa.String, sa.ForeignKey("job.job"), primary_key=True),
    sa.Column("site", sa.String, primary_key=True),
    sa.Column("doing", sa.String, nullable=False),
    sa.Column("since", sa.String, nullable=False),
)


class JobRecord(BaseModel):
    """One job: how far it is, and what came out of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    job: str
    kind: JobKind
    step: JobStep
    started_at: datetime
    epoch: int = 0
    requests: int = 0
    models: dict[str, ModelResult] = {}
    """By column: original, unlearned, retrained."""
    verdict: Verdict | None = None
    formats: tuple[Format, ...] = ("fp32",)
    """Of the released model's files."""
    file_verdicts: dict[Format, Verdict] = {}
    """Of each exported file that was attacked, those included that were not released."""
    released: bool = False
    forgotten: tuple[str, ...] = ()
    """Requests that the released model has forgotten."""
    note: str = ""
    absent: dict[str, str] = {}
    acknowledged: dict[str, int] = {}
    """The epoch under which each site said that it had purged."""
    unsent: int = 0
    """Records that MLflow did not take in time; the next job sends them."""
    seconds: float = 0.0
    proceedings: Proceedings = Proceedings()
    """What the job's report shows beside this."""


class Champion(BaseModel):
    """Which job's model the fleet runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    job: str
    epoch: int


@dataclass(frozen=True)
class Promotion:
    """One move of the champion: which model, when, by whom and why."""

    at: datetime
    job: str
    epoch: int
    who: str
    why: str


@dataclass(frozen=True)
class FinishedStep:
    """One step of a job that need not be done again: its result, and what it took."""

    name: str
    result: str
    arrays: dict[str, Tensor]
    seconds: float
    sent_bytes: int


@dataclass(frozen=True)
class SiteActivity:
    """What a site does in a job, as the coordinator sees it."""

    site: str
    doing: str
    since: datetime


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
        self._engine = _sqlite(self.file)
        with self._transaction() as connection:
            known = sa.inspect(connection).get_table_names()
            if not known:
                _tables.create_all(connection)
                connection.execute(sa.insert(_store).values(version=_VERSION))
            version = connection.execute(sa.select(_store.c.version)).scalar() if not known or "store" in known else 0
            if version == _VERSION and known and _promotion.name not in known:
                _promotion.create(connection)  # an earlier release made the file
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
        lock = filelock.FileLock(self.folder / "coordinator.lock", timeout=patience)
        try:
            with lock:
                yield
        except filelock.Timeout as error:
            raise JobError(
                f"Another coordinator works on {self.folder.parent}; wait for its job, or name another state folder."
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
        now = datetime.now(UTC)
        name = f"{kind}-{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        record = JobRecord(job=name, kind=kind, step="started", started_at=now)
        row = {
            "job": name,
            "started_at": now.isoformat(),
            "record": record.model_dump_json(),
            "settings": settings.model_dump_json(),
        }
        with self._transaction() as connection:
            connection.execute(sa.insert(_job).values(row))
        return record

    def save(self, record: JobRecord) -> None:
        """Write a job's record."""
        with self._transaction() as connection:
            connection.execute(sa.update(_job).where(_job.c.job == record.job).values(record=record.model_dump_json()))

    def load(self, job: str) -> JobRecord:
        """Read a job's record; a :class:`JobError` if there is none or it is damaged."""
        with self._transaction() as connection:
            text = connection.execute(sa.select(_job.c.record).where(_job.c.job == job)).scalar()
        if text is None:
            raise JobError(f"There is no job '{job}' in {self.folder.parent}; `dlfd-fleet job list` shows them.")
        return self._record(text)

    def settings_of(self, job: str) -> Settings:
        """Return the settings that a job was started with."""
        with self._transaction() as connection:
            text = connection.execute(sa.select(_job.c.settings).where(_job.c.job == job)).scalar_one()
        try:
            return Settings.model_validate_json(text)
        except ValidationError as error:
            raise JobError(f"The settings of {job} in {self.file} are of another release; cancel the job.") from error

    def settings_as_written(self, job: str) -> dict[str, Any]:
        """Return the settings that a job was started with, whatever release wrote them."""
        with self._transaction() as connection:
            text = connection.execute(sa.select(_job.c.settings).where(_job.c.job == job)).scalar_one()
        tree: dict[str, Any] = json.loads(text)
        return tree

    def jobs(self) -> list[JobRecord]:
        """Return all jobs, oldest first."""
        with self._transaction() as connection:
            texts = connection.execute(sa.select(_job.c.record).order_by(_job.c.started_at)).scalars().all()
        return [self._record(text) for text in texts]

    def unfinished(self) -> list[JobRecord]:
        """Return jobs that have not come to their last step."""
        return [record for record in self.jobs() if record.step not in FINAL_STEPS]

    def released_requests(self) -> dict[str, int]:
        """Return every request that a released model has forgotten, and that model's epoch."""
        return {request: record.epoch for record in self.jobs() if record.released for request in record.forgotten}

    def ask_to_cancel(self, job: str) -> None:
        """Note that a job is to stop before its next step."""
        with self._transaction() as connection:
            now = datetime.now(UTC).isoformat()
            connection.execute(sa.update(_job).where(_job.c.job == job).values(cancelled_at=now))

    def is_cancelled(self, job: str) -> bool:
        """Tell whether somebody asked for a job to be cancelled."""
        with self._transaction() as connection:
            return connection.execute(sa.select(_job.c.cancelled_at).where(_job.c.job == job)).scalar() is not None

    def reopen(self, job: str) -> JobRecord:
        """Let a job that failed or was cancelled go on from its last finished step."""
        record = self.load(job).model_copy(update={"step": "started", "note": ""})
        with self._transaction() as connection:
            connection.execute(
                sa.update(_job).where(_job.c.job == job).values(record=record.model_dump_json(), cancelled_at=None)
            )
        return record

    # ------------------------------------------------------------------ steps

    def step(self, job: str, name: str) -> FinishedStep | None:
        """Return a finished step; None if it is still to be done."""
        condition = sa.and_(_step.c.job == job, _step.c.name == name)
        with self._transaction() as connection:
            row = connection.execute(sa.select(_step).where(condition)).mappings().first()
        if row is None:
            return None
        arrays = self._read_arrays(self.job_folder(job) / row["arrays"]) if row["arrays"] else {}
        return FinishedStep(name, row["result"], arrays, row["seconds"], row["sent_bytes"])

    def steps(self, job: str) -> list[str]:
        """Return the names of a job's finished steps, in order."""
        query = sa.select(_step.c.name).where(_step.c.job == job).order_by(_step.c.number)
        with self._transaction() as connection:
            return list(connection.execute(query).scalars())

    def phases(self, job: str) -> dict[str, Phase]:
        """Return what a job's steps took, those of one kind together: names are a kind and, for rounds, a number."""
        query = sa.select(_step.c.name, _step.c.seconds, _step.c.sent_bytes).where(_step.c.job == job)
        phases: dict[str, Phase] = {}
        with self._transaction() as connection:
            for name, seconds, sent in connection.execute(query.order_by(_step.c.number)).all():
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
            connection.execute(sa.insert(_step).values(row))

    def forget_steps(self, job: str) -> None:
        """Delete a job's steps, once it is settled and needs them no more."""
        with self._transaction() as connection:
            connection.execute(sa.delete(_step).where(_step.c.job == job))
        shutil.rmtree(self.job_folder(job) / "steps", ignore_errors=True)

    # ------------------------------------------------------------------ sites

    def note_activity(self, job: str, activities: Mapping[str, str]) -> None:
        """Keep what sites do now."""
        if not activities:
            return
        now = datetime.now(UTC).isoformat()
        rows = [{"job": job, "site": site, "doing": doing, "since": now} for site, doing in activities.items()]
        with self._transaction() as connection:
            connection.execute(sa.insert(_site).prefix_with("OR REPLACE"), rows)

    def forget_activities(self, job: str) -> None:
        """Delete what sites did when the job's last process died."""
        with self._transaction() as connection:
            connection.execute(sa.delete(_site).where(_site.c.job == job))

    def activities(self, job: str) -> list[SiteActivity]:
        """Return what each site of a job does, by site."""
        query = sa.select(_site).where(_site.c.job == job).order_by(_site.c.site)
        with self._transaction() as connection:
            rows = connection.execute(query).mappings().all()
        return [SiteActivity(row["site"], row["doing"], datetime.fromisoformat(row["since"])) for row in rows]

    # ------------------------------------------------------------------ models

    def job_folder(self, job: str) -> Path:
        """Return a job's folder, made if need be."""
        folder = self.folder / "jobs" / job
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def model_folder(self, job: str) -> Path:
        """Return where a job's model is, or will be."""
        return self.folder / "jobs" / job / "model"

    def champion(self) -> Champion | None:
        """Return the model that the fleet runs, if there is one."""
        with self._transaction() as connection:
            row = connection.execute(sa.select(_champion)).mappings().first()
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
        row = {"at": datetime.now(UTC).isoformat(), "who": who or champion.job, "why": why, **champion.model_dump()}
        with self._transaction() as connection:
            connection.execute(sa.delete(_champion))
            connection.execute(sa.insert(_champion).values(champion.model_dump()))
            if current != champion:  # a job that goes over its steps again promotes nothing
                connection.execute(sa.insert(_promotion).values(row))

    def promotions(self) -> list[Promotion]:
        """Return every move of the champion, oldest first; nothing can be changed or taken out of it."""
        with self._transaction() as connection:
            rows = connection.execute(sa.select(_promotion).order_by(_promotion.c.number)).mappings().all()
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
        folders = [self.model_folder(job), self.folder / "jobs" / job / "steps"]
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
        new = file.with_name(f".{file.name}.new")
        try:
            file.parent.mkdir(exist_ok=True)
            save_file({name: array.contiguous() for name, array in arrays.items()}, new)
            new.replace(file)
        except (OSError, SafetensorError) as error:
            raise JobError(f"Cannot write {file}: {error}; check space and rights.") from error

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

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except OperationalError as error:
            raise JobError(f"Cannot write {self.file}: {error.orig}; check space and rights.") from error
        except DatabaseError as error:
            raise JobError(
                f"{self.file} is damaged ({error.orig}); move the state folder away and start again."
            ) from error


def _sqlite(file: Path) -> sa.Engine:
    engine = sa.create_engine(sa.URL.create("sqlite", database=str(file)), connect_args={"timeout": _BUSY_SECONDS})
    sa.event.listen(engine, "connect", _prepare)
    return engine


def _prepare(connection: Any, _record: object) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA foreign_keys=ON")
