"""Draw figures of a job as PNG bytes. They never contain images of people."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray

Losses = Mapping[str, NDArray[np.float64]]
_SMALLEST_LOSS = 1e-4
_LETTERS_AN_INCH, _LINE_INCHES = 15.0, 0.17  # of text at 8 points
_COLOURS = {"forget": "#c1272d", "retain": "#7f7f7f", "unseen": "#1f6fb4"}


def loss_histograms(panels: Mapping[str, Losses]) -> bytes:
    """Draw the losses of forgotten, retained and unseen images, one panel a model.

    Parameters
    ----------
    panels
        By model, then by group: cross-entropy in nats, ``(N,)``.
    """
    figure = Figure(figsize=(5.0 * len(panels), 3.6), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    largest = max((values.max(initial=1.0) for groups in panels.values() for values in groups.values()), default=1.0)
    bins = np.geomspace(_SMALLEST_LOSS, max(largest, 1.0), 25)
    for axis, (model, groups) in zip(axes, panels.items(), strict=True):
        for name, values in groups.items():
            if not len(values):
                continue
            shares = np.full(len(values), 1.0 / len(values))
            shown = np.clip(values, _SMALLEST_LOSS, None)
            label = f"{name} ({len(values)})"
            axis.hist(shown, bins, weights=shares, histtype="step", linewidth=1.6, label=label, color=_COLOURS[name])
        axis.set(xscale="log", xlabel="loss of an image (nats)", title=model)
        axis.legend(frameon=False)
    axes[0].set_ylabel("share of images")
    return _png(figure)


def person_scores(panels: Mapping[str, Losses]) -> bytes:
    """Draw how well a model knows each forgotten and each unseen person, one panel a model.

    Parameters
    ----------
    panels
        By model, then by group: mean cross-entropy of a person's images in nats, ``(P,)``. People are sorted and
        numbered by it in each panel, so nobody can be followed between models.
    """
    figure = Figure(figsize=(5.0 * len(panels), 3.6), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (model, groups) in zip(axes, panels.items(), strict=True):
        values = np.concatenate(list(groups.values()))
        colours = [_COLOURS[name] for name, part in groups.items() for _ in part]
        for place, person in enumerate(np.argsort(values, kind="stable")):
            axis.plot(place + 1, max(values[person], _SMALLEST_LOSS), "o", color=colours[person], markersize=5)
        for name, part in groups.items():
            axis.plot([], [], "o", color=_COLOURS[name], label=f"{name} ({len(part)} people)")
        axis.set(yscale="log", xlabel="person, numbered anew", title=model)
        axis.legend(frameon=False)
    axes[0].set_ylabel("mean loss of their images (nats)")
    return _png(figure)


def trade_off(rounds: Mapping[int, Mapping[str, float]]) -> bytes:
    """Draw utility against the attack, one point a round, with 95% bounds.

    Parameters
    ----------
    rounds
        By round number: the metrics of :func:`~dlfd_fleet.audit.gate_metrics`, including an attack.
    """
    figure = Figure(figsize=(6.0, 4.2), layout="constrained")
    axis = figure.subplots()
    numbers = sorted(rounds)

    def points(name: str) -> NDArray[np.float64]:
        return np.array([rounds[number][name] for number in numbers])

    def bars(name: str) -> list[NDArray[np.float64]]:
        middle = points(name)  # which a bootstrap's bounds need not lie around
        return [np.maximum(middle - points(f"{name}_low"), 0.0), np.maximum(points(f"{name}_high") - middle, 0.0)]

    attack, utility = points("gate_loss_auc"), points("gate_utility")
    axis.errorbar(
        attack,
        utility,
        xerr=bars("gate_loss_auc"),
        yerr=bars("gate_utility"),
        fmt="o-",
        color=_COLOURS["unseen"],
        ecolor="#c9c9c9",
        linewidth=1.0,
    )
    for number, horizontal, vertical in zip(numbers, attack, utility, strict=True):
        axis.annotate(str(number), (horizontal, vertical), textcoords="offset points", xytext=(5, 5), fontsize=9)
    axis.axvline(0.5, color=_COLOURS["retain"], linestyle=":", linewidth=1.0)
    axis.set(
        xlabel="AUC of the loss attack on validation people (0.5: nobody is found)",
        ylabel="balanced accuracy on validation people",
        title="Forgetting and utility by round",
    )
    return _png(figure)


def time_by_phase(seconds: Mapping[str, float]) -> bytes:
    """Draw how long each phase took, in seconds."""
    figure = Figure(figsize=(6.0, 1.2 + 0.28 * len(seconds)), layout="constrained")
    axis = figure.subplots()
    names = list(seconds)[::-1]
    bars = axis.barh(names, [seconds[name] for name in names], color=_COLOURS["unseen"])
    axis.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
    axis.set(xlabel="seconds", title="Time by phase")
    axis.margins(x=0.12)
    return _png(figure)


def score_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], footer: str, lead: Sequence[str] = ()
) -> bytes:
    """Draw a table of scores with lines above it, and one under it."""
    width = 3.0 + 2.3 * len(columns)
    above = [part for line in lead for part in textwrap.wrap(line, round(_LETTERS_AN_INCH * width))]
    room, height = _LINE_INCHES * (len(above) + 1 if above else 0), 1.4 + 0.32 * len(rows)
    engine = ConstrainedLayoutEngine(rect=(0.0, 0.0, 1.0, height / (height + room)))
    figure = Figure(figsize=(width, height + room), layout=engine)
    figure.text(0.01, 0.99, "\n".join(above), fontsize=8, va="top")
    axis = figure.subplots()
    axis.set_axis_off()
    axis.set_title(title, fontsize=11, loc="left")
    table = axis.table([list(row) for row in rows], colLabels=list(columns), loc="center", cellLoc="left", edges="open")
    table.auto_set_font_size(False)
    table.set_fontsize(9)
    table.scale(1.0, 1.3)
    figure.text(0.01, 0.01, footer, fontsize=8, wrap=True)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=100)
    return stream.getvalue()
