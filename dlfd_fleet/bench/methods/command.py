"""The command ``dlfd-fleet bench methods``."""

from __future__ import annotations

from rich.console import Console

from dlfd_fleet.bench.methods.runner import Plan, choose_methods, run_bench
from dlfd_fleet.bench.results import parse_duration, show_results
from dlfd_fleet.progress import ConsoleProgress
from dlfd_fleet.settings import Settings


def methods_command(settings: Settings, methods: str, seeds: int, budget: str, console: Console) -> None:
    """Run the bench, print its table, write its files and tell MLflow.

    Raises
    ------
    ConfigurationError
        For an unknown method or a budget that is no duration.
    JobError
        If nothing was measured.
    """
    folder = settings.state_folder / "bench"
    plan = Plan(settings, choose_methods(methods, settings), seeds, parse_duration(budget), folder)
    results = run_bench(plan, ConsoleProgress(console))
    title = f"Unlearning methods, {seeds} seeds"
    show_results(settings, results.rows, results.missing, folder, title, console, results.failures)
