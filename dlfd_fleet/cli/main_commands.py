"""The commands that need no group: the demo, and one machine's unlearning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from dlfd_fleet.cli.options import Config, Overrides, TrainedOnOption, console, load


def demo(
    config: Config = None,
    overrides: Overrides = None,
    compare_retrain: Annotated[
        bool, typer.Option("--compare-retrain", help="Also retrain without the people, to compare.")
    ] = False,
    seed: Annotated[int | None, typer.Option(help="Seed of splits, training and noise.")] = None,
) -> None:
    """Run the main job on the embedded faces: train, forget four people, prove it, export, predict on a device."""
    from dlfd_fleet.demo import run_demo

    flags: dict[str, object] = {}
    if compare_retrain:
        flags["erasure.compare_retrain"] = True
    if seed is not None:
        flags["seed"] = seed
    run_demo(load(config, overrides, flags).settings, console)


def unlearn(
    model: Annotated[Path, typer.Option(help="Folder of model.safetensors and card.json.")],
    data: Annotated[Path, typer.Option(help="Manifest, with people in the splits validation and test.")],
    forget: Annotated[list[str], typer.Option(help="A person to forget; may be repeated.")],
    output: Annotated[Path, typer.Option(help="New folder for the unlearned model and its report.")] = Path(
        "unlearned"
    ),
    root: Annotated[Path | None, typer.Option(help="Folder of the images; default: the manifest's.")] = None,
    trained_on: TrainedOnOption = None,
    method: Annotated[str, typer.Option(help="Unlearning method: 'dlfd', or another registered one.")] = "dlfd",
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Make one model on this machine forget people; no fleet. Exit code 1 if it did not succeed."""
    from dlfd_fleet.audit import SCORE_NAMES
    from dlfd_fleet.data import TrainedOn
    from dlfd_fleet.progress import ConsoleProgress
    from dlfd_fleet.report.page import score_text
    from dlfd_fleet.single import unlearn_people

    settings = load(config, overrides).settings
    trained = None if trained_on is None else TrainedOn.read(trained_on)
    result = unlearn_people(model, data, root, forget, output, settings, ConsoleProgress(console), method, trained)
    table = Table("", "original", "unlearned")
    for name in SCORE_NAMES:
        cells = (score_text(getattr(scores, name)) for scores in (result.original, result.unlearned))
        table.add_row(name.replace("_", " "), *cells)
    if result.relearned is not None:
        table.add_row("MIA AUC after further training", "-", score_text(result.relearned.mia_auc))
    console.print(table)
    console.print(f"{result.verdict.outcome.value}: {'; '.join(result.reasons)}.", highlight=False)
    console.print(f"Model and report: {output}", soft_wrap=True)
    if not result.success:
        raise typer.Exit(1)
