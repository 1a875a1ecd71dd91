"""Merge the sites' models as they arrive, in one running sum in float64, and check each update."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from dlfd_fleet.exceptions import MessageError
from dlfd_fleet.plain_text import visible


class UpdateNorm(NamedTuple):
    """L2 norms of an update: of trained arrays, and of all arrays with batch-norm statistics."""

    trained: float
    whole: float


def is_statistic(name: str) -> bool:
    """Tell whether an array is a batch-norm statistic."""
    return name.endswith(("running_mean", "running_var"))


def check_update(
    arrays: Mapping[str, Tensor], reference: Mapping[str, Tensor], sender: str, largest_ratio: float | None = None
) -> UpdateNorm:
    """Check a site's model against the one it started from, and return the L2 norms of the update.

    Parameters
    ----------
    arrays, reference
        The site's model and the model that it was sent.
    sender
        Named in the error.
    largest_ratio
        Largest L2 norm of the whole update, as a multiple of the reference's norm. Default: unlimited.

    Raises
    ------
    MessageError
        If names, shapes or types differ, a value is not finite, or the update is too large.
    """
    if arrays.keys() != reference.keys():
        odd = visible(sorted(arrays.keys() ^ reference.keys())[0], 100)
        raise MessageError(f"{sender} sent a model with other arrays than ours, '{odd}' for one; it was refused.")
    trained = statistics = 0.0
    for name, array in arrays.items():
        expected = reference[name]
        if array.shape != expected.shape or array.dtype != expected.dtype:
            raise MessageError(
                f"{sender} sent '{name}' as {array.dtype} {tuple(array.shape)}, not {expected.dtype} "
                f"{tuple(expected.shape)}; its update was refused."
            )
        # A norm is finite only if every value is: one pass over the array instead of two.
        norm = _norm(array - expected) if array.is_floating_point() else 0.0
        if not math.isfinite(norm):
            raise MessageError(f"{sender} sent '{name}' with values that are not finite; its update was refused.")
        if name.endswith("running_var") and bool((array < 0).any()):
            raise MessageError(
                f"{sender} sent negative variances in '{name}', as noise on batch-norm statistics makes them; "
                "its update was refused."
            )
        if is_statistic(name):
            statistics += norm**2
        else:
            trained += norm**2
    whole = trained + statistics
    if largest_ratio is not None:
        own = sum(_norm(array) ** 2 for array in reference.values() if array.is_floating_point())
        ratio = (whole / max(own, 1e-30)) ** 0.5
        if ratio > largest_ratio:
            raise MessageError(
                f"{sender} sent an update {ratio:.2f} times as large as the model, above {largest_ratio:.2f}; "
                "it was refused."
            )
    return UpdateNorm(math.sqrt(trained), math.sqrt(whole))


def _norm(array: Tensor) -> float:
    """Return the L2 norm, summed in float64 without a copy of the array in it."""
    return float(torch.linalg.vector_norm(array, dtype=torch.float64))


def check_epoch(epoch: int, expected: int, sender: str) -> None:
    """Refuse an update from a model of another erasure epoch, which may remember forgotten people."""
    if epoch != expected:
        raise MessageError(f"{sender} sent an update of a model of epoch {epoch}, not of {expected}; it was refused.")


def check_requests(said: Collection[str], asked: Collection[str], sender: str) -> None:
    """Refuse an update that names requests that the site does not have in this job.

    Raises
    ------
    MessageError
        If the site did not count one of them at the start of the job.
    """
    foreign = set(said) - set(asked)
    if foreign:
        raise MessageError(f"{sender} says it unlearned {len(foreign)} requests that it never counted; it was refused.")


def check_weight(weight: int, most: int, sender: str) -> None:
    """Refuse an update that counts more images than its site reported."""
    if weight > most:
        raise MessageError(f"{sender} says its update counts by {weight} images, and it holds {most}; it was refused.")


def odd_updates(norms: Mapping[int, float], ratio: float) -> dict[int, float]:
    """Return the nodes whose update stands out, and its norm as a multiple of the others' median.

    With fewer than three updates none can stand out.

    Parameters
    ----------
    norms
        L2 norms of the updates of one round, by node.
    ratio
        Largest norm, as a multiple of the others' median.
    """
    odd = {}
    for node, norm in norms.items():
        others = [other for key, other in norms.items() if key != node]
        if len(others) >= 2 and norm > ratio * median(others):
            odd[node] = norm / max(median(others), 1e-30)
    return odd


def shortened(arrays: Mapping[str, Tensor], base: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return a model whose update from ``base`` is scaled by this share; integers stay."""
    return {
        name: base[name] + share * (array - base[name]) if array.is_floating_point() else array
        for name, array in arrays.items()
    }


class RunningMean:
    """The weighted mean of models that arrive one by one.

    Memory is one model in float64. Integer arrays (batch-norm counters) are averaged and rounded.
    """

    def __init__(self) -> None:
        self._sum: dict[str, Tensor] = {}
        self._types: dict[str, torch.dtype] = {}
        self.weight = 0.0
        self.count = 0

    def add(self, arrays: Mapping[str, Tensor], weight: float) -> None:
        """Add one model; the weight must be positive."""
        for name, array in arrays.items():
            if name in self._sum:
                self._sum[name].add_(array, alpha=weight)
            else:
                self._sum[name] = array.double() * weight
                self._types[name] = array.dtype
        self.weight += weight
        self.count += 1

    def value(self) -> dict[str, Tensor]:
        """Return the mean, each array in its own type."""
        mean = {}
        for name, total in self._sum.items():
            array = total / self.weight
            mean[name] = (array if self._types[name].is_floating_point else array.round()).to(self._types[name])
        return mean
