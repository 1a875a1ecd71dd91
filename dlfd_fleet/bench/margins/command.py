"""The command ``dlfd-fleet bench margins``."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from dlfd_fleet.bench.margins.runner import MarginsPlan, MarginsRow, run_margins
from dlfd_fleet.bench.methods.runner import Plan, choose_methods
from dlfd_fleet.bench.results import log_metrics, parse_duration
from dlfd_fleet.exceptions import ConfigurationError, JobError
from dlfd_fleet.plain_text import plain
from dlfd_fleet.progress import ConsoleProgress
from dlfd_fleet.settings import Settings

_MOST_MODELS = 120  # seeds of trainings are this far apart, and retrained ones are twice as many
_COLUMNS = {
    "klom_forget": "KLoM forget",
    "klom_forget_95": "95%",
    "klom_retain": "retain",
    "klom_retain_95": "95%",
    "klom_test": "test",
    "klom_test_95": "95%",
    "told_apart_image": "U-LiRA, image",
    "told_apart_person": "person",
}


def margins_command(settings: Settings, methods: str, models: int, seeds: int, budget: str, console: Console) -> None:
    """Compare how what many models say is distributed; print the table, write its file and tell MLflow.

    Raises
    ------
    ConfigurationError
        For an unknown method, a number of models that is too small or too large, or a budget that is no duration.
    JobError
        If nothing was measured.
    """
    if not 3 <= models <= _MOST_MODELS:
        raise ConfigurationError(f"--models is {models}; choose from 3 to {_MOST_MODELS}.")
    folder = settings.state_folder / "bench-margins"
    plan = Plan(settings, choose_methods(methods, settings), seeds, parse_duration(budget), folder)
    results = run_margins(MarginsPlan(plan, models), ConsoleProgress(console))
    for failure in results.failures:
        console.print(plain(f"Failed: {failure}"), soft_wrap=True)
    if results.rows:
        console.print(_table(results.rows, f"Margins of {models} models of each kind beside {models} retrained ones"))
        file = _write(results.rows, folder / "table.csv")
        log_metrics(settings, "bench", [(row.method, row.seed, row.metrics) for row in results.rows])
        console.print(f"Table: {file}", soft_wrap=True)
    if results.missing:
        again = f"{results.missing} models are missing; run the same command again to go on."
        if not results.rows:
            raise JobError(f"Nothing is measured yet: {again}")
        console.print(again)


def _means(rows: Sequence[MarginsRow]) -> dict[str, dict[str, float]]:
    names = dict.fromkeys(row.method for row in rows)
    each = {name: [row.metrics for row in rows if row.method == name] for name in names}
    return {name: {key: float(np.mean([one[key] for one in mine])) for key in _COLUMNS} for name, mine in each.items()}


def _table(rows: Sequence[MarginsRow], title: str) -> Table:
    table = Table(title=title)
    for name in ("method", *_COLUMNS.values()):
        table.add_column(name, no_wrap=name == "method")
    for method, metrics in _means(rows).items():
        table.add_row(plain(method), *(f"{metrics[key]:.2f}" for key in _COLUMNS))
    return table


def _write(rows: Sequence[MarginsRow], file: Path) -> Path:
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("method", "seed", "models", *_COLUMNS))
        for row in rows:
            writer.writerow((row.method, row.seed, row.models, *(row.metrics[key] for key in _COLUMNS)))
    return file
