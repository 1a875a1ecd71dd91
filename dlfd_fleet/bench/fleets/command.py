"""The command ``dlfd-fleet bench fleets``."""

from __future__ import annotations

import time

from rich.console import Console

from dlfd_fleet.bench.fleets.seeds import federated_seeds
from dlfd_fleet.bench.results import parse_duration, show_results
from dlfd_fleet.progress import ConsoleProgress
from dlfd_fleet.settings import Settings


def fleets_command(settings: Settings, seeds: int, budget: str, console: Console) -> None:
    """Compare what a coordinator may do, on the same sites; print the table, write its files and tell MLflow.

    Raises
    ------
    ConfigurationError
        For a budget that is no duration, or settings under which no fleet can be dealt.
    JobError
        If the budget ended before anything was measured.
    """
    folder, deadline = settings.state_folder / "bench-federated", time.monotonic() + parse_duration(budget)
    rows, missing = [], 0
    for seed in federated_seeds(settings, seeds, folder, ConsoleProgress(console)):
        seed.run(deadline)
        missing += len(seed.missing())
        rows += seed.rows()
    heading = f"Federated unlearning at {settings.data.sites} sites, {seeds} seeds"
    show_results(settings, tuple(rows), missing, folder, heading, console)
