"""The bench's table: on the terminal, as CSV and JSON, and as one HTML page with its plots."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table
from scipy.stats import t as student

from dlfd_fleet.audit import ATTACKS
from dlfd_fleet.bench.rows import ORIGINAL, RETRAINED, Row
from dlfd_fleet.unlearning.methods import METHODS

_BEFORE_ATTACKS = (
    ("test_accuracy", "test accuracy"),
    ("balanced_accuracy", "balanced accuracy"),
    ("retain_accuracy", "retain accuracy"),
    ("forget_accuracy", "forget accuracy"),
)
_AFTER_ATTACKS = (
    ("neighbour_exposure", "neighbours' AUC, change"),
    ("nomus", "NoMUS"),
    ("gap_to_retrain", "average gap"),
    ("share_of_retraining_time", "time / retraining"),
    ("seconds", "seconds"),
    ("times_lower_bound", "time / lower bound"),
    ("peak_memory_ratio", "memory / step"),
    ("share_of_retraining_bytes", "bytes / retraining"),
    ("share_of_retraining_computation", "sites' time / retraining"),
    ("share_with_audits_bytes", "bytes with audits"),
    ("share_with_audits_computation", "sites' time with audits"),
    ("share_with_references_bytes", "bytes with 1/20 of references"),
    ("share_with_references_computation", "sites' time with 1/20 of references"),
    ("megabytes_a_site", "MB a site"),
    ("stored_megabytes", "MB stored"),
    ("server_megabytes", "MB server"),
    ("rounds", "rounds"),
)


def distances() -> tuple[str, ...]:
    """Return the metrics that are signed distances from retraining, AUC.

    What counts of them is the mean of their absolute values over seeds.
    """
    return (*(f"{attack.name}_gap" for attack in ATTACKS.values()), "relearned_gap")


def _columns() -> tuple[tuple[str, str], ...]:
    """Return the columns of the whole table: metric and heading."""
    attacks = list(ATTACKS.values())
    gaps = [(f"abs_{attack.name}_gap", f"|{attack.title} AUC - retrained|") for attack in attacks]
    found = [
        (f"{attack.name}_tpr_at_1_fpr", f"found at 1% FPR, {attack.title}")
        for attack in attacks
        if attack.scores_people
    ]
    return (*_BEFORE_ATTACKS, *gaps, ("abs_relearned_gap", "|AUC - retrained| relearned"), *found, *_AFTER_ATTACKS)


def _shown() -> dict[str, str]:
    """Return the columns of the terminal's table: metric and heading."""
    attacks = {f"abs_{one.name}_gap": f"|Δ{one.title}|" for one in ATTACKS.values() if one.scores_people}
    return {
        "test_accuracy": "test",
        "balanced_accuracy": "balanced",
        "forget_accuracy": "forget",
        **attacks,
        "abs_relearned_gap": "|Δrelearn|",
        "nomus": "NoMUS",
        "share_of_retraining_time": "time",
        "share_of_retraining_bytes": "bytes",
    }


@dataclass(frozen=True)
class Mean:
    """A mean over seeds, and the half-width of its 95% interval (Student's t; NaN with one seed)."""

    value: float
    half_width: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        """Return the mean of one number a seed."""
        count = len(values)
        if count < 2:
            return cls(float(np.mean(values)), float("nan"))
        half = float(student.ppf(0.975, count - 1)) * float(np.std(values, ddof=1)) / count**0.5
        return cls(float(np.mean(values)), half)

    def __str__(self) -> str:
        return f"{self.value:.3f}" if np.isnan(self.half_width) else f"{self.value:.3f} ±{self.half_width:.3f}"


@dataclass(frozen=True)
class Summary:
    """One line of the table: a method over its seeds."""

    method: str
    seeds: int
    means: dict[str, Mean]
    verdicts: str
    collapsed: int
    """Models of it that collapsed towards one answer."""
    settings: tuple[dict[str, object], ...]

    @property
    def title(self) -> str:
        """The method's name as people write it."""
        plain, plus, what = self.method.partition("+")
        what = "own answers" if what == "own" else what
        return f"{METHODS[plain].title}{' + ' if plus else ''}{what}" if plain in METHODS else self.method


def summarise(rows: Sequence[Row]) -> list[Summary]:
    """Average rows by method over seeds, original and retrained first; several models of a seed count as one."""
    order = {name: place for place, name in enumerate((ORIGINAL, RETRAINED, *METHODS))}

    def place(name: str) -> tuple[int, str]:
        return order.get(name.partition("+")[0], len(order)), name

    found = []
    for method in sorted({row.method for row in rows}, key=place):
        mine = [row for row in rows if row.method == method]
        seeds = sorted({row.seed for row in mine})
        by_seed = [_mean_of_models([_with_distances(row) for row in mine if row.seed == seed]) for seed in seeds]
        names = sorted(set.intersection(*(set(one) for one in by_seed)))
        verdicts = Counter(row.verdict.outcome.value for row in mine)
        found.append(
            Summary(
                method=method,
                seeds=len(seeds),
                means={name: Mean.of([one[name] for one in by_seed]) for name in names},
                verdicts=", ".join(f"{count} {name}" for name, count in sorted(verdicts.items())),
                collapsed=sum(any("collapsed" in reason for reason in row.verdict.reasons) for row in mine),
                settings=tuple(row.settings for row in mine),
            )
        )
    return found


def _with_distances(row: Row) -> dict[str, float]:
    return row.metrics | {f"abs_{name}": abs(row.metrics[name]) for name in distances() if name in row.metrics}


def _mean_of_models(models: Sequence[dict[str, float]]) -> dict[str, float]:
    names = set.intersection(*(set(model) for model in models))
    return {name: float(np.mean([model[name] for model in models])) for name in names}


def console_table(summaries: Sequence[Summary], title: str, *, bounds: bool = True) -> Table:
    """Return the table for a terminal: a column a method would make it too wide, so methods are rows.

    Parameters
    ----------
    bounds
        Also show the half-widths of the intervals; a terminal needs some 160 columns for them.
    """
    table = Table(title=title)
    table.add_column("method", no_wrap=True)
    keys = {key: heading for key, heading in _shown().items() if any(key in one.means for one in summaries)}
    for name in (*keys.values(), "verdicts"):
        table.add_column(name, no_wrap=name != "verdicts")
    for one in summaries:
        means = [one.means.get(key) for key in keys]
        cells = ["" if mean is None else str(mean) if bounds else f"{mean.value:.3f}" for mean in means]
        table.add_row(one.title, *cells, one.verdicts + (f" ({one.collapsed} collapsed)" if one.collapsed else ""))
    return table


def write_report(rows: Sequence[Row], summaries: Sequence[Summary], folder: Path, heading: str) -> Path:
    """Write ``table.csv``, ``rows.json``, ``table.md`` and ``report.html`` into a folder; return the page."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_csv(summaries, folder / "table.csv")
    text = json.dumps([row.model_dump(mode="json") for row in rows], indent=1)
    (folder / "rows.json").write_text(text, encoding="utf-8")
    (folder / "table.md").write_text(_markdown(summaries), encoding="utf-8")
    page = folder / "report.html"
    page.write_text(_page(rows, summaries, heading), encoding="utf-8")
    return page


def _write_csv(summaries: Sequence[Summary], file: Path) -> None:
    names = sorted({name for one in summaries for name in one.means})
    header = ["method", "seeds", "verdicts", "collapsed", "settings"]
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(header + [part for name in names for part in (name, f"{name}_half_width")])
        for one in summaries:
            cells: list[object] = [
                one.method,
                one.seeds,
                one.verdicts,
                one.collapsed,
                json.dumps(one.settings, default=str),
            ]
            for name in names:
                mean = one.means.get(name)
                cells += [mean.value, mean.half_width] if mean else ["", ""]
            writer.writerow(cells)


def _full_table(summaries: Sequence[Summary]) -> tuple[list[str], list[list[str]]]:
    """Return headers and cells of all columns that some method has a figure for."""
    columns = [(key, title) for key, title in _columns() if any(key in one.means for one in summaries)]
    cells = [
        [one.title, *(str(one.means[key]) if key in one.means else "" for key, _ in columns), one.verdicts]
        for one in summaries
    ]
    return ["method", *(title for _, title in columns), "verdicts"], cells


def _markdown(summaries: Sequence[Summary]) -> str:
    headers, cells = _full_table(summaries)
    lines = ["| " + " | ".join(name.replace("|", "\\|") for name in headers) + " |", "|---" * len(headers) + "|"]
    lines += ["| " + " | ".join(line) + " |" for line in cells]
    return "\n".join(lines) + "\n"


_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>$heading</title><style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: #222 }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: 13px }
th, td { padding: .3rem .6rem; text-align: left; border-bottom: 1px solid #ddd; vertical-align: top }
td { font-variant-numeric: tabular-nums; white-space: nowrap } img { max-width: 100%; height: auto }
code { font-size: 12px; white-space: pre-wrap }
</style></head><body>
<h1>$heading</h1>
<p>Mean over seeds with the half-width of its 95% interval. The judge is the distance from retraining: AUCs of an
attack on the same images, minus those of models retrained without the forgotten people. The line <em>retrained</em> is
one retrained model beside the others: what chance alone makes of a perfect method. NoMUS rewards collapse; never read
it alone. Several models of a method on one seed count as one, their mean: retrained ones, and the runs of a method that
has one setting; of several settings validation people chose one. No figure here proves that a model has forgotten.</p>
<div class="wide"><table><thead><tr>$header</tr></thead><tbody>$body</tbody></table></div>
<h2>Utility against forgetting</h2><img alt="Test accuracy against distance from retraining" src="$tradeoff">
<h2>Losses</h2><img alt="Loss histograms" src="$losses">
<h2>Time</h2><img alt="Time of each method" src="$time">
<h2>Settings that validation people chose</h2><table>$settings</table>
</body></html>
""")


def _page(rows: Sequence[Row], summaries: Sequence[Summary], heading: str) -> str:
    def line(cells: Sequence[str], tag: str = "td") -> str:
        return "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)

    headers, cells = _full_table(summaries)
    settings = "".join(
        f"<tr><td>{html.escape(one.title)}</td><td><code>{html.escape(text)}</code></td></tr>"
        for one in summaries
        for text in sorted({json.dumps(chosen, default=str) for chosen in one.settings if chosen})
    )
    return _PAGE.substitute(
        heading=html.escape(heading),
        header=line(headers, "th"),
        body="".join(f"<tr>{line(row)}</tr>" for row in cells),
        tradeoff=picture_source(tradeoff_figure(summaries)),
        losses=picture_source(loss_figure(rows)),
        time=picture_source(time_figure(summaries)),
        settings=settings,
    )


def picture_source(figure: Figure) -> str:
    """Return a figure as the source of an image in a page that stands alone."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def tradeoff_figure(summaries: Sequence[Summary]) -> Figure:
    """Draw test accuracy against the distance from retraining, one panel an attack; better is up and left."""
    measured = {name for one in summaries for name in one.means}
    attacks = [one for one in ATTACKS.values() if one.scores_people and f"abs_{one.name}_gap" in measured]
    figure = Figure(figsize=(6 * len(attacks), 5.2), layout="constrained")
    axes = figure.subplots(1, len(attacks), sharey=True, squeeze=False)[0]
    for axis, attack in zip(axes, attacks, strict=True):
        for number, one in enumerate(summaries):
            if f"abs_{attack.name}_gap" not in one.means:
                continue  # the attack was not possible on all seeds
            x, y = one.means[f"abs_{attack.name}_gap"], one.means["test_accuracy"]
            axis.errorbar(
                x.value,
                y.value,
                xerr=_drawn(x),
                yerr=_drawn(y),
                marker="*" if one.method in ("dlfd", RETRAINED) else "o",
                markersize=13 if one.method in ("dlfd", RETRAINED) else 7,
                color=f"C{number % 10}",
                label=one.title,
                elinewidth=0.6,
            )
            axis.annotate(one.title, (x.value, y.value), (5, 4), textcoords="offset points", fontsize=8)
        axis.set(xlabel=f"mean |AUC - AUC of retrained|, {attack.title} attack", xlim=(0, None))
    axes[0].set_ylabel("test accuracy")
    return figure


def _drawn(mean: Mean) -> float | None:
    return None if np.isnan(mean.half_width) else mean.half_width


def loss_figure(rows: Sequence[Row]) -> Figure:
    """Draw the losses of forgotten, retained and test images over all seeds, for the models that matter most."""
    shown = [name for name in (ORIGINAL, RETRAINED, "dlfd", "fine-tune") if any(row.method == name for row in rows)]
    figure = Figure(figsize=(3.4 * len(shown), 3.4), layout="constrained")
    axes = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    bins = np.geomspace(1e-4, 30.0, 25)
    for axis, name in zip(axes, shown, strict=True):
        for role, colour in (("forget", "#c1272d"), ("retain", "#7f7f7f"), ("test", "#1f6fb4")):
            values = np.clip([loss for row in rows if row.method == name for loss in row.losses[role]], 1e-4, None)
            weights = np.full(len(values), 1.0 / len(values))
            axis.hist(values, bins, weights=weights, histtype="step", color=colour, label=role)
        axis.set(xscale="log", title=name, xlabel="loss of an image (nats)")
    axes[0].set_ylabel("share of images")
    axes[0].legend(frameon=False)
    return figure


def time_figure(summaries: Sequence[Summary]) -> Figure:
    """Draw each method's time as a share of a retraining's."""
    timed = [one for one in summaries if "share_of_retraining_time" in one.means]
    figure = Figure(figsize=(9, 0.6 + 0.34 * len(timed)), layout="constrained")
    axis = figure.subplots()
    values = [one.means["share_of_retraining_time"] for one in timed]
    axis.barh([one.title for one in timed], [value.value for value in values], xerr=[_drawn(v) or 0.0 for v in values])
    axis.invert_yaxis()
    axis.set_xlabel("time, share of a retraining (same process, same load)")
    return figure
