"""Measure how much surer a model is of people than models that never saw them.

An image's confidence is ``log(p / (1 - p))``, where p is the probability of its true class. Over models it is nearly
normal (LiRA, Carlini et al., arXiv 2112.03570, section V). For a person whom a model remembers it is above that of OUT
models, which were not trained on that person. A model of all people is surer of everybody than a model of half of them,
so both are corrected by people whom none of these models saw.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from dlfd_fleet.audit.bootstrap import student_widening
from dlfd_fleet.exceptions import DataError

Floats = NDArray[np.float64]
_LEAST = 1e-6
_ONE_SIDED = NormalDist().inv_cdf(0.95)
_LEAST_OF_MEMBERS = 0.1  # under it reference models show no difference that a share could be taken of


@dataclass(frozen=True)
class ReferenceLosses:
    """Losses of K reference models for N images.

    Attributes
    ----------
    loss
        Cross-entropy of the true class or combination of labels, in nats, ``(K, N)``; NaN if not known.
    trained
        Whether a model was trained on the image's person, ``(K, N)``.
    """

    loss: Floats
    trained: NDArray[np.bool_]


@dataclass(frozen=True)
class Shift:
    """Difference of people from OUT models, in confidence; 0 for people never seen.

    Attributes
    ----------
    value, standard_error
        Mean over people minus that of people never trained on. 1.96 errors are a 95% bound for any number of people.
    of_members
        Difference of IN models, which were trained on these people, from OUT models.
    people
        Number of people.
    """

    value: float
    standard_error: float
    of_members: float
    people: int

    @property
    def left(self) -> float:
        """Share that is left of what members have: 1 for a member, 0 for a person never seen."""
        return self.value / max(self.of_members, _LEAST_OF_MEMBERS)

    @property
    def left_for_sure(self) -> float:
        """Lower bound of :attr:`left`, one-sided 95%: for few people, much can be left by chance."""
        return (self.value - _ONE_SIDED * self.standard_error) / max(self.of_members, _LEAST_OF_MEMBERS)


def confidence(loss: Floats) -> Floats:
    """Return ``log(p / (1 - p))`` of losses, with p limited to [1e-6, 1 - 1e-6]."""
    p = np.exp(-loss).clip(_LEAST, 1.0 - _LEAST)
    said: Floats = np.log(p) - np.log1p(-p)
    return said


def shift_from_out(
    loss: Floats,
    references: ReferenceLosses,
    person: NDArray[np.int64],
    unseen_loss: Floats,
    unseen_references: ReferenceLosses,
    unseen_person: NDArray[np.int64],
) -> Shift:
    """Return the shift of people from their OUT models, corrected by people never trained on.

    Parameters
    ----------
    loss, person
        The model's losses of the people's images, and their people, each ``(N,)``.
    unseen_loss, unseen_person
        The same for people on whom neither the model nor a reference model was trained.

    Raises
    ------
    DataError
        If no image of the people, or of the unseen people, has an answer of an OUT model.
    """
    mine = mean_by_person(confidence(loss) - _mean(references, trained=False), person)
    others = mean_by_person(confidence(unseen_loss) - _mean(unseen_references, trained=False), unseen_person)
    if not len(mine) or not len(others):
        who = "these people" if not len(mine) else "people never trained on"
        raise DataError(f"No reference model that never saw them has answered for images of {who}.")
    members = mean_by_person(_mean(references, trained=True) - _mean(references, trained=False), person)
    return Shift(
        value=float(mine.mean() - others.mean()),
        standard_error=_standard_error(mine, others),
        of_members=float(members.mean()) if len(members) else 0.0,
        people=len(mine),
    )


def _mean(references: ReferenceLosses, *, trained: bool) -> Floats:
    """Return the mean confidence ``(N,)`` of the models that were, or were not, trained on an image's person."""
    chosen = (references.trained == trained) & ~np.isnan(references.loss)
    total = np.where(chosen, confidence(np.nan_to_num(references.loss)), 0.0).sum(axis=0)
    counted = chosen.sum(axis=0)
    mean: Floats = np.where(counted > 0, total / np.maximum(counted, 1), np.nan)
    return mean


def mean_by_person(value: Floats, person: NDArray[np.int64]) -> Floats:
    """Return the mean of each person ``(P,)`` over the images that have a value."""
    known = ~np.isnan(value)
    _, index = np.unique(person[known], return_inverse=True)
    if not len(index):
        return np.zeros(0)
    means: Floats = np.bincount(index, weights=value[known]) / np.bincount(index)
    return means


def _standard_error(one: Floats, other: Floats) -> float:
    """Return the standard error of the difference of two means, widened to Student's t for few people.

    Both have one spread, for a single person has none. It is infinite if nobody has.
    """
    degrees = len(one) + len(other) - 2
    if degrees < 1:
        return math.inf
    spread = (((one - one.mean()) ** 2).sum() + ((other - other.mean()) ** 2).sum()) / degrees
    return math.sqrt(float(spread) * (1.0 / len(one) + 1.0 / len(other))) * student_widening(degrees)
