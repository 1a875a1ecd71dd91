"""What the coordinator keeps on disk: jobs, the models they made, and which of them is the champion.

Every file is written beside its place and then renamed, so that it is whole or absent whenever a process dies.
"""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from dlfd_fleet.audit import Scores, Verdict
from dlfd_fleet.exceptions import JobError

JobKind = Literal["train", "erase"]
JobStep = Literal["started", "judged", "exported", "released", "settled", "failed", "abandoned"]
_Record = TypeVar("_Record", bound=BaseModel)
FINAL_STEPS: frozenset[JobStep] = frozenset({"settled", "failed", "abandoned"})


class ModelResult(BaseModel):
    """What is known of one model of a job, for tables and reports."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scores: Scores
    seconds: float
    bytes_sent: int


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
    released: bool = False
    note: str = ""
    absent: dict[str, str] = {}
    unsent: int = 0
    """Records that MLflow did not take in time; the next job sends them."""
    seconds: float = 0.0


class Champion(BaseModel):
    """Which job's model the fleet runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    job: str
    epoch: int


class Store:
    """Jobs and models under ``state_folder/coordinator``.

    Raises
    ------
    JobError
        If the folder cannot be made or read.
    """

    def __init__(self, state_folder: Path) -> None:
        self.folder = state_folder / "coordinator"
        try:
            (self.folder / "jobs").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise JobError(f"The state folder {state_folder} cannot be used: {error.strerror}.") from error

    def new_job(self, kind: JobKind) -> JobRecord:
        """Start a job under a readable, unique name."""
        now = datetime.now(UTC)
        record = JobRecord(
            job=f"{kind}-{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}", kind=kind, step="started", started_at=now
        )
        self.save(record)
        return record

    def save(self, record: JobRecord) -> None:
        """Write a job's record."""
        self._write(self.job_folder(record.job) / "job.json", record)

    def load(self, job: str) -> JobRecord:
        """Read a job's record; a :class:`JobError` if there is none or it is damaged."""
        return self._read(self.folder / "jobs" / job / "job.json", JobRecord)

    def jobs(self) -> list[JobRecord]:
        """Return all jobs, oldest first."""
        files = sorted((self.folder / "jobs").glob("*/job.json"))
        return sorted((self._read(file, JobRecord) for file in files), key=lambda record: record.started_at)

    def unfinished(self) -> list[JobRecord]:
        """Return jobs whose process died before their last step."""
        return [record for record in self.jobs() if record.step not in FINAL_STEPS]

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
        file = self.folder / "champion.json"
        return self._read(file, Champion) if file.exists() else None

    def set_champion(self, champion: Champion) -> None:
        """Move the champion; the epoch never falls."""
        current = self.champion()
        if current is not None and champion.epoch < current.epoch:
            raise JobError(
                f"Job {champion.job} has the epoch {champion.epoch}, under the fleet's {current.epoch}: it may "
                "remember forgotten people and cannot become the champion."
            )
        self._write(self.folder / "champion.json", champion)

    def _write(self, file: Path, record: BaseModel) -> None:
        new = file.with_name(f".{file.name}.new")
        try:
            new.write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
            new.replace(file)
        except OSError as error:
            raise JobError(f"Cannot write {file}: {error.strerror}; check space and rights.") from error

    @staticmethod
    def _read(file: Path, model: type[_Record]) -> _Record:
        try:
            return model.model_validate_json(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise JobError(f"Cannot read {file}: {error}.") from error
        except ValidationError as error:
            raise JobError(f"{file} is damaged; move the state folder away and start again.") from error
