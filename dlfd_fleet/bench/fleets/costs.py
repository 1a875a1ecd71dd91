"""What methods took beside a retraining, in all and by phase: as metrics of a row, and as a table of its own."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from rich.table import Table

from dlfd_fleet.bench.fleets.made_models import MadeModel
from dlfd_fleet.bench.fleets.methods import EVIDENCE
from dlfd_fleet.plain_text import plain
from dlfd_fleet.report.contents import Phase

ERASURES = 20
"""Erasures that share the cost of the reference models."""
IN_ALL = "in all"
_MEGABYTE = 1e6
_NOTHING = Phase(steps=0, seconds=0.0, sent_bytes=0)
_COLUMNS: dict[str, Callable[[Phase], float]] = {
    "rounds or steps": lambda phase: float(phase.steps),
    "MB to sites": lambda phase: phase.bytes_to_sites / _MEGABYTE,
    "MB from sites": lambda phase: phase.received_bytes / _MEGABYTE,
    "MB, most of a site": lambda phase: phase.most_bytes_of_a_site / _MEGABYTE,
    "sites' seconds": lambda phase: phase.site_seconds,
    "longest site": lambda phase: phase.longest_site_seconds,
    "coordinator's": lambda phase: phase.coordinator_seconds,
    "seconds": lambda phase: phase.seconds,
}


@dataclass(frozen=True)
class Costs:
    """What one model of a seed took: in all, and by kind of step."""

    method: str
    total: Phase
    phases: Mapping[str, Phase] = field(default_factory=dict)


def metrics_of(
    note: MadeModel, total: Phase, retraining: Sequence[Phase], references: MadeModel | None
) -> dict[str, float]:
    """Return what a model took, and its shares of a retraining's.

    Parameters
    ----------
    note
        What the model took, by phase: audits and what further training brings back are shares of their own.
    total
        What counts of it: of a retrained model, what it took to be as accurate as the original.
    retraining
        What retrained models took.
    references
        What the reference models took, if the method needs any.
    """
    evidence = [phase for kind, phase in note.phases.items() if kind in EVIDENCE]
    parts = {
        "time": ("seconds", total.seconds),
        "bytes": ("sent_bytes", float(total.sent_bytes)),
        "computation": ("site_seconds", total.site_seconds),
    }
    metrics = {
        "seconds": total.seconds - sum(phase.seconds for phase in evidence),
        "rounds": float(total.steps - note.phases.get("relearn", _NOTHING).steps),
        "megabytes_to_sites": total.bytes_to_sites / _MEGABYTE,
        "megabytes_from_sites": total.received_bytes / _MEGABYTE,
        "most_megabytes_of_a_site": total.most_bytes_of_a_site / _MEGABYTE,
        "site_seconds": total.site_seconds,
        "longest_site_seconds": total.longest_site_seconds,
        "coordinator_seconds": total.coordinator_seconds,
    }
    for name, (attribute, mine) in parts.items():
        whole = fmean(getattr(phase, attribute) for phase in retraining)
        shown = mine - sum(getattr(phase, attribute) for phase in evidence)
        metrics[f"share_of_retraining_{name}"] = shown / whole
        if evidence:
            metrics[f"share_with_audits_{name}"] = mine / whole
        if references is not None:
            amortised = mine + getattr(references.total, attribute) / ERASURES
            metrics[f"share_with_references_{name}"] = amortised / whole
    return metrics


def costs_table(costs: Iterable[Costs], title: str) -> Table:
    """Return what each method took in all, means over seeds, for a terminal."""
    table = Table(title=title)
    for name in ("method", *_COLUMNS):
        table.add_column(name, no_wrap=name == "method")
    for method, phase, values in _means(costs):
        if phase == IN_ALL:
            table.add_row(plain(method), *(f"{value:.2f}" for value in values))
    return table


def write_costs(costs: Iterable[Costs], file: Path) -> None:
    """Write what each method took, in all and by kind of step, means over seeds."""
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("method", "phase", *_COLUMNS))
        for method, phase, values in _means(costs):
            writer.writerow((method, phase, *values))


def _means(costs: Iterable[Costs]) -> Iterable[tuple[str, str, list[float]]]:
    found: dict[tuple[str, str], list[Phase]] = {}
    for one in costs:
        for kind, phase in {**one.phases, IN_ALL: one.total}.items():
            found.setdefault((one.method, kind), []).append(phase)
    for (method, kind), phases in found.items():
        yield method, kind, [fmean(value(phase) for phase in phases) for value in _COLUMNS.values()]
