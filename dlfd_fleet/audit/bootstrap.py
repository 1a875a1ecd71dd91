"""Estimate fractions with bounds by a bootstrap over people, because images of one person are correlated."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

Floats = NDArray[np.float64]
_NO_BOUNDS = 0.95
Unit = Annotated[float, Field(ge=0.0, le=1.0)]


class Estimate(BaseModel):
    """A score with its 95% bounds and standard error (1.96 errors are a 95% bound); all are fractions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: Unit
    low: Unit
    high: Unit
    standard_error: Annotated[float, Field(ge=0.0)]

    @property
    def says_nothing(self) -> bool:
        """Whether the bounds are as wide as all that there is: then neither they nor the value are a result."""
        return self.high - self.low >= _NO_BOUNDS

    def __str__(self) -> str:
        if self.says_nothing:
            return f"{self.value:.3f}, with bounds that exclude nothing"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


NOTHING_KNOWN = Estimate(value=0.5, low=0.0, high=1.0, standard_error=0.5)


def estimate(value: float, resampled: Floats, people: int) -> Estimate:
    """Bound a fraction by the 2.5% and 97.5% quantiles of its resamples ``(R,)``, widened for few people."""
    # A resample without any member of a class says nothing, and is left out.
    kept = resampled[np.isfinite(resampled)]
    if not len(kept) or people < 2:
        return Estimate(value=value, low=0.0, high=1.0, standard_error=0.5)
    wide = value + widening(people) * (kept - value)
    low, high = np.quantile(wide, [0.025, 0.975]).clip(0.0, 1.0)
    return Estimate(value=value, low=min(low, value), high=max(high, value), standard_error=min(0.5, float(wide.std())))


def widening(people: int) -> float:
    """Return the factor for the spread of a bootstrap over P people, so that 1.96 of it is a 95% bound.

    A bootstrap shows only ``(P - 1) / P`` of the variance. With few people the variance is uncertain, so the factor
    uses Student's t with ``P - 1`` degrees of freedom.
    """
    return math.sqrt(people / (people - 1)) * student_widening(people - 1)


def student_widening(degrees: float) -> float:
    """Return the 97.5% quantile of Student's t in units of the normal distribution's."""
    from scipy.stats import t as student  # sites import this module and bound nothing: it takes them a second

    return float(student.ppf(0.975, degrees)) / NormalDist().inv_cdf(0.975)


def draws(person: NDArray[np.int64], resamples: int, generator: np.random.Generator) -> Floats:
    """Return how often each of P people is drawn, ``(R, P)``; P draws with replacement each."""
    people = len(np.unique(person))
    return generator.multinomial(people, np.full(people, 1.0 / people), size=resamples).astype(np.float64)


def units(person: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return what a bootstrap draws: people, or images if there is only one person."""
    return person if len(np.unique(person)) > 1 else np.arange(len(person))


def person_sums(person: NDArray[np.int64], values: Floats | NDArray[np.bool_]) -> Floats:
    """Sum rows ``(N, K)`` by person, to ``(P, K)``, in the order of person numbers."""
    _, index = np.unique(person, return_inverse=True)
    sums = np.zeros((index.max() + 1, values.shape[1]))
    np.add.at(sums, index, values)
    return sums


def ratio(
    person: NDArray[np.int64], hits: Floats, counts: Floats, resamples: int, generator: np.random.Generator
) -> Estimate:
    """Estimate the mean over columns of ``sum(hits) / sum(counts)``, each ``(N, K)``."""
    unit = units(person)
    return ratio_of_sums(person_sums(unit, hits), person_sums(unit, counts), resamples, generator)


def ratio_of_sums(hits: Floats, counts: Floats, resamples: int, generator: np.random.Generator) -> Estimate:
    """Estimate the mean over columns of ``sum(hits) / sum(counts)``, of sums by person ``(P, K)``."""
    drawn = draws(np.arange(len(hits)), resamples, generator)
    with np.errstate(invalid="ignore", divide="ignore"):
        resampled = (drawn @ hits) / (drawn @ counts)
    return estimate(float((hits.sum(0) / counts.sum(0)).mean()), resampled.mean(axis=1), len(hits))


def pair_wins(
    inside: Floats, inside_person: NDArray[np.int64], outside: Floats, outside_person: NDArray[np.int64]
) -> Floats:
    """Return, for each pair of a member and an unseen person, in how many pairs of images the member scores higher.

    A tie counts half. The AUC of any resample of people is a ratio of sums over this ``(P, Q)`` matrix.
    """
    difference = inside[:, None] - outside[None, :]
    wins = (difference > 0) + 0.5 * (difference == 0)
    return person_sums(outside_person, person_sums(inside_person, wins).T).T
