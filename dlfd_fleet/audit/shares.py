"""Compute what is left of forgotten people, as a share of what members show, for a verdict by references.

It combines the sums that sites send (:mod:`~dlfd_fleet.audit.by_references`), and compares with retained people in the
original. 1 is left if nothing was unlearned, and 0 if the model never saw the forgotten people.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from statistics import NormalDist, median
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
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
_LARGEST_E_VALUE = 1000.0  # more would rest on tails of distributions that nobody has seen
_Number = Annotated[float, Field(allow_inf_nan=False)]
_Error = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


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
    without
        The same without all that one site sent, by site. A single site could decide the share of all, so a verdict
        reads these as well. They are not part of a record.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: _Number
    standard_error: _Error
    retained: _Number
    retained_error: _Error
    level_error: Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
    people: int
    images: int
    noise: _Number
    gap: _Number
    without: Mapping[str, MemberShare] = Field(default_factory=dict, exclude=True, repr=False)

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


def member_share(sites: Mapping[str, ReferenceSums]) -> MemberShare | None:
    """Return the share over the forgotten people of all sites, and without each; None if it cannot be computed.

    The share of retained people and the noise are medians over sites, so no single one of three sites or more decides
    them. Of two sites the lower share and the higher noise count: then neither can hide a leak.
    """
    fleet = _Fleet.of(list(sites.values()))
    everybody = fleet.share()
    if everybody is None:
        return None
    rest = {site: fleet.without(number).share() for number, site in enumerate(sites)}
    return everybody.model_copy(update={"without": {site: share for site, share in rest.items() if share is not None}})


@dataclass(frozen=True)
class _Fleet:
    """What all sites sent; the first axis of each array is that of the sites.

    Attributes
    ----------
    unseen, shared
        People, sums of the line, and sums of the line of half models ``(S, 1 + 2 * LINE)``: of people whom a site alone
        holds, and of those whom all hold.
    products, shared_products
        Their products ``(S, LINE, LINE)``.
    forget, retain
        People, images, weight, gap, predicted and excess ``(S, 6)``; zeros for a site without noise.
    noise
        The noise, and the people it was measured on ``(S, 2)``; NaN for a site without.
    """

    unseen: Floats
    products: Floats
    shared: Floats
    shared_products: Floats
    forget: Floats
    retain: Floats
    noise: Floats

    @classmethod
    def of(cls, sites: list[ReferenceSums]) -> Self:
        """Arrange the sums of sites."""
        able = [each if each.noise is not None else ReferenceSums() for each in sites]
        return cls(
            unseen=np.array([_lines(each.unseen) for each in sites]).reshape(-1, 1 + 2 * LINE),
            products=np.array([_square(each.unseen) for each in sites]).reshape(-1, LINE, LINE),
            shared=np.array([_lines(each.shared) for each in sites]).reshape(-1, 1 + 2 * LINE),
            shared_products=np.array([_square(each.shared) for each in sites]).reshape(-1, LINE, LINE),
            forget=np.array([_numbers(each.forget) for each in able]).reshape(-1, 6),
            retain=np.array([_numbers(each.retain) for each in able]).reshape(-1, 6),
            noise=np.array([(each.noise or math.nan, each.noise_people) for each in able]).reshape(-1, 2),
        )

    def without(self, site: int) -> Self:
        """Return the same without one site."""
        return type(self)(*(np.delete(getattr(self, field.name), site, axis=0) for field in fields(self)))

    def share(self) -> MemberShare | None:
        """Return the share over these sites; None if it cannot be computed."""
        level, noise = _Level.of(self), self.noise[~np.isnan(self.noise[:, 0])]
        forget, retain = self.forget.sum(axis=0), self.retain[self.retain[:, _GAP] > 0.0]
        if level is None or not len(retain) or not forget[_GAP]:
            return None
        spread, kept = _middle(noise[:, 0].tolist(), max), retain.sum(axis=0)
        value, variance = level.share(forget)
        degrees = [self.unseen_sums()[0] - 2.0, max(1.0, noise[:, 1].sum() - 2.0)]
        return MemberShare(
            value=value,
            standard_error=_error([variance, spread / forget[_GAP]], degrees),
            retained=_middle([level.share(part)[0] for part in retain], min),
            retained_error=_error([level.share(kept)[1], spread / kept[_GAP]], degrees),
            level_error=math.sqrt(variance),
            people=int(forget[0]),
            images=int(forget[1]),
            noise=spread,
            gap=float(forget[_GAP]),
        )

    def unseen_sums(self) -> Floats:
        """Return the sums over all people never trained on; of people whom all sites hold, what is in the middle."""
        heard = self.shared[self.shared[:, 0] > 0.0]
        sums: Floats = self.unseen.sum(axis=0) + (np.median(heard, axis=0) if len(heard) else 0.0)
        return sums

    def scatter(self, scores: Floats) -> Floats:
        """Return the sum over unseen people of the products of two scores ``(2, LINE)`` of each, ``(2, 2)``.

        The part of a site is never negative, whatever it sent: it cannot take away what other people vary by.
        """
        heard = self.shared_products[self.shared[:, 0] > 0.0]
        parts = [*self.products, np.median(heard, axis=0)] if len(heard) else [*self.products]
        values, vectors = np.linalg.eigh(scores @ np.stack(parts) @ scores.T)
        summed: Floats = np.einsum("sik,sk,sjk->ij", vectors, np.clip(values, 0.0, None), vectors)
        return summed


_GAP = 3  # the column of _numbers


def _middle(values: list[float], of_two: Callable[[list[float]], float]) -> float:
    return of_two(values) if len(values) == 2 else median(values)


def _numbers(part: MemberSums) -> tuple[float, ...]:
    return part.people, part.images, part.weight, part.gap, part.predicted, part.excess


def _lines(unseen: UnseenSums) -> tuple[float, ...]:
    return unseen.people, *unseen.line, *unseen.half_line


def _square(unseen: UnseenSums) -> Floats:
    products: NDArray[np.float64] = np.zeros((LINE, LINE))
    products[np.triu_indices(LINE)] = unseen.products
    return products + np.triu(products, 1).T


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
    scale_error
        Relative standard error of what retained people show.
    """

    value: float
    standard_error: float
    level_error: float
    people: int
    spread: float
    scale_error: float = 0.0

    @classmethod
    def of(cls, original: MemberShare, model: MemberShare) -> Left:
        """Compare a model with its original, which must find members."""
        scale, spread = original.retained, math.sqrt(2.0 * model.noise * model.people / model.gap)
        return cls(
            model.value / scale,
            model.standard_error / scale,
            model.level_error / scale,
            model.people,
            spread / scale,
            original.retained_error / scale,
        )

    @property
    def low(self) -> float:
        """Lower bound, one-sided 95%, of a ratio in which both parts have errors (Fieller 1954)."""
        return (self.value - self._half_width) / self._certain

    @property
    def high(self) -> float:
        """Upper bound, one-sided 95%."""
        return (self.value + self._half_width) / self._certain

    @property
    def _certain(self) -> float:
        return 1.0 - (_ONE_SIDED * self.scale_error) ** 2  # above 0, because the original finds members

    @property
    def _half_width(self) -> float:
        return _ONE_SIDED * math.sqrt((self.scale_error * self.value) ** 2 + self._certain * self.standard_error**2)

    @property
    def _error_at_half(self) -> float:
        """The standard error of the distance from half of what members show."""
        return math.hypot(self.standard_error, HALF * self.scale_error)

    @property
    def is_remembered(self) -> bool:
        """Whether more than half is shown to be left."""
        return self.low > HALF

    @property
    def is_conspicuous(self) -> bool:
        """Whether forgotten people are shown to be as far below zero, which also reveals them."""
        return self.high < -HALF

    @property
    def may_be_conspicuous(self) -> bool:
        """Whether forgotten people are shown to be below zero, and are probably as far below as half."""
        return self.high < 0.0 and self.value < -HALF and not self.is_conspicuous

    @property
    def is_forgotten(self) -> bool:
        """Whether less than half is shown to be left."""
        return self.high < HALF and not self.is_conspicuous

    @property
    def says_nothing(self) -> bool:
        """Whether the bounds are too wide for a result: they exclude neither half nor as far below zero."""
        return self.standard_error > _NO_RESULT and not self.is_remembered and not self.is_conspicuous

    @property
    def power(self) -> float:
        """Chance that this many people are shown to be forgotten, if nothing is left of them."""
        return NormalDist().cdf((HALF - _ONE_SIDED * self._error_at_half) / self.standard_error)

    @property
    def least_seen(self) -> float:
        """The smallest amount that is distinguished from 0 with 80% power."""
        return (_ONE_SIDED + _LIKELY) * self.standard_error

    @property
    def people_to_decide(self) -> int | None:
        """Number of such people needed for 80% power to show that they are forgotten.

        None if no number is enough, because it takes more people never trained on.
        """
        # The error with which the power is 80%: the root of a quadratic equation.
        curve = _ONE_SIDED**2 - _LIKELY**2
        error = math.sqrt(_LIKELY**2 + 4.0 * curve * HALF**2 * self._certain) - _LIKELY
        room = (error / (2.0 * curve)) ** 2 - self.level_error**2
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
        its mean is at most 1. The same holds for a product over different people, so values of a fleet's erasures
        multiply. A value below zero counts as zero. Conspicuous people are no evidence.
        """
        if self.is_conspicuous:
            return 1.0
        log = HALF * (HALF - 2.0 * max(0.0, self.value)) / (2.0 * self._error_at_half**2)
        return min(math.exp(min(max(log, -_LARGEST_LOG), _LARGEST_LOG)), _LARGEST_E_VALUE)

    def __str__(self) -> str:
        return f"{self.value:.0%} [{self.low:.0%}, {self.high:.0%}]"


@dataclass(frozen=True)
class _Level:
    """Converts a model's answers to those of a model of half the people, by two lines through people never seen."""

    line: tuple[float, float]
    half: tuple[float, float]
    covariance: Floats

    @classmethod
    def of(cls, fleet: _Fleet) -> _Level | None:
        """Fit both lines; None with too few people, or if the model's answers do not follow the references."""
        sums = fleet.unseen_sums()
        people, line = sums[0], sums[1 : 1 + LINE]
        now, half = _fitted(line), _fitted(sums[1 + LINE :])
        if people < _FEWEST_UNSEEN or now is None or half is None:
            return None
        intercept, slope = now
        # A person's residual, and the same times x, as sums of 1, x, z, xx and xz.
        scores = np.array([[-intercept, -slope, 1.0, 0.0, 0.0], [0.0, -intercept, 0.0, -slope, 1.0]])
        bread = np.linalg.inv(np.array([[line[0], line[1]], [line[1], line[3]]]))
        return cls(now, half, bread @ fleet.scatter(scores) @ bread * people / (people - 1.0))

    def share(self, part: Floats) -> tuple[float, float]:
        """Return the share of some people, and the part of its variance that comes from these lines."""
        _, _, weight, gap, predicted, excess = part.tolist()
        (intercept, slope), (base, rise) = self.line, self.half
        beyond = excess + predicted - intercept * weight
        gradient = np.array([-rise / slope * weight, -rise / slope**2 * beyond]) / gap
        share = (rise / slope * beyond + base * weight - predicted) / gap
        return share, max(0.0, float(gradient @ self.covariance @ gradient))


def _fitted(line: Floats) -> tuple[float, float] | None:
    """Return intercept and slope of the line with these sums; None if it does not rise."""
    count, x, z, xx, xz = line.tolist()
    spread = count * xx - x * x
    if spread <= 1e-9 * max(1.0, count * xx):
        return None
    slope = (count * xz - x * z) / spread
    return ((z - slope * x) / count, slope) if slope > _LEAST_SLOPE else None


def _error(variances: list[float], degrees: list[float]) -> float:
    """Return the standard error of a sum, widened to Student's t (Welch and Satterthwaite) for few people."""
    total = sum(variances)
    freedom = total**2 / sum(part**2 / number for part, number in zip(variances, degrees, strict=True))
    return math.sqrt(total) * student_widening(freedom)
