"""What every comparison does with its rows: print the table, write the files, tell MLflow."""

from __future__ import annotations

import platform
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.console import Console

from dlfd_fleet.bench.report import console_table, summarise, write_report
from dlfd_fleet.bench.rows import Row
from dlfd_fleet.configuration import flatten
from dlfd_fleet.data import SOURCES
from dlfd_fleet.exceptions import ConfigurationError, JobError
from dlfd_fleet.plain_text import plain
from dlfd_fleet.settings import Settings
from dlfd_fleet.tracking import open_tracker

_PATIENCE = 120.0
_WIDE = 160
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(text: str) -> float:
    """Return the seconds of ``90s``, ``30m`` or ``2h``.

    Raises
    ------
    ConfigurationError
        If the text is no such thing.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh])", text.strip())
    if found is None or float(found[1]) <= 0.0:
        raise ConfigurationError(f"'{text}' is no duration; write 90s, 30m or 2h.")
    return float(found[1]) * _UNITS[found[2]]


def show_results(
    settings: Settings,
    rows: tuple[Row, ...],
    missing: int,
    folder: Path,
    title: str,
    console: Console,
    failures: Sequence[str] = (),
) -> None:
    """Print the table of a comparison, write its files, and log its rows to MLflow.

    Parameters
    ----------
    missing
        Measurements that failed, or that the budget did not allow.
    failures
        What failed, and why.

    Raises
    ------
    JobError
        If there is no row.
    """
    for failure in failures:
        console.print(plain(f"Failed: {failure}"), soft_wrap=True)
    if failures and not rows:
        raise JobError("Everything that was started failed, as shown above; fix it, and run the same command again.")
    if not rows:
        raise JobError(
            "The budget ended before anything was measured; run the command again, or raise the budget: --budget 1h."
        )
    summaries = summarise(rows)
    heading = f"{title}, {SOURCES.find(settings.data.source).title(settings.data)}, {_machine()}"
    # A log has no width of its own; a narrow terminal gets the means, and finds the bounds in the files.
    if not console.is_terminal:
        console.width = max(console.width, _WIDE)
    console.print(console_table(summaries, heading, bounds=console.width >= _WIDE))
    page = write_report(rows, summaries, folder, heading)
    log_to_mlflow(settings, rows)
    for attack, (count, why) in sorted(_failed_attacks(rows).items()):
        console.print(
            plain(f"The attack '{attack}' failed on {count} of {len(rows)} rows, which do not have it: {why}"),
            soft_wrap=True,
        )
    if missing:
        why = ", those that failed among them" if failures else ""
        console.print(f"{missing} measurements are missing{why}; run the same command again to go on.")
    console.print(f"Report: {page}", soft_wrap=True)


def log_to_mlflow(settings: Settings, rows: tuple[Row, ...]) -> None:
    """Record every row: one run a bench, one run under it a method, its models seed by seed as steps."""
    runs = {row.method: row.index + 1 for row in sorted(rows, key=lambda row: row.index)}
    log_metrics(settings, "bench", [(row.method, row.seed * runs[row.method] + row.index, row.metrics) for row in rows])


def log_metrics(settings: Settings, kind: str, rows: Iterable[tuple[str, int, Mapping[str, float]]]) -> None:
    """Record metrics by name and step in MLflow: one run a bench, named after its kind, and one run under it a name."""
    run = run_name(kind)
    with open_tracker(settings.tracking, settings.state_folder) as tracker:
        tracker.start_job(run, kind="bench", parameters=flatten(settings.model_dump(mode="json")), tags={})
        for name, step, metrics in rows:
            tracker.log_metrics(run, metrics, step=step, site=name)
        tracker.finish_job(run, "FINISHED")
        tracker.flush(_PATIENCE)


def _failed_attacks(rows: Sequence[Row]) -> dict[str, tuple[int, str]]:
    """Return on how many rows each attack failed, and why on the last of them."""
    failed: dict[str, tuple[int, str]] = {}
    for row in rows:
        for attack, why in row.failed_attacks.items():
            failed[attack] = failed.get(attack, (0, ""))[0] + 1, why
    return failed


def run_name(kind: str) -> str:
    """Return a readable name that no other bench has, also none of the same second."""
    return f"{kind}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def _machine() -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU cores"
    return f"{platform.machine()}, {device}, torch {torch.__version__.partition('+')[0]}"
