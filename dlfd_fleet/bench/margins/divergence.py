"""How the margins of unlearned models are distributed beside those of retrained ones, image by image.

A margin is ``log(p / (1 - p))``, p the probability of an image's true class. AUCs say whether forgotten people look
like unseen ones; these say whether any image of anybody tells which of the two ways a model was made.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dlfd_fleet.exceptions import DataError

Floats = NDArray[np.float64]
BINS = 20
_LEAST_SHARE = 1e-5
_LEAST_SPREAD = 1e-3


def klom(margins: Floats, retrained: Floats) -> Floats:
    """Return the KL divergence of margins (KLoM; Georgiev et al., arXiv 2410.23232, appendix E.1), nats an image.

    From histograms of 20 bins over the range of both, an empty bin with a share of 1e-5. Of few models chance alone
    makes a divergence: read it beside that of retrained models from other retrained models.

    Parameters
    ----------
    margins, retrained
        Of N unlearned and of N' retrained models, ``(N, M)`` and ``(N', M)``, the same images in the same order.

    Returns
    -------
    array
        ``(M,)``, 0 where they are distributed alike.

    Raises
    ------
    DataError
        If a side has no model, or the images are not the same.
    """
    _refuse_others(margins, retrained, least=1)
    low = np.minimum(margins.min(axis=0), retrained.min(axis=0))
    width = np.maximum(margins.max(axis=0), retrained.max(axis=0)) - low
    shares = [_shares(side, low, width) for side in (margins, retrained)]
    divergence: Floats = (shares[0] * np.log(shares[0] / shares[1])).sum(axis=1)
    return divergence


def told_apart(margins: Floats, retrained: Floats, groups: NDArray[np.int64] | None = None) -> Floats:
    """Return how often U-LiRA is right about which of the two ways a model was made (arXiv 2403.01218, section 3).

    For each model in turn, a normal distribution is fitted to the margins of the others of either side, and the model
    is of the side under which what it says is likelier. Half is right by chance.

    Parameters
    ----------
    margins, retrained
        As of :func:`klom`; two models of a side at least.
    groups
        Whose each image is, ``(M,)``: the images of one person are looked at together. Each by itself when omitted.

    Returns
    -------
    array
        ``(G,)``, the share of models that are told, for each group in the order of its number.

    Raises
    ------
    DataError
        If a side has fewer than two models, or the images are not the same.
    """
    _refuse_others(margins, retrained, least=2)
    _, place = np.unique(np.arange(margins.shape[1]) if groups is None else groups, return_inverse=True)
    right = np.zeros((2, place.max() + 1))
    for side, (own, other) in enumerate(((margins, retrained), (retrained, margins))):
        for number, model in enumerate(own):
            rest = np.delete(own, number, axis=0)
            # As many of the other side, so that neither is known better than the other.
            lead = _log_likelihood(model, rest) - _log_likelihood(model, np.delete(other, number % len(other), axis=0))
            by_group = np.bincount(place, weights=lead)
            right[side] += np.where(by_group > 0.0, 1.0, np.where(by_group == 0.0, 0.5, 0.0))
    told: Floats = (right[0] / len(margins) + right[1] / len(retrained)) / 2.0
    return told


def _shares(side: Floats, low: Floats, width: Floats) -> Floats:
    """Return the share of models in each bin ``(M, BINS)``; all in the first where no image differs."""
    scaled = np.where(width > 0.0, (side - low) / np.where(width > 0.0, width, 1.0), 0.0)
    bins = np.minimum((scaled * BINS).astype(np.int64), BINS - 1)
    counts = (bins[:, :, None] == np.arange(BINS)).sum(axis=0)
    shares = np.maximum(counts / len(side), _LEAST_SHARE)
    normalised: Floats = shares / shares.sum(axis=1, keepdims=True)
    return normalised


def _log_likelihood(value: Floats, samples: Floats) -> Floats:
    spread = np.maximum(samples.std(axis=0, ddof=1) if len(samples) > 1 else _LEAST_SPREAD, _LEAST_SPREAD)
    likelihood: Floats = -0.5 * ((value - samples.mean(axis=0)) / spread) ** 2 - np.log(spread)
    return likelihood


def _refuse_others(margins: Floats, retrained: Floats, *, least: int) -> None:
    if margins.ndim != 2 or margins.shape[1:] != retrained.shape[1:]:
        raise DataError("Margins of different images cannot be compared.")
    if min(len(margins), len(retrained)) < least:
        raise DataError(f"Margins are compared between {least} models of each kind or more.")
