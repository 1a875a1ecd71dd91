"""The commands that need no group: the demo, one machine's unlearning, the benches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from dlfd_fleet.cli.options import Config, Overrides, console, load


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
    data: Annotated[Path, typer.Option(help="Manifest of the faces, with people of the splits validation and test.")],
    forget: Annotated[list[str], typer.Option(help="A person to forget; may be repeated.")],
    output: Annotated[Path, typer.Option(help="New folder for the unlearned model and its report.")] = Path(
        "unlearned"
    ),
    root: Annotated[Path | None, typer.Option(help="Folder of the images; the manifest's own by default.")] = None,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Make one model on this machine forget people; no fleet. Exit code 1 if it did not succeed."""
    from dlfd_fleet.audit import SCORE_NAMES
    from dlfd_fleet.progress import ConsoleProgress
    from dlfd_fleet.report.page import score_text
    from dlfd_fleet.single import unlearn_people

    settings = load(config, overrides).settings
    result = unlearn_people(model, data, root, forget, output, settings, ConsoleProgress(console))
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


def bench(
    data: Annotated[
        str | None, typer.Option(help="'orl', or a manifest of faces; by default what the settings name.")
    ] = None,
    methods: Annotated[str, typer.Option(help="'all', or names separated by commas.")] = "all",
    seeds: Annotated[int, typer.Option(min=1, help="Splits and trainings to average over.")] = 5,
    budget: Annotated[str, typer.Option(help="Nothing new is begun after this time: 90s, 30m, 2h.")] = "30m",
    federated: Annotated[bool, typer.Option("--federated", help="Compare whole fleets, on virtual nodes.")] = False,
    devices: Annotated[bool, typer.Option("--devices", help="Run a model in each format, and in torch.")] = False,
    sites: Annotated[str | None, typer.Option(help="Measure the coordinator with so many sites: 10,100,1000.")] = None,
    polling: Annotated[
        int | None, typer.Option(min=1, help="Measure the repository with so many devices that poll it: 1000.")
    ] = None,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Compare DLFD with every peer and with retraining; run it again to go on where the budget ended."""
    from dlfd_fleet.bench import bench_command, delivery_command, devices_command, federated_command, scale_command

    flags: dict[str, object] = {}
    if data == "orl":
        flags = {"data.source": data}
    elif data is not None:
        flags = {"data.source": "manifest", "data.manifest": data}
    settings = load(config, overrides, flags).settings
    if sites is not None:
        scale_command(settings, sites, console)
    elif polling is not None:
        delivery_command(polling, settings.state_folder / "bench-delivery", console)
    elif devices:
        devices_command(settings, console)
    elif federated:
        federated_command(settings, seeds, budget, console)
    else:
        bench_command(settings, methods, seeds, budget, console)
