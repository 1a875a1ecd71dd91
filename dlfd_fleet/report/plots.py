"""Plots of a report as SVG: they take the page's colours, and no picture of a person is ever in them."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dlfd_fleet.report.contents import LOSS_EDGES, GateReading

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colours that stand for the page's own ones, light or dark.
_INK, _FORGET, _UNSEEN, _RETAIN = "#010203", "#c1272d", "#1f6fb4", "#7f7f7f"
_PAGE_COLOURS = {_INK: "currentColor", _FORGET: "var(--forget)", _UNSEEN: "var(--unseen)", _RETAIN: "var(--retain)"}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 10,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def gate_plot(readings: Sequence[GateReading]) -> str:
    """Draw what the gate saw by round: attack and utility on validation people, and accuracy on retained people."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(figsize=(5.0, 2.9), layout="constrained")
        axis = figure.subplots()
        places = range(len(readings))
        read = [(place, one.utility, one.utility_half_width) for place, one in enumerate(readings)]
        useful = [(place, value, half) for place, value, half in read if value is not None]
        if useful:
            at = [place for place, _, _ in useful]
            low = [max(value - half, 0.0) for _, value, half in useful]
            high = [min(value + half, 1.0) for _, value, half in useful]
            axis.fill_between(at, low, high, color=_UNSEEN, alpha=0.15, linewidth=0)
            axis.plot(at, [value for _, value, _ in useful], "o-", color=_UNSEEN, label="balanced accuracy, 95% band")
        attacked = [(place, one.attack_auc) for place, one in enumerate(readings) if one.attack_auc is not None]
        if attacked:
            axis.plot(*zip(*attacked, strict=True), "s-", color=_FORGET, label="attack AUC")
        retained = [one.retain_accuracy for one in readings]
        axis.plot(places, retained, "^-", color=_RETAIN, label="accuracy, retained people")
        axis.axhline(0.5, color=_INK, linewidth=0.8, linestyle=":")
        axis.set(ylim=(0.0, 1.05), xlabel="round", xticks=list(places))
        axis.set_xticklabels(_rounds(readings))
        axis.legend(frameon=False, loc="lower right", fontsize=9)
        return _svg(figure, "Attack AUC and balanced accuracy on validation people, and on retained people, by round")


def loss_plot(model: str, groups: Mapping[str, Sequence[int]]) -> str:
    """Draw how the losses of forgotten, retained and unseen images are spread, as shares of each group."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(figsize=(3.9, 2.7), layout="constrained")
        axis = figure.subplots()
        for name, colour in (("forget", _FORGET), ("unseen", _UNSEEN), ("retain", _RETAIN)):
            counts = groups.get(name, ())
            total = sum(counts)
            if total:
                shares = [value / total for value in counts]
                axis.stairs(shares, LOSS_EDGES, color=colour, linewidth=1.6, label=f"{name} ({total})")
        axis.set(xscale="log", xlabel="loss of an image (nats)", ylabel="share of images", title=model)
        axis.legend(frameon=False, fontsize=9)
        return _svg(figure, f"Histogram of losses of the {model} model for forgotten, unseen and retained images")


def _rounds(readings: Sequence[GateReading]) -> list[str]:
    """Return the number of each reading in its attempt; the coordinator's own count DLFD and repair apart."""
    names, number = list[str](), 0
    for reading in readings:
        number = 0 if reading.round == 0 else number + 1
        name = str(number) if number else "original"
        names.append(name if readings[-1].attempt == 1 else f"{name}\n#{reading.attempt}")
    return names


def _svg(figure: Figure, title: str) -> str:
    from matplotlib import rc_context

    stream = io.StringIO()
    with rc_context({"svg.hashsalt": title}):  # the names of what is referred to follow from it
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    drawing = stream.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(
        r'^<svg [^>]*?viewBox="([^"]*)"[^>]*>', rf'<svg viewBox="\1" role="img" aria-label="{title}">', drawing
    )
    # Nothing refers to the names of groups, which are unique in one drawing only.
    drawing = re.sub(r' id="[a-z0-9.]+_\d+"', "", drawing)
    drawing = re.sub(r"font: ([^;\"]*?px) [^;\"]*", r"font: \1 system-ui, sans-serif", drawing)
    for drawn, shown in _PAGE_COLOURS.items():
        drawing = drawing.replace(drawn, shown)
    return drawing
