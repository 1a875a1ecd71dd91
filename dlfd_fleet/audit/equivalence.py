"""Test whether a model is as hard to attack as retrained ones, by differences with bounds.

The same images of the same people are attacked in both models, so differences between people cancel out. This has far
more power than a comparison with people never trained on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from dlfd_fleet.audit.attacks import MembershipScores, resampled_aucs
from dlfd_fleet.audit.bootstrap import Floats, draws, pair_wins, person_sums, student_widening, units
from dlfd_fleet.audit.samples import SampleScores
from dlfd_fleet.exceptions import DataError

_TWO_SIDED, _ONE_SIDED = NormalDist().inv_cdf(0.975), NormalDist().inv_cdf(0.95)
_NO_BOUND = 0.49  # of AUC, on both sides: as wide as all that an AUC can be


class Difference(BaseModel):
    """A model's score minus the mean of its references', with its standard error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: float
    """The model's own score."""
    reference: float
    """Mean score of the reference models."""
    standard_error: float
    """Standard error of the difference; 1.96 errors are a 95% bound for any number of people and references."""
    references: int

    @property
    def value(self) -> float:
        """The difference."""
        return self.model - self.reference

    @property
    def low(self) -> float:
        """Lower 95% bound."""
        return self.value - _TWO_SIDED * self.standard_error

    @property
    def high(self) -> float:
        """Upper 95% bound."""
        return self.value + _TWO_SIDED * self.standard_error

    def equivalent(self, margin: float) -> bool:
        """Tell whether two one-sided 5% tests exclude a difference of the margin either way (TOST, Schuirmann 1987)."""
        return abs(self.value) + _ONE_SIDED * self.standard_error < margin

    def differs(self, margin: float) -> bool:
        """Tell whether the whole 95% interval is outside the margin."""
        return self.low > margin or self.high < -margin

    def power(self, margin: float) -> float:
        """Return the chance that both tests reject when there is no difference."""
        return equivalence_power(self.standard_error, margin)

    def __str__(self) -> str:
        if self.low <= -_NO_BOUND and self.high >= _NO_BOUND:
            return f"{self.value:+.3f}, with bounds that exclude nothing"
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def equivalence_power(standard_error: float, margin: float) -> float:
    """Return the chance that two one-sided 5% tests both reject when the true difference is 0.

    It is ``max(0, 2 * Phi(margin / se - z_0.95) - 1)`` for a normal estimate, and 0 if the margin is below 1.645
    errors.
    """
    if standard_error <= 0.0:
        return 1.0
    return max(0.0, 2.0 * NormalDist().cdf(margin / standard_error - _ONE_SIDED) - 1.0)


def auc_difference(
    models: Sequence[MembershipScores],
    references: Sequence[MembershipScores],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Difference:
    """Return the mean AUC of attacks on a model minus the mean AUC on reference models, over the same images.

    The standard error has two sources: the people (bootstrap of both sides, the same draws for all models) and the
    reference models (their variance divided by their number). With few of them it is uncertain, so it is widened to
    Student's t with the degrees of freedom of Welch and Satterthwaite.

    Parameters
    ----------
    models
        Scores of one attack on the model, or of several variants of it.
    references
        Scores of the same attack on each reference model, of the same images in the same order. One reference has no
        variance.

    Raises
    ------
    DataError
        If a side is empty, or the images are not the same.
    """
    if not models or not references:
        raise DataError("There is no retrained model to compare with.")
    first = models[0]
    if any(
        not np.array_equal(first.person, other.person) or not np.array_equal(first.member, other.member)
        for other in (*models, *references)
    ):
        raise DataError("The models were attacked on different images, so they cannot be compared image by image.")
    value, known = float(np.mean([one.auc() for one in models])), [one.auc() for one in references]
    # Very few people say little of how much people differ, so the wider of two bootstraps counts.
    images = np.arange(len(first.person))
    return max(
        (
            _difference(value, known, _resampled(models, references, unit, resamples, seed), _least(unit, first.member))
            for unit in (first.person, images)
        ),
        key=lambda difference: difference.standard_error,
    )


def accuracy_difference(
    model: SampleScores,
    references: Sequence[SampleScores],
    *,
    resamples: int = 2000,
    seed: int = 0,
    labels: int | None = None,
) -> Difference:
    """Return a model's accuracy minus the mean accuracy of reference models, over the same images.

    Parameters
    ----------
    labels
        Number of labels of an image, for models with labels.

    Raises
    ------
    DataError
        If there is no reference, or the images are not the same.
    """
    if not references:
        raise DataError("There is no retrained model to compare with.")
    if any(not np.array_equal(model.person, other.person) for other in references):
        raise DataError("The models were audited on different images, so they cannot be compared image by image.")
    unit = units(model.person)
    right = [one.share_right(labels) for one in (model, *references)]
    difference = right[0] - np.mean(right[1:], axis=0)
    sums = person_sums(unit, np.stack([difference, np.ones_like(difference)], axis=1))
    drawn = draws(unit, resamples, np.random.default_rng(seed)) @ sums
    known = [float(one.mean()) for one in right[1:]]
    return _difference(float(right[0].mean()), known, drawn[:, 0] / drawn[:, 1], len(sums))


def _resampled(
    models: Sequence[MembershipScores],
    references: Sequence[MembershipScores],
    person: NDArray[np.int64],
    resamples: int,
    seed: int,
) -> Floats:
    member = models[0].member
    inside, outside = person[member], person[~member]
    wins = [
        np.mean([pair_wins(one.score[member], inside, one.score[~member], outside) for one in side], axis=0)
        for side in (models, references)
    ]
    return resampled_aucs(wins[0] - wins[1], inside, outside, resamples, np.random.default_rng(seed))


def _least(unit: NDArray[np.int64], member: NDArray[np.bool_]) -> int:
    """Return the number of units of the smaller side, or of the other side if it has only one."""
    sides = [len(np.unique(unit[member == side])) for side in (True, False)]
    return min((number for number in sides if number > 1), default=1)


def _difference(value: float, known: list[float], resampled: Floats, people: int) -> Difference:
    """Return the difference, with errors of people and of reference models together."""
    variances, degrees = [], []
    if people > 1:
        variances.append(float(np.var(resampled[np.isfinite(resampled)])) * people / (people - 1))
        degrees.append(people - 1)
    if len(known) > 1:
        variances.append(float(np.var(known, ddof=1)) / len(known))
        degrees.append(len(known) - 1)
    total = sum(variances)
    error = 0.5 if people < 2 else 0.0
    if total > 0.0:
        freedom = total**2 / sum(part**2 / number for part, number in zip(variances, degrees, strict=True))
        error = max(error, math.sqrt(total) * student_widening(freedom))
    return Difference(model=value, reference=float(np.mean(known)), standard_error=error, references=len(known))
