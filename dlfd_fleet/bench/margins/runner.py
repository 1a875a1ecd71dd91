"""Train many models of a split, unlearn from each original, and keep what all of them say: resumable, in parts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from dlfd_fleet.audit import Role
from dlfd_fleet.audit.shift import confidence
from dlfd_fleet.bench.evidence import observe
from dlfd_fleet.bench.margins.divergence import klom, told_apart
from dlfd_fleet.bench.methods.comparison import WITH_OWN_ANSWERS, WITH_REFERENCES, row_key, split_name
from dlfd_fleet.bench.methods.runner import Plan
from dlfd_fleet.bench.models import ExperimentModels, digest_of_split, models_of_split
from dlfd_fleet.bench.rows import ORIGINAL, RETRAINED
from dlfd_fleet.bench.workers import gather, worker_processes
from dlfd_fleet.cores import usable_cores
from dlfd_fleet.models import FeatureClassifier
from dlfd_fleet.progress import ProgressDisplay

AGAIN = "retrained again"
"""As many retrained models more, beside the first: what chance alone makes of a perfect method."""
_ROLES = (Role.FORGET, Role.RETAIN, Role.TEST)
_TAIL = 95.0


@dataclass(frozen=True)
class MarginsPlan:
    """What is to be compared: the splits and methods of a bench, by so many models of each kind."""

    bench: Plan
    models: int

    @property
    def rows(self) -> tuple[str, ...]:
        """What is compared with retrained models."""
        return (ORIGINAL, AGAIN, *self.bench.methods)


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
    bench, deadline, failures = plan.bench, time.monotonic() + plan.bench.budget, list[str]()
    for name in bench.methods if bench.settings.data.multi_label else ():
        split_name(name)[0].refuse_labels()
    digest_of_split(bench.settings.model_dump_json(), 0)  # a bad manifest is refused before any work
    jobs = bench.settings.bench.jobs
    with worker_processes(jobs, max(1, usable_cores() // jobs)) as pool:
        for seed in range(bench.seeds):
            todo = [one for one in _answers(plan, seed) if not one.file().exists()]
            if not todo or time.monotonic() >= deadline:
                continue
            # What others begin with is made first: a method's models wait for no training of another process.
            for kinds in ((ORIGINAL,), (RETRAINED, AGAIN, *bench.methods)):
                mine = {f"{one.name} {one.index}": (_make, one, deadline) for one in todo if one.name in kinds}
                if mine:
                    with progress.phase(f"Seed {seed}: {kinds[0]} models and more", len(mine)) as advance:
                        failures += gather(pool, seed, mine, advance)
    missing = sum(not one.file().exists() for seed in range(bench.seeds) for one in _answers(plan, seed))
    rows = tuple(row for seed in range(bench.seeds) for row in _rows(plan, seed))
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
        bench = self.plan.bench
        key = row_key(bench.settings, self.name, digest_of_split(bench.settings.model_dump_json(), self.seed))
        return bench.folder / "answers" / f"{self.name.replace(' ', '-')}-seed-{self.seed}-{self.index}-{key}.npz"

    def model(self, models: ExperimentModels) -> FeatureClassifier:
        if self.name == ORIGINAL:
            return models.originals(self.index)
        if self.name in (RETRAINED, AGAIN):
            return models.retrained(self.index + (self.plan.models if self.name == AGAIN else 0))
        method, aim = split_name(self.name)
        settings = method.default.settings(models.experiment.settings.unlearning)
        settings = settings.model_copy(update={"batch_size": models.experiment.settings.bench.batch_size})
        known = models.references if aim == WITH_REFERENCES else None
        seed, own = self.seed * 1000 + self.index, aim == WITH_OWN_ANSWERS
        problem = models.problem(models.originals(self.index), settings, seed, known, own=own)
        return method.default.unlearn(method.name, problem).model

    def load(self) -> dict[Role, NDArray[np.float64]]:
        with np.load(self.file()) as kept:
            return {role: kept[role.value] for role in _ROLES}


def _make(answers: _Answers, deadline: float) -> None:
    if time.monotonic() >= deadline:
        return
    bench = answers.plan.bench
    models = models_of_split(bench.settings.model_dump_json(), bench.folder, answers.seed)
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
    models = models_of_split(plan.bench.settings.model_dump_json(), plan.bench.folder, seed)
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
