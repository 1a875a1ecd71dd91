"""Compare what sites report of people whom all of them hold: honest sites report the same of one model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from dlfd_fleet.audit.samples import SampleScores, numbers
from dlfd_fleet.exceptions import DataError

# Processors round differently. What a lie has to change to matter is far more than this share of rows by that much.
_ODD_ROWS, _RELATIVE, _ABSOLUTE = 0.05, 0.05, 0.01


def agreed(
    said: Mapping[str, SampleScores], withholding: Collection[str] = frozenset()
) -> tuple[SampleScores, frozenset[str]]:
    """Return the report of the median site among the majority, and the sites that differ from it.

    Parameters
    ----------
    said
        Rows by site. A site without rows holds none of these people and does not count.
    withholding
        Sites that left out some of these people, because they know that somebody is not unseen. If most sites did not,
        such a site does not count, and is not named as differing.

    Raises
    ------
    DataError
        If at most half of the sites that count agree, so that nobody can tell who is right.
    """
    witnesses = {site: samples for site, samples in sorted(said.items()) if len(samples)}
    if not witnesses:
        return next(iter(said.values())), frozenset()
    shapes = {site: _shape(samples) for site, samples in witnesses.items()}
    open_sites = {shapes[site] for site in witnesses if site not in withholding}
    votes = Counter(shapes.values())
    usual = max(votes, key=lambda shape: (votes[shape], shape in open_sites))
    witnesses = {site: witnesses[site] for site in witnesses if shapes[site] == usual or site not in withholding}
    alike = [site for site in witnesses if shapes[site] == usual]
    losses = np.stack([_losses(witnesses[site]) for site in alike])
    right = np.array([witnesses[site].right.sum() for site in alike])
    middle, rows = np.median(losses, axis=0), losses.shape[1]
    odd = (~np.isclose(losses, middle, _RELATIVE, _ABSOLUTE)).sum(axis=1) + np.abs(right - np.median(right))
    agreeing = [site for site, count in zip(alike, odd, strict=True) if count <= max(1.0, _ODD_ROWS * rows)]
    if 2 * len(agreeing) <= len(witnesses):
        raise DataError(
            f"The sites {', '.join(witnesses)} report different answers for people whom all of them hold, and nobody "
            "can tell who is right; people of one site only need its name in the column 'site' of its manifest."
        )
    distance = dict(zip(alike, odd + np.abs(losses - middle).sum(axis=1), strict=True))
    return witnesses[min(agreeing, key=lambda site: distance[site])], frozenset(witnesses) - set(agreeing)


def _order(samples: SampleScores) -> NDArray[np.intp]:
    return np.lexsort([samples.loss, *numbers(samples.label), samples.role])


def _losses(samples: SampleScores) -> NDArray[np.float64]:
    """Return the sorted losses of each role and class, which compare image by image between sites."""
    return samples.loss[_order(samples)]


def _shape(samples: SampleScores) -> tuple[bytes, int]:
    """Return what rounding does not change: numbers of images of each role and class, and of people."""
    order = _order(samples)
    kinds = np.stack([samples.role[order].astype(np.int64), *(column[order] for column in numbers(samples.label))])
    return kinds.tobytes(), len(np.unique(samples.person))
