"""The whole comparison: every method on every seed, in worker processes, on disk after each, within a time budget."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from dlfd_fleet.bench.experiment import Kind, trained_model
from dlfd_fleet.bench.methods.comparison import (
    WITH_OWN_ANSWERS,
    WITH_REFERENCES,
    measure_baselines,
    measure_method,
    row_key,
    split_name,
)
from dlfd_fleet.bench.models import digest_of_split, models_of_split
from dlfd_fleet.bench.rows import ORIGINAL, RETRAINED, Row
from dlfd_fleet.bench.workers import gather, worker_processes
from dlfd_fleet.cores import usable_cores
from dlfd_fleet.exceptions import ConfigurationError
from dlfd_fleet.progress import ProgressDisplay
from dlfd_fleet.settings import Settings
from dlfd_fleet.unlearning.methods import METHODS

BASELINES = "baselines"


@dataclass(frozen=True)
class Plan:
    """What is to be compared.

    Attributes
    ----------
    methods
        Names of the registry.
    seeds
        Number of seeds, 0 and up.
    budget
        Seconds after which nothing new is begun.
    """

    settings: Settings
    methods: tuple[str, ...]
    seeds: int
    budget: float
    folder: Path


@dataclass(frozen=True)
class Results:
    """The rows that are there, how many are missing, and what failed of them; others are missing for want of time."""

    rows: tuple[Row, ...]
    missing: int
    failures: tuple[str, ...]


def choose_methods(text: str, settings: Settings) -> tuple[str, ...]:
    """Return the methods that a comma-separated list names, or all of them, with and without what they can aim at.

    Raises
    ------
    ConfigurationError
        If there is no such method, or one is to aim at references and cannot, or there are to be none.
    """
    if text == "all":
        aims = ("", WITH_OWN_ANSWERS, *((WITH_REFERENCES,) if settings.references.models else ()))
        return tuple(name + aim for name in METHODS for aim in (aims if METHODS[name].aims_at_references else aims[:1]))
    chosen = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in chosen:
        if split_name(name)[1] == WITH_REFERENCES and not settings.references.models:
            raise ConfigurationError(
                f"'{name}' needs reference models, and references.models is 0; set how many to train, such as 4."
            )
    return chosen


def run_bench(plan: Plan, progress: ProgressDisplay) -> Results:
    """Do all that the budget allows, seed by seed, and return every row there is, those of earlier runs included."""
    deadline = time.monotonic() + plan.budget
    failures: list[str] = []
    jobs = plan.settings.bench.jobs
    threads = max(1, usable_cores() // jobs)
    for name in plan.methods if plan.settings.data.multi_label else ():
        split_name(name)[0].refuse_labels()
    digest_of_split(plan.settings.model_dump_json(), 0)  # a bad manifest is refused before any work
    with worker_processes(jobs, threads) as pool:
        for seed in range(plan.seeds):
            works = [_Work(plan, seed, name) for name in (BASELINES, *plan.methods)]
            todo = [work for work in works if not work.done()]
            if not todo or time.monotonic() >= deadline:
                continue
            trainings: list[tuple[Kind, int]] = [("original", 0)]
            trainings += [("retrained", index) for index in range(plan.settings.bench.retrained)]
            if any(name.endswith(WITH_REFERENCES) for name in plan.methods):
                trainings += [("reference", index) for index in range(plan.settings.references.models)]
            title = f"Seed {seed}: training what methods begin with and are measured against"
            with progress.phase(title, len(trainings)) as advance:
                tasks = {f"{kind} model {index}": (_train, plan, seed, kind, index) for kind, index in trainings}
                failures += gather(pool, seed, tasks, advance)
            with progress.phase(f"Seed {seed}: methods", len(todo)) as advance:
                failures += gather(pool, seed, {work.name: (_measure, work, deadline) for work in todo}, advance)
    rows, missing = [], 0
    for seed in range(plan.seeds):
        for name in (BASELINES, *plan.methods):
            work = _Work(plan, seed, name)
            rows += work.rows()
            missing += not work.done()
    return Results(tuple(rows), missing, tuple(failures))


@dataclass(frozen=True)
class _Work:
    """One method on one seed."""

    plan: Plan
    seed: int
    name: str

    def files(self) -> list[Path]:
        """Return where its rows are, once it is done."""
        settings = self.plan.settings
        key = row_key(settings, self.name, digest_of_split(settings.model_dump_json(), self.seed))
        if self.name == BASELINES:
            names = [ORIGINAL, *_numbered(RETRAINED, settings.bench.retrained)]
        else:
            names = _numbered(self.name, split_name(self.name)[0].runs)
        return [self.plan.folder / "rows" / f"{name}-seed-{self.seed}-{key}.json" for name in names]

    def done(self) -> bool:
        return all(file.exists() for file in self.files())

    def rows(self) -> list[Row]:
        return [Row.model_validate_json(file.read_text(encoding="utf-8")) for file in self.files() if file.exists()]


def _numbered(name: str, count: int) -> list[str]:
    return [name] if count == 1 else [f"{name}-{index}" for index in range(count)]


def _write(file: Path, row: Row) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(".new")
    new.write_text(row.model_dump_json(indent=1), encoding="utf-8")
    new.replace(file)


def _train(plan: Plan, seed: int, kind: Kind, index: int) -> None:
    models = models_of_split(plan.settings.model_dump_json(), plan.folder, seed)
    trained_model(models.experiment, kind, index, models.cache)


def _measure(work: _Work, deadline: float) -> None:
    if time.monotonic() >= deadline:
        return
    models = models_of_split(work.plan.settings.model_dump_json(), work.plan.folder, work.seed)
    if work.name == BASELINES:
        for file, row in zip(work.files(), measure_baselines(models), strict=True):
            _write(file, row)
        return
    for index, file in enumerate(work.files()):
        if not file.exists() and time.monotonic() < deadline:
            _write(file, measure_method(models, work.name, index))
