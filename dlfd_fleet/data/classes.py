"""Weights that make classes of different sizes count the same in a training loss."""

from __future__ import annotations

from collections.abc import Iterable


def balanced_weights(counts: Iterable[int]) -> tuple[float, ...]:
    """Return a weight for each class, inverse to its share of the images; 1 for a class without any.

    Images weigh 1 on average.

    Parameters
    ----------
    counts
        Images of each class.
    """
    images = list(counts)
    shown = sum(count > 0 for count in images)
    return tuple(sum(images) / (shown * count) if count else 1.0 for count in images)
