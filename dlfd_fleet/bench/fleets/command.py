"""The command ``dlfd-fleet bench fleets``."""

from __future__ import annotations

import time

from rich.console import Console

from dlfd_fleet.bench.fleets.asking import Asking
from dlfd_fleet.bench.fleets.costs import costs_table, write_costs
from dlfd_fleet.bench.fleets.methods import choose_federated
from dlfd_fleet.bench.fleets.seeds import federated_seeds
from dlfd_fleet.bench.results import parse_duration, show_results
from dlfd_fleet.exceptions import JobError
from dlfd_fleet.progress import ConsoleProgress
from dlfd_fleet.settings import Settings


def fleets_command(settings: Settings, seeds: int, budget: str, console: Console, methods: str = "all") -> None:
    """Compare what a coordinator may do, on the same sites; print the tables, write their files and tell MLflow.

    There are tables for each way to ask (``bench.requests``), in a folder of its own if there are several.

    Raises
    ------
    ConfigurationError
        For a budget that is no duration, a method that is not there, or settings under which no fleet can be dealt.
    JobError
        If the budget ended before anything was measured.
    """
    folder, deadline = settings.state_folder / "bench-federated", time.monotonic() + parse_duration(budget)
    chosen = choose_federated(methods, settings)
    compared = federated_seeds(settings, seeds, folder, ConsoleProgress(console), chosen)
    for seed in compared:
        seed.run(deadline)
    shown = 0
    for number, text in enumerate(settings.bench.requests):
        asking, fleets = Asking(text), [seed.asked[number] for seed in compared]
        rows = tuple(row for fleet in fleets for row in fleet.rows())
        missing = sum(len(fleet.missing()) for fleet in fleets)
        heading = f"Federated unlearning at {settings.data.sites} sites, {asking.words}, {seeds} seeds"
        if not rows:
            console.print(f"{heading}: nothing is measured yet; run the same command again to go on.")
            continue
        shown += 1
        own = folder if len(settings.bench.requests) == 1 else folder / asking.folder
        show_results(settings, rows, missing, own, heading, console)
        costs = [one for fleet in fleets for one in fleet.costs()]
        console.print(costs_table(costs, "What it took, means over seeds; steps are in costs.csv"))
        write_costs(costs, own / "costs.csv")
    if not shown:
        raise JobError("The budget ended before anything was measured; run again to go on, or give more: --budget 1h.")
