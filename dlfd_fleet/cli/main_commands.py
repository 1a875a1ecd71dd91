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
    """Train a fleet on embedded faces, forget four people, measure.

    Exit code 1 means that the verdict is FAIL.
    """
    from dlfd_fleet.audit import Outcome
    from dlfd_fleet.demo import run_demo

    flags: dict[str, object] = {}
    if compare_retrain:
        flags["erasure.compare_retrain"] = True
    if seed is not None:
        flags["seed"] = seed
    record = run_demo(load(config, overrides, flags).settings, console)
    if record.verdict is not None and record.verdict.outcome is Outcome.FAIL:
        raise typer.Exit(1)


def certify(
    data: Annotated[
        str | None,
        typer.Option(
            help="A data source ('orl') or a file, in place of the fleet's own; by default what settings name."
        ),
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Runs in all, those of earlier starts included.")] = 20,
    marked: Annotated[int, typer.Option(help="People of a run whose labels are exchanged; half of them ask.")] = 16,
    keep_labels: Annotated[
        bool, typer.Option("--keep-labels", help="Exchange no labels: how the audit does on ordinary people.")
    ] = False,
    confidence: Annotated[float, typer.Option(min=0.5, max=0.9999, help="Of the exact bounds of every rate.")] = 0.95,
    budget: Annotated[str, typer.Option(help="No run is begun after this time: 90s, 30m, 2h.")] = "2h",
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Try the whole procedure before anybody asks."""
    from dlfd_fleet.bench.certify.command import certify_command
    from dlfd_fleet.data.sources import named

    flags: dict[str, object] = dict(named(data)) if data is not None else {}
    settings = load(config, overrides, flags).settings
    certify_command(settings, runs, marked, confidence, budget, console, exchange=not keep_labels)


def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be deleted, and delete nothing.")] = False,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Delete models of ended jobs that the coordinator needs no more (storage.models); each job does it, too."""
    from dlfd_fleet.federation.release.prune import prune_state

    for sentence in prune_state(load(config, overrides).settings, dry_run=dry_run):
        console.print(sentence, soft_wrap=True, markup=False, highlight=False)


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
    """Make one model forget people, without a fleet.

    Exit code 1 means that it did not succeed.
    """
    from dlfd_fleet.audit import SCORE_NAMES
    from dlfd_fleet.data import TrainedOn
    from dlfd_fleet.models import MODEL_FILE
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
    written = "Model and report" if (output / MODEL_FILE).exists() else "Report, and no model"
    console.print(f"{written}: {output}", soft_wrap=True)
    if not result.success:
        raise typer.Exit(1)
