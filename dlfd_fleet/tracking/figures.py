"""Pictures of a job, as PNG bytes. Drawn off screen; no image of a person is ever in them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

Losses = Mapping[str, NDArray[np.float64]]
_SMALLEST_LOSS = 1e-4
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


def score_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], footer: str) -> bytes:
    """Draw a table of scores with a line under it."""
    figure = Figure(figsize=(3.0 + 2.3 * len(columns), 1.4 + 0.32 * len(rows)), layout="constrained")
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
