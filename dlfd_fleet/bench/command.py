"""The command: run what is missing, print the table, write the files, tell MLflow."""

from __future__ import annotations

import platform
import time
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.console import Console

from dlfd_fleet.bench.compare import Row
from dlfd_fleet.bench.report import console_table, summarise, write_report
from dlfd_fleet.bench.runner import Plan, choose_methods, parse_duration, run_bench
from dlfd_fleet.configuration import flatten
from dlfd_fleet.exceptions import JobError
from dlfd_fleet.plain_text import plain
from dlfd_fleet.progress import ConsoleProgress
from dlfd_fleet.settings import Settings
from dlfd_fleet.tracking import open_tracker

_PATIENCE = 120.0
_WIDE = 160


def bench_command(settings: Settings, methods: str, seeds: int, budget: str, console: Console) -> None:
    """Run the bench, print its table, write its files and tell MLflow.

    Raises
    ------
    ConfigurationError
        For an unknown method or a budget that is no duration.
    JobError
        If the budget ended before anything was measured.
    """
    folder = settings.state_folder / "bench"
    plan = Plan(settings, choose_methods(methods), seeds, parse_duration(budget), folder)
    results = run_bench(plan, ConsoleProgress(console))
    for failure in results.failures:
        console.print(plain(f"Failed: {failure}"), soft_wrap=True)
    _show(settings, results.rows, results.missing, folder, f"Unlearning methods, {seeds} seeds", console)


def federated_command(settings: Settings, seeds: int, budget: str, console: Console) -> None:
    """Compare what a coordinator may do, on the same sites; print the table, write its files and tell MLflow.

    Raises
    ------
    ConfigurationError
        For a budget that is no duration, or settings under which no fleet can be dealt.
    JobError
        If the budget ended before anything was measured.
    """
    from dlfd_fleet.bench.federated import federated_seeds

    folder, deadline = settings.state_folder / "bench-federated", time.monotonic() + parse_duration(budget)
    rows, missing = [], 0
    for seed in federated_seeds(settings, seeds, folder, ConsoleProgress(console)):
        seed.run(deadline)
        missing += len(seed.missing())
        rows += seed.rows()
    heading = f"Federated unlearning at {settings.data.sites} sites, {seeds} seeds"
    _show(settings, tuple(rows), missing, folder, heading, console)


def _show(settings: Settings, rows: tuple[Row, ...], missing: int, folder: Path, title: str, console: Console) -> None:
    if not rows:
        raise JobError("The budget ended before anything was measured; run again to go on, or give more: --budget 1h.")
    summaries = summarise(rows)
    data = settings.data
    faces = data.manifest.name if data.source == "manifest" and data.manifest else data.source
    heading = f"{title}, {faces}, {_machine()}"
    # A log has no width of its own; a narrow terminal gets the means, and finds the bounds in the files.
    if not console.is_terminal:
        console.width = max(console.width, _WIDE)
    console.print(console_table(summaries, heading, bounds=console.width >= _WIDE))
    page = write_report(rows, summaries, folder, heading)
    log_to_mlflow(settings, rows)
    if missing:
        console.print(f"{missing} measurements are missing; run the same command again to go on.")
    console.print(f"Report: {page}", soft_wrap=True)


def log_to_mlflow(settings: Settings, rows: tuple[Row, ...]) -> None:
    """Record every row: one run a bench, one run under it a method, its models seed by seed as steps."""
    name = f"bench-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    runs = {row.method: row.index + 1 for row in sorted(rows, key=lambda row: row.index)}
    with open_tracker(settings.tracking, settings.state_folder) as tracker:
        tracker.start_job(name, kind="bench", parameters=flatten(settings.model_dump(mode="json")), tags={})
        for row in rows:
            step = row.seed * runs[row.method] + row.index
            tracker.log_metrics(name, row.metrics, step=step, site=row.method)
        tracker.finish_job(name, "FINISHED")
        tracker.flush(_PATIENCE)


def _machine() -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU cores"
    return f"{platform.machine()}, {device}, torch {torch.__version__.partition('+')[0]}"
