"""The command ``dlfd-fleet bench life``."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from itertools import pairwise
from statistics import median

from rich.console import Console
from rich.table import Table

from dlfd_fleet.bench.life.fleet import Life
from dlfd_fleet.bench.life.measures import Erasure, Utility, read_rows, slope
from dlfd_fleet.bench.results import parse_duration
from dlfd_fleet.exceptions import JobError
from dlfd_fleet.plain_text import PlainConsole
from dlfd_fleet.progress import ConsoleProgress
from dlfd_fleet.settings import Settings

_COMPARED = (25, 50, 100)
_WARM, _ENDS = 0.2, 5


def life_command(settings: Settings, erasures: int, budget: str, console: Console) -> None:
    """Let a fleet live through so many erasures, and print what was lost, came back and grew.

    Raises
    ------
    ConfigurationError
        For a budget that is no duration.
    JobError
        If the budget ended before the first erasure; or somebody was lost or came back.
    """
    deadline = time.monotonic() + parse_duration(budget)
    sections = {"training", "erasure", "references", "release", "export", "fleet", "audit", "seed"}
    key = hashlib.sha256(settings.model_dump_json(include=sections).encode()).hexdigest()[:12]
    folder = settings.state_folder / "bench-life" / key
    life = Life(settings, folder, ConsoleProgress(PlainConsole(stderr=True)))
    compared = sorted({*(each for each in _COMPARED if each <= erasures), erasures})
    life.go_on(erasures, compared, deadline)
    rows, utility = read_rows(life.erasures_file, Erasure), read_rows(life.utility_file, Utility)
    if not rows:
        raise JobError("The budget ended before the first erasure; run again to go on, or give more: --budget 1h.")
    console.print(_table(rows))
    if utility:
        console.print(_beside_retraining(utility))
    console.print(f"Rows: {life.erasures_file}", soft_wrap=True, highlight=False)
    if len(rows) < erasures:
        console.print(f"{erasures - len(rows)} erasures are left; run the same command again to go on.")
    if bad := sum(int(row[name]) for row in rows for name in ("lost", "returned", "wrong_devices")):
        raise JobError(f"{bad} people were lost or came back, or devices were wrong; see the columns of the rows.")


def _table(rows: list[dict[str, str]]) -> Table:
    table = Table("what", "at the start", "at the end", "a further erasure adds", title=f"{len(rows)} erasures")
    last, verdicts = rows[-1], Counter(row["verdict"] or "none" for row in rows)
    table.add_row(
        "people who asked, are forgotten, wait", "", f"{last['asked']}, {last['forgotten']}, {last['waiting']}"
    )
    for name in ("lost", "returned"):
        table.add_row(f"people who were {name}" if name == "lost" else "people who came back", "", _sum(rows, name))
    table.add_row("devices that ran or kept an older model after a poll", "", _sum(rows, "wrong_devices"))
    table.add_row("verdicts", "", ", ".join(f"{count} {name}" for name, count in sorted(verdicts.items())))
    warm = int(_WARM * len(rows))
    for name, what in (
        ("memory", "memory of the process, MiB"),
        ("state", "coordinator's state folder, MiB"),
        ("sites", "all sites' folders, MiB"),
        ("mlflow", "MLflow's store and files, MiB"),
        ("seconds", "an erasure, s"),
        ("query", "two queries of MLflow, s"),
    ):
        values = [float(row[name]) for row in rows]
        start, end = median(values[:_ENDS]), median(values[-_ENDS:])
        grown = slope(values[warm:])
        if name == "memory":  # of each process without its first erasure, which loads what the others use
            settled = [row for before, row in pairwise(rows) if before["process"] == row["process"]]
            grown = slope([float(row[name]) for row in settled], [int(row["process"]) for row in settled])
        table.add_row(what, f"{start:.3g}", f"{end:.3g} ({end / max(start, 1e-9):.2f} x)", str(grown or "-"))
    return table


def _sum(rows: list[dict[str, str]], name: str) -> str:
    return str(sum(int(row[name]) for row in rows))


def _beside_retraining(rows: list[dict[str, str]]) -> Table:
    table = Table("after", "accuracy", "retrained", "attack on all forgotten", "retrained", title="Beside a retraining")
    for row in rows:
        values = (float(row[name]) for name in ("champion", "retrained", "champion_attack", "retrained_attack"))
        table.add_row(row["number"], *(f"{value:.3f}" for value in values))
    return table
