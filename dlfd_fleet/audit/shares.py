"""Compute what is left of forgotten people, as a share of what members show, for a verdict by references.

It combines the sums that sites send (:mod:`~dlfd_fleet.audit.by_references`), and compares with retained people in the
original. 1 is left if nothing was unlearned, and 0 if the model never saw the forgotten people.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import NormalDist, median
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from dlfd_fleet.audit.bootstrap import student_widening
from dlfd_fleet.audit.by_references import LINE, MemberSums, ReferenceSums, UnseenSums
from dlfd_fleet.audit.shift import Floats

HALF = 0.5
"""The margin: this share of what members show."""
_FEWEST_UNSEEN = 4  # people, of all sites: a line has two ends
_LEAST_SLOPE = 0.1
_ONE_SIDED, _LIKELY = NormalDist().inv_cdf(0.95), NormalDist().inv_cdf(0.8)
_NO_RESULT = 0.6  # errors of what is left: its bounds are then as wide as all that it could be
_LARGEST_LOG = 20.0


class MemberShare(BaseModel):
    """What a model shows of forgotten people, as a share of what a model of half the people shows of its members.

    Attributes
    ----------
    value, standard_error
        Share of the forgotten people; 0 is a person never seen. 1.96 errors are a 95% bound for any number of people.
    retained, retained_error
        Share of retained people: what a member of this model shows.
    level_error
        The part of the standard error that comes from people never trained on; more forgotten people do not reduce it.
    people, images
        Numbers of forgotten people and images with answers.
    noise, gap
        The variance of the share is their ratio plus the square of the level's error.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    standard_error: Annotated[float, Field(gt=0.0)]
    retained: float
    retained_error: Annotated[float, Field(gt=0.0)]
    level_error: Annotated[float, Field(ge=0.0)]
    people: int
    images: int
    noise: float
    gap: float

    @property
    def finds_members(self) -> bool:
        """Whether retained people are shown to be members (positive control, for the original)."""
        return self.retained > _ONE_SIDED * self.retained_error

    def metrics(self) -> dict[str, float]:
        """Return its metrics."""
        bound = NormalDist().inv_cdf(0.975) * self.standard_error
        return {
            "member_share": self.value,
            "member_share_low": self.value - bound,
            "member_share_high": self.value + bound,
            "member_share_retained": self.retained,
        }


def member_share(sites: Collection[ReferenceSums]) -> MemberShare | None:
    """Return the share over the forgotten people of all sites; None if it cannot be computed.

    The share of retained people and the noise are medians over sites, so no single site decides them.
    """
    able = [sums for sums in sites if sums.noise is not None]
    unseen = UnseenSums.added([*(sums.unseen for sums in sites), _of_all(sites)])
    level = _Level.of(unseen)
    forget, retain = [sums.forget for sums in able], [sums.retain for sums in able if sums.retain.gap]
    if level is None or not retain or not sum(part.gap for part in forget):
        return None
    noise = median(sums.noise for sums in able if sums.noise is not None)
    value, variance = level.share(forget)
    shares = [level.share([part])[0] for part in retain]
    gap, kept = sum(part.gap for part in forget), sum(part.gap for part in retain)
    degrees = [unseen.people - 2, max(1, sum(sums.noise_people for sums in able) - 2)]
    return MemberShare(
        value=value,
        standard_error=_error([variance, noise / gap], degrees),
        retained=median(shares),
        retained_error=_error([level.share(retain)[1], noise / kept], degrees),
        level_error=math.sqrt(variance),
        people=sum(part.people for part in forget),
        images=sum(part.images for part in forget),
        noise=noise,
        gap=gap,
    )


@dataclass(frozen=True)
class Left:
    """What is left of forgotten people, in units of what retained people show in the original.

    Attributes
    ----------
    value, standard_error
        The share divided by that of retained people in the original.
    level_error
        As in :class:`MemberShare`.
    people
        Number of forgotten people.
    spread
        Standard deviation of the difference between two single people.
    """

    value: float
    standard_error: float
    level_error: float
    people: int
    spread: float

    @classmethod
    def of(cls, original: MemberShare, model: MemberShare) -> Left:
        """Compare a model with its original, which must find members."""
        scale, spread = original.retained, math.sqrt(2.0 * model.noise * model.people / model.gap)
        return cls(
            model.value / scale, model.standard_error / scale, model.level_error / scale, model.people, spread / scale
        )

    @property
    def low(self) -> float:
        """Lower bound, one-sided 95%."""
        return self.value - _ONE_SIDED * self.standard_error

    @property
    def high(self) -> float:
        """Upper bound, one-sided 95%."""
        return self.value + _ONE_SIDED * self.standard_error

    @property
    def is_remembered(self) -> bool:
        """Whether more than half is shown to be left."""
        return self.low > HALF

    @property
    def is_conspicuous(self) -> bool:
        """Whether forgotten people are shown to be as far below zero, which also reveals them."""
        return self.high < -HALF

    @property
    def is_forgotten(self) -> bool:
        """Whether less than half is shown to be left."""
        return self.high < HALF and not self.is_conspicuous

    @property
    def says_nothing(self) -> bool:
        """Whether the bounds are too wide for a result."""
        return self.standard_error > _NO_RESULT

    @property
    def power(self) -> float:
        """Chance that this many people are shown to be forgotten, if nothing is left of them."""
        return NormalDist().cdf(HALF / self.standard_error - _ONE_SIDED)

    @property
    def least_seen(self) -> float:
        """The smallest amount that is distinguished from 0 with 80% power."""
        return (_ONE_SIDED + _LIKELY) * self.standard_error

    @property
    def people_to_decide(self) -> int | None:
        """Number of such people needed for 80% power to show that they are forgotten.

        None if no number is enough, because it takes more people never trained on.
        """
        room = (HALF / (_ONE_SIDED + _LIKELY)) ** 2 - self.level_error**2
        if room <= 0.0:
            return None
        return math.ceil(self.people * max(0.0, self.standard_error**2 - self.level_error**2) / room)

    def chance(self, value: float) -> float:
        """Return how often an attacker tells a person with this much left from a person never seen.

        It is the AUC of a single person's value; 0.5 is a guess.
        """
        return NormalDist().cdf(value / self.spread)

    @property
    def e_value(self) -> float:
        """The evidence that less than half is left: 1 is none, 20 corresponds to a test at 5%.

        It is the likelihood of the measurement if nothing is left, divided by that if half is. If half or more is left,
        its mean is at most 1. The same holds for a product, so values of a fleet's erasures multiply.
        """
        log = HALF * (HALF - 2.0 * self.value) / (2.0 * self.standard_error**2)
        return math.exp(min(max(log, -_LARGEST_LOG), _LARGEST_LOG))

    def __str__(self) -> str:
        return f"{self.value:.0%} [{self.low:.0%}, {self.high:.0%}]"


def _of_all(sites: Collection[ReferenceSums]) -> UnseenSums:
    heard = [sums.shared for sums in sites if sums.shared.people]
    return UnseenSums.middle(heard) if heard else UnseenSums()


@dataclass(frozen=True)
class _Level:
    """Converts a model's answers to those of a model of half the people, by two lines through people never seen."""

    line: tuple[float, float]
    half: tuple[float, float]
    covariance: Floats

    @classmethod
    def of(cls, unseen: UnseenSums) -> _Level | None:
        """Fit both lines; None with too few people, or if the model's answers do not follow the references."""
        now, half = _fitted(unseen.line), _fitted(unseen.half_line)
        if unseen.people < _FEWEST_UNSEEN or now is None or half is None:
            return None
        intercept, slope = now
        count, x, _, xx, _ = unseen.line
        products = np.zeros((LINE, LINE))
        products[np.triu_indices(LINE)] = unseen.products
        products += np.triu(products, 1).T
        # A person's residual, and the same times x, as sums of 1, x, z, xx and xz.
        scores = np.array([[-intercept, -slope, 1.0, 0.0, 0.0], [0.0, -intercept, 0.0, -slope, 1.0]])
        bread = np.linalg.inv(np.array([[count, x], [x, xx]]))
        meat = scores @ products @ scores.T * unseen.people / (unseen.people - 1)
        return cls(now, half, bread @ meat @ bread)

    def share(self, parts: Sequence[MemberSums]) -> tuple[float, float]:
        """Return the share of some people, and the part of its variance that comes from these lines."""
        weight, gap = sum(part.weight for part in parts), sum(part.gap for part in parts)
        predicted = sum(part.predicted for part in parts)
        (intercept, slope), (base, rise) = self.line, self.half
        beyond = sum(part.excess for part in parts) + predicted - intercept * weight
        gradient = np.array([-rise / slope * weight, -rise / slope**2 * beyond]) / gap
        share = (rise / slope * beyond + base * weight - predicted) / gap
        return share, max(0.0, float(gradient @ self.covariance @ gradient))


def _fitted(line: Sequence[float]) -> tuple[float, float] | None:
    """Return intercept and slope of the line with these sums; None if it does not rise."""
    count, x, z, xx, xz = line
    spread = count * xx - x * x
    if spread <= 1e-9 * max(1.0, count * xx):
        return None
    slope = (count * xz - x * z) / spread
    return ((z - slope * x) / count, slope) if slope > _LEAST_SLOPE else None


def _error(variances: Sequence[float], degrees: Sequence[int]) -> float:
    """Return the standard error of a sum, widened to Student's t (Welch and Satterthwaite) for few people."""
    total = sum(variances)
    freedom = total**2 / sum(part**2 / number for part, number in zip(variances, degrees, strict=True))
    return math.sqrt(total) * student_widening(freedom)
