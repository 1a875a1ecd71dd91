"""Train many models of a split, unlearn from each original, and keep what all of them say: resumable, in parts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import as_completed
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from dlfd_fleet.audit import Role
from dlfd_fleet.audit.shift import confidence
from dlfd_fleet.bench.evidence import observe
from dlfd_fleet.bench.experiment import deal_experiment
from dlfd_fleet.bench.margins.divergence import klom, told_apart
from dlfd_fleet.bench.methods.comparison import WITH_REFERENCES, row_key, split_name
from dlfd_fleet.bench.models import ExperimentModels
from dlfd_fleet.bench.rows import ORIGINAL, RETRAINED
from dlfd_fleet.bench.workers import worker_processes
from dlfd_fleet.cores import usable_cores
from dlfd_fleet.data import open_source
from dlfd_fleet.exceptions import FleetError
from dlfd_fleet.models import FeatureClassifier
from dlfd_fleet.progress import ProgressDisplay
from dlfd_fleet.settings import Settings

AGAIN = "retrained again"
"""As many retrained models more, beside the first: what chance alone makes of a perfect method."""
_ROLES = (Role.FORGET, Role.RETAIN, Role.TEST)
_TAIL = 95.0


@dataclass(frozen=True)
class MarginsPlan:
    """What is to be compared.

    Attributes
    ----------
    models
        Models of each kind.
    seeds
        Number of splits, 0 and up.
    budget
        Seconds after which nothing new is begun.
    """

    settings: Settings
    methods: tuple[str, ...]
    models: int
    seeds: int
    budget: float
    folder: Path

    @property
    def rows(self) -> tuple[str, ...]:
        """What is compared with retrained models."""
        return (ORIGINAL, AGAIN, *self.methods)


class MarginsRow(BaseModel):
    """How far the models of a kind are from retrained ones on one split; divergences in nats."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    seed: int
    models: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class MarginsResults:
    """The rows that are there, how many models are missing for the others, and what failed."""

    rows: tuple[MarginsRow, ...]
    missing: int
    failures: tuple[str, ...]


def run_margins(plan: MarginsPlan, progress: ProgressDisplay) -> MarginsResults:
    """Make all that the budget allows, split by split, and return every row whose models are all there."""
    deadline, failures = time.monotonic() + plan.budget, list[str]()
    for name in plan.methods if plan.settings.data.multi_label else ():
        split_name(name)[0].refuse_labels()
    _models(plan.settings.model_dump_json(), plan.folder, 0)  # a bad manifest is refused before any work
    jobs = plan.settings.bench.jobs
    with worker_processes(jobs, max(1, usable_cores() // jobs)) as pool:
        for seed in range(plan.seeds):
            todo = [one for one in _answers(plan, seed) if not one.file().exists()]
            if not todo or time.monotonic() >= deadline:
                continue
            # What others begin with is made first: a method's models wait for no training of another process.
            for kinds in ((ORIGINAL,), (RETRAINED, AGAIN, *plan.methods)):
                mine = [one for one in todo if one.name in kinds]
                if not mine:
                    continue
                with progress.phase(f"Seed {seed}: {kinds[0]} models and more", len(mine)) as advance:
                    futures = {pool.submit(_make, one, deadline): one for one in mine}
                    for future in as_completed(futures):
                        advance()
                        if (error := future.exception()) is not None:
                            said = str(error) if isinstance(error, FleetError) else f"{type(error).__name__}: {error}"
                            failures.append(f"{futures[future].name} {futures[future].index}, seed {seed}: {said}")
    missing = sum(not one.file().exists() for seed in range(plan.seeds) for one in _answers(plan, seed))
    rows = tuple(row for seed in range(plan.seeds) for row in _rows(plan, seed))
    return MarginsResults(rows, missing, tuple(failures))


def _answers(plan: MarginsPlan, seed: int) -> Iterator[_Answers]:
    for name in (RETRAINED, *plan.rows):
        for index in range(plan.models):
            yield _Answers(plan, seed, name, index)


@dataclass(frozen=True)
class _Answers:
    """What one model says of every image of a split: its margins, by role, in a file."""

    plan: MarginsPlan
    seed: int
    name: str
    index: int

    def file(self) -> Path:
        settings = self.plan.settings
        key = row_key(settings, self.name, _images(settings.model_dump_json(), self.seed))
        return self.plan.folder / "answers" / f"{self.name.replace(' ', '-')}-seed-{self.seed}-{self.index}-{key}.npz"

    def model(self, models: ExperimentModels) -> FeatureClassifier:
        if self.name == ORIGINAL:
            return models.originals(self.index)
        if self.name in (RETRAINED, AGAIN):
            return models.retrained(self.index + (self.plan.models if self.name == AGAIN else 0))
        method, references = split_name(self.name)
        settings = method.default.settings(models.experiment.settings.unlearning)
        settings = settings.model_copy(update={"batch_size": models.experiment.settings.bench.batch_size})
        known = models.references if references else None
        seed = self.seed * 1000 + self.index
        problem = models.problem(models.originals(self.index), settings, seed, known)
        return method.default.unlearn(self.name.removesuffix(WITH_REFERENCES), problem).model

    def load(self) -> dict[Role, NDArray[np.float64]]:
        with np.load(self.file()) as kept:
            return {role: kept[role.value] for role in _ROLES}


def _make(answers: _Answers, deadline: float) -> None:
    if time.monotonic() >= deadline:
        return
    models = _models(answers.plan.settings.model_dump_json(), answers.plan.folder, answers.seed)
    samples = observe(answers.model(models), models.experiment).samples
    margins = confidence(samples.loss.astype(np.float64))
    file = answers.file()
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(".new.npz")
    np.savez(new, **{role.value: margins[samples.of_role(role)] for role in _ROLES})  # type: ignore[arg-type]
    new.replace(file)


def _rows(plan: MarginsPlan, seed: int) -> Iterator[MarginsRow]:
    """Yield the rows of a split whose models are all there."""
    found: dict[str, list[_Answers]] = {}
    for one in _answers(plan, seed):
        if one.file().exists():
            found.setdefault(one.name, []).append(one)
    whole = {name: each for name, each in found.items() if len(each) == plan.models}
    if RETRAINED not in whole:
        return
    models = _models(plan.settings.model_dump_json(), plan.folder, seed)
    people = np.unique(models.experiment.forget.identities, return_inverse=True)[1].astype(np.int64)
    retrained = _stacked(whole[RETRAINED])
    for name in plan.rows:
        if name in whole:
            yield MarginsRow(
                method=name, seed=seed, models=plan.models, metrics=_metrics(_stacked(whole[name]), retrained, people)
            )


def _stacked(answers: list[_Answers]) -> dict[Role, NDArray[np.float64]]:
    loaded = [one.load() for one in answers]
    return {role: np.stack([one[role] for one in loaded]) for role in _ROLES}


def _metrics(
    margins: dict[Role, NDArray[np.float64]], retrained: dict[Role, NDArray[np.float64]], people: NDArray[np.int64]
) -> dict[str, float]:
    metrics = dict[str, float]()
    for role in _ROLES:
        each = klom(margins[role], retrained[role])
        metrics[f"klom_{role.value}"] = float(each.mean())
        metrics[f"klom_{role.value}_95"] = float(np.percentile(each, _TAIL))
    forgotten = margins[Role.FORGET], retrained[Role.FORGET]
    metrics["told_apart_image"] = float(told_apart(*forgotten).mean())
    metrics["told_apart_person"] = float(told_apart(*forgotten, people).mean())
    return metrics


@lru_cache(maxsize=1)
def _models(settings_json: str, folder: Path, seed: int) -> ExperimentModels:
    settings = Settings.model_validate_json(settings_json)
    return ExperimentModels(deal_experiment(open_source(settings.data), settings, seed), folder / "models")


@lru_cache(maxsize=64)
def _images(settings_json: str, seed: int) -> str:
    settings = Settings.model_validate_json(settings_json)
    return deal_experiment(open_source(settings.data), settings, seed).digest()
