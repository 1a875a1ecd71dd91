"""Define the records of a job: its state, finished steps, sites' activities, and the champion."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypedDict, Unpack

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from dlfd_fleet.audit import Verdict
from dlfd_fleet.federation.records.costs import Cost
from dlfd_fleet.report.contents import (
    AskedRequest,
    AttemptMade,
    FileResult,
    GateReading,
    ModelResult,
    Phase,
    Proceedings,
    SiteShare,
)
from dlfd_fleet.settings import Format

JobKind = Literal["train", "erase", "references", "plan", "import"]
"""A plan changes nothing. An import makes an existing model the champion, without any site."""
JobStep = Literal["started", "judged", "exported", "released", "settled", "failed", "cancelled"]
STEPS: tuple[JobStep, ...] = ("started", "judged", "exported", "released", "settled", "failed", "cancelled")
FINAL_STEPS: frozenset[JobStep] = frozenset({"settled", "failed", "cancelled"})


class ReferencesMade(BaseModel):
    """The reference models that a job has made, and their cost."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: int
    """Number of reference models that the job makes."""
    made: int = 0
    rounds: int = 0
    seconds: float = 0.0
    bytes_sent: int = 0
    """In both directions."""
    sites: int = 0
    """Sites that have the answers of all that are made."""
    of_sites: int = 0
    aiming: int | None = None
    """Sites whose models, compared with the champion, are good enough to aim at; None before that."""
    too_poor: int = 0
    """Sites whose models are not."""

    def sentence(self) -> str:
        """Return a sentence: what was made, and its cost."""
        many = str(self.made) if self.made == self.models else f"{self.made} of {self.models}"
        took = f"{self.rounds} rounds, {self.seconds:.1f} s, {self.bytes_sent / 1e6:.1f} MB"
        kept = f"{self.sites} of {self.of_sites} sites keep their answers"
        if self.aiming is not None:
            kept += f", and {self.aiming} can aim at them"
        if self.too_poor:
            kept += f"; at {self.too_poor} they are too poor to aim at"
        return f"{many} reference models made and deleted ({took}); {kept}"


class JobRecord(BaseModel):
    """The record of a job: its state and its results."""

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
    """Formats of the released model's files."""
    file_verdicts: dict[Format, Verdict] = {}
    """Verdict of each audited file, also of files that were not released."""
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
    references: ReferencesMade | None = None
    """Its reference models, of a job that makes any."""
    proceedings: Proceedings = Proceedings()
    """Further content of the job's report."""

    def changed(self, **changes: Unpack[RecordChanges]) -> JobRecord:
        """Return the record with these changes, checked as if it were read."""
        return JobRecord(**{**dict(self), **changes})

    def at(self, step: JobStep) -> JobRecord:
        """Return the record of a job that has come to a step; one that goes over its steps again does not fall back."""
        return self.model_copy(update={"step": max(step, self.step, key=STEPS.index)})

    def noted(self, **notes: Unpack[Notes]) -> JobRecord:
        """Return the record with something noted for the job's report."""
        return self.model_copy(update={"proceedings": Proceedings(**{**dict(self.proceedings), **notes})})


class RecordChanges(TypedDict, total=False):
    """Fields of :class:`JobRecord` that change while a job goes on."""

    epoch: int
    requests: int
    models: dict[str, ModelResult]
    verdict: Verdict
    formats: tuple[Format, ...]
    file_verdicts: dict[Format, Verdict]
    released: bool
    forgotten: tuple[str, ...]
    note: str
    absent: dict[str, str]
    acknowledged: dict[str, int]
    unsent: int
    seconds: float
    references: ReferencesMade


class Notes(TypedDict, total=False):
    """Fields of :class:`~dlfd_fleet.report.contents.Proceedings`."""

    asked: tuple[AskedRequest, ...]
    sites: tuple[SiteShare, ...]
    parent: str
    began_with: str
    frozen_layers: dict[str, int]
    method: str
    way: Literal["unlearn", "retrain"]
    way_chosen: str
    anew_failed: str
    retrained: bool
    exact: bool
    exactness: str
    attempts: int
    attempts_made: tuple[AttemptMade, ...]
    readings: tuple[GateReading, ...]
    losses: dict[str, dict[str, tuple[int, ...]]]
    files: dict[Format, FileResult]
    refused_files: dict[Format, str]
    phases: dict[str, Phase]
    purged_images: int
    software: dict[str, str]
    settled_at: datetime


class Champion(BaseModel):
    """The job whose model is the champion."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    job: str
    epoch: int


@dataclass(frozen=True)
class Promotion:
    """One change of the champion: which model, when, by whom and why."""

    at: datetime
    job: str
    epoch: int
    who: str
    why: str


@dataclass(frozen=True)
class FinishedStep:
    """A finished step of a job: its result and its cost."""

    name: str
    result: str
    arrays: dict[str, Tensor]
    cost: Cost


@dataclass(frozen=True)
class SiteActivity:
    """The activity of a site in a job, as the coordinator sees it."""

    site: str
    doing: str
    since: datetime
