"""The device bench's table: on the terminal, as CSV and JSON, and as one HTML page with its plot."""

from __future__ import annotations

import csv
import html
import json
from collections.abc import Sequence
from pathlib import Path
from string import Template

import numpy as np
from matplotlib.figure import Figure
from pydantic import BaseModel, ConfigDict
from rich.table import Table
from rich.text import Text

from dlfd_fleet.bench.devices.files import COMPILED, EAGER, EAGER_CHANNELS_LAST
from dlfd_fleet.bench.report import picture_source
from dlfd_fleet.plain_text import plain

_TITLES = {EAGER: "torch eager", EAGER_CHANNELS_LAST: "torch eager, channels last", COMPILED: "torch.compile"}
_MEBIBYTE = 2**20
_COLUMNS: tuple[tuple[str, str, float, str], ...] = (
    ("latency_p50_ms", "p50 ms", 1.0, ".2f"),
    ("latency_p95_ms", "p95 ms", 1.0, ".2f"),
    ("images_a_second", "images/s", 1.0, ".0f"),
    ("speed_beside_fp32", "x fp32", 1.0, ".2f"),
    ("speed_beside_torch", "x eager", 1.0, ".2f"),
    ("load_seconds", "load s", 1.0, ".2f"),
    ("size_bytes", "file MiB", _MEBIBYTE, ".1f"),
    ("resident_bytes", "resident MiB", _MEBIBYTE, ".0f"),
    ("test_accuracy", "test", 1.0, ".3f"),
    ("agreement", "agrees", 1.0, ".4f"),
    ("original_mia_auc", "AUC before", 1.0, ".3f"),
    ("mia_auc", "AUC", 1.0, ".3f"),
    ("forgetting_score", "forgetting", 1.0, ".3f"),
)
"""Metric, heading, unit and format of what is shown; the files have everything."""


class DeviceRow(BaseModel):
    """What is known of one way to run the unlearned model with so many threads."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    way: str
    threads: int
    metrics: dict[str, float] = {}
    """Times, sizes, ratios within rounds and scores of the answers; the original's scores under ``original_NAME``."""
    verdict: str = ""
    """Of the answers of this way, beside the original's in eager torch."""
    note: str = ""
    """Why there is nothing else."""

    @property
    def title(self) -> str:
        """The way as people write it."""
        return _TITLES.get(self.way, self.way)

    def cells(self) -> list[str]:
        """Return the shown figures as text."""
        return [
            f"{self.metrics[name] / unit:{form}}" if name in self.metrics else "-" for name, _, unit, form in _COLUMNS
        ]


def console_table(rows: Sequence[DeviceRow], heading: str) -> Table:
    """Return the table for a terminal."""
    table = Table("", "threads", *(title for _, title, _, _ in _COLUMNS), "verdict", title=heading)
    for row in rows:
        table.add_row(row.title, str(row.threads), *row.cells(), row.verdict)
    notes = {row.title: row.note for row in rows if row.note}
    # A string would be shown with its line breaks written out, as no text of others may break a line.
    table.caption = Text("\n").join(plain(f"No {title}: {note}") for title, note in notes.items()) or None
    return table


def goals(rows: Sequence[DeviceRow]) -> list[str]:
    """Return a sentence for each goal of the formats: what was asked for, what was measured, whether it is enough."""
    lines = []
    for row in rows:
        torch = next((other.metrics for other in rows if other.way == EAGER and other.threads == row.threads), {})
        if not row.metrics or not torch:
            continue
        threads = "1 thread" if row.threads == 1 else f"{row.threads} threads"
        if row.way == "fp32":
            speed = row.metrics["speed_beside_torch"]
            lines.append(
                _goal(f"fp32 is at least twice as fast as eager torch, {threads}", speed >= 2.0, f"{speed:.2f}")
            )
        if row.way == "int8":
            speed = row.metrics["speed_beside_fp32"]
            lines.append(_goal(f"int8 is at least twice as fast as fp32, {threads}", speed >= 2.0, f"{speed:.2f}"))
        if row.way != "int8" or row.threads != 1:
            continue
        size, lost = row.metrics["size_beside_fp32"], torch["test_accuracy"] - row.metrics["test_accuracy"]
        lines.append(_goal("int8 has at most 27% of fp32's size", size <= 0.27, f"{size:.1%}"))
        lines.append(_goal("int8 loses at most 0.5 points of test accuracy", lost <= 0.005, f"{100.0 * lost:.1f}"))
    files = [row for row in rows if row.metrics and row.threads == 1]
    auc = {row.way: row.metrics["mia_auc"] for row in files}
    if EAGER in auc:
        farthest = max(auc, key=lambda way: abs(auc[way] - auc[EAGER]))
        far = f"the farthest from it is {auc[farthest]:.3f} ({farthest})"
        lines.append(f"Forgetting: eager torch's AUC is {auc[EAGER]:.3f}, {far}.")
    return lines


def _goal(goal: str, reached: bool, measured: str) -> str:
    return f"{'Reached' if reached else 'Missed'}: {goal}: {measured}."


_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>$heading</title><style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: #222 }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: 13px }
th, td { padding: .3rem .6rem; text-align: left; border-bottom: 1px solid #ddd; vertical-align: top }
td { font-variant-numeric: tabular-nums; white-space: nowrap } img { max-width: 100%; height: auto }
</style></head><body>
<h1>$heading</h1>
<p>Each way to run the model is a process of its own, and the processes take turns. <em>x fp32</em> and <em>x eager</em>
say how many times as fast a way is, as the median over rounds of the ratio within a round. Loading ends with the first
answer. Memory is the whole process's. <em>AUC before</em> and <em>AUC</em> are the loss attack's on the original and on
the unlearned model, run in this way; 0.5 is chance. No figure here proves that a model has forgotten.</p>
<div class="wide"><table><thead><tr>$header</tr></thead><tbody>$body</tbody></table></div>
<ul>$goals</ul><img alt="Latency and memory of each way" src="$plot">
</body></html>
""")


def write_report(rows: Sequence[DeviceRow], folder: Path, heading: str) -> Path:
    """Write ``table.csv``, ``rows.json`` and ``report.html`` into a folder; return the page."""

    def line(cells: Sequence[str], tag: str = "td") -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    folder.mkdir(parents=True, exist_ok=True)
    names = sorted({name for row in rows for name in row.metrics})
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["way", "threads", *names, "verdict", "note"])
        for row in rows:
            figures = [row.metrics.get(name, "") for name in names]
            writer.writerow([row.way, row.threads, *figures, row.verdict, row.note])
    text = json.dumps([row.model_dump(mode="json") for row in rows], indent=1)
    (folder / "rows.json").write_text(text, encoding="utf-8")
    page = folder / "report.html"
    content = _PAGE.substitute(
        heading=html.escape(heading),
        header=line(["", "threads", *(title for _, title, _, _ in _COLUMNS), "verdict"], "th"),
        body="".join(line([row.title, str(row.threads), *row.cells(), row.verdict or row.note]) for row in rows),
        goals="".join(f"<li>{html.escape(goal)}</li>" for goal in goals(rows)),
        plot=picture_source(figure_of(rows)),
    )
    page.write_text(content, encoding="utf-8")
    return page


def figure_of(rows: Sequence[DeviceRow]) -> Figure:
    """Draw latency, median and 95th percentile, and memory of each way, a bar for each number of threads."""
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    time_axis, memory_axis = figure.subplots(1, 2, sharey=True)
    measured = [row for row in rows if row.metrics]
    titles = list(dict.fromkeys(row.title for row in measured))
    counts = sorted({row.threads for row in measured})
    height = 0.8 / max(1, len(counts))
    for number, threads in enumerate(counts):
        mine = [row for row in measured if row.threads == threads]
        places = [titles.index(row.title) + number * height for row in mine]
        median = np.array([row.metrics["latency_p50_ms"] for row in mine])
        tail = np.array([row.metrics["latency_p95_ms"] for row in mine]) - median
        memory = [row.metrics["resident_bytes"] / _MEBIBYTE for row in mine]
        label = f"threads: {threads}"
        time_axis.barh(places, median, height, xerr=[np.zeros_like(tail), tail], label=label, error_kw={"lw": 0.8})
        memory_axis.barh(places, memory, height, label=label)
    time_axis.set_yticks(np.arange(len(titles)) + height * (len(counts) - 1) / 2, titles)
    time_axis.invert_yaxis()
    time_axis.set_xlabel("latency of one image, ms: median and 95th percentile")
    memory_axis.set_xlabel("resident memory of the process, MiB")
    time_axis.legend(frameon=False)
    return figure
