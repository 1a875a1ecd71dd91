"""Measure by reference models how much a model still knows about people, as sums that a site can send.

Each image has one or more pairs of answers: from a model trained on its person (IN) and from one that was not (OUT).
From one pair a linear fit predicts what another OUT model says, and how much more an IN model says: the image's gap. An
image with a small gap tells little, so images are weighted by their gaps::

    share = sum(gap * (said - predicted)) / sum(gap ** 2)

It is 0 for people whom a model never saw, and 1 for members of a model of half the people. A model of all people
answers differently about people never seen than a model of half of them. A straight line through people never trained
on corrects this.

The noise comes from the references: each never saw half of the people, and its answers about these differ from the
prediction as much as those after a correct erasure. With images weighted by gaps the variance of a share is ``noise /
sum(gap ** 2)``. So it is known beforehand what an audit can show.

A site sends sums over its people (:class:`ReferenceSums`). The coordinator computes one share from them
(:mod:`~dlfd_fleet.audit.shares`).
"""

from __future__ import annotations

from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from dlfd_fleet.audit.shift import Floats, ReferenceLosses, confidence

FEWEST_PEOPLE = 4
"""Fewest people of a site with answers of an IN and an OUT model; fewer cannot be fitted."""
_RIDGE = 10.0  # images; of a small site the fit goes towards the mean
_MOST_GAP, _MOST_SAID = 30.0, 14.0  # of confidences, which lie within 13.9
_DIGITS = 3
LINE = 5
"""The number of sums of a line: of 1, x, z, xx and xz."""
_MOMENTS = LINE * (LINE + 1) // 2
_LARGEST = (1.0, 14.0, 14.0, 196.0, 196.0)  # of an image
_ROUNDING = 1e-6
_ROUNDED = 1.01  # sums are sent with few digits
_LEAST_GAP = 1e-6  # mean square of an image's gap; with less nobody is remembered

Sum = Annotated[float, Field(ge=-1e30, le=1e30, allow_inf_nan=False)]
_People = Annotated[int, Field(ge=0, le=2**31 - 1)]
_Part = Annotated[float, Field(ge=0.0, le=1e30, allow_inf_nan=False)]
_LineSums = Annotated[tuple[Sum, ...], Field(min_length=LINE, max_length=LINE)]


class MemberSums(BaseModel):
    """Sums over people who were trained on, with answers of IN and OUT models.

    Attributes
    ----------
    people, images
        How many there are.
    weight, gap
        Sums of the images' gaps, and of their squares.
    predicted, excess
        Sums, weighted by gap, of the predicted answer of a model that never saw them, and of the excess over it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    people: _People = 0
    images: _People = 0
    weight: _Part = 0.0
    gap: _Part = 0.0
    predicted: Sum = 0.0
    excess: Sum = 0.0

    @model_validator(mode="after")
    def _of_such_images(self) -> Self:
        wrong = {
            "of people without images": self.people > self.images or (self.images > 0 and not self.people),
            "of larger gaps than answers can have": self.weight > _ROUNDED * _MOST_GAP * self.images,
            "of a gap that is not that of its images": self.weight**2 > _ROUNDED**3 * self.gap * self.images
            or self.gap > _ROUNDED * _MOST_GAP * self.weight
            or 0.0 < self.gap < _LEAST_GAP * self.images,
            "of surer answers than there are": max(abs(self.predicted), abs(self.excess) / 2.0)
            > _ROUNDED * _MOST_SAID * self.weight,
        }
        if said := [what for what, is_so in wrong.items() if is_so]:
            raise ValueError(f"the sums are {said[0]}")
        return self


class UnseenSums(BaseModel):
    """Sums over people whom no model was trained on, for two straight lines through their images.

    Attributes
    ----------
    people
        How many there are.
    line, products
        With x the mean of a pair of reference models and z the answer of the audited model: sums over images of 1, x,
        z, xx and xz, averaged over pairs; and sums over people of the products of each two of these, the upper triangle
        by rows.
    half_line
        The same sums with z the answers of reference models of other pairs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    people: _People = 0
    line: _LineSums = (0.0,) * LINE
    products: Annotated[tuple[Sum, ...], Field(min_length=_MOMENTS, max_length=_MOMENTS)] = (0.0,) * _MOMENTS
    half_line: _LineSums = (0.0,) * LINE

    @model_validator(mode="after")
    def _of_such_images(self) -> Self:
        images = self.line[0]
        # One person alone may have all of the images, and none has more.
        largest = [[_LARGEST[one] * _LARGEST[other] * images**2 for other in range(LINE)] for one in range(LINE)]
        bounded = all(
            abs(each) <= most * images * _ROUNDED + _ROUNDING
            for line in (self.line, self.half_line)
            for each, most in zip(line, _LARGEST, strict=True)
        ) and all(
            abs(each) <= largest[one][other] * _ROUNDED + _ROUNDING and (one != other or each >= 0.0)
            for each, one, other in zip(self.products, *np.triu_indices(LINE), strict=True)
        )
        counted = self.people <= images + _ROUNDING and (self.people > 0 or not images)
        if not bounded or images < 0.0 or not counted:
            raise ValueError("the sums are of surer answers than there are, or of people without images")
        return self

    @property
    def images(self) -> float:
        """Number of images of these people."""
        return self.line[0]


class ReferenceSums(BaseModel):
    """The sums that a site with references sends beside an audit; they hold no single person's row.

    Attributes
    ----------
    forget, retain
        Sums over people to be forgotten, and over some retained people.
    noise
        Variance of a share times the sum of its squared gaps, from the reference models' answers.
    noise_people
        Number of people on whom the noise was measured.
    unseen, shared
        Sums over people never trained on: those of this site alone, and those whom all sites hold.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    forget: MemberSums = MemberSums()
    retain: MemberSums = MemberSums()
    noise: Annotated[float, Field(ge=1e-6, le=1e6, allow_inf_nan=False)] | None = None
    noise_people: _People = 0
    unseen: UnseenSums = UnseenSums()
    shared: UnseenSums = UnseenSums()


def reference_sums(
    loss: Floats,
    references: ReferenceLosses,
    person: NDArray[np.int64],
    *,
    forget: NDArray[np.bool_],
    retain: NDArray[np.bool_],
    unseen: NDArray[np.bool_],
    shared: NDArray[np.bool_],
) -> ReferenceSums | None:
    """Return the sums that a site sends for a model; None if its references have fewer than two pairs of answers.

    Parameters
    ----------
    loss, person
        The model's losses of the site's images, and their people, each ``(N,)``.
    forget, retain, unseen, shared
        Which images are of people to be forgotten, of retained ones, and of those never trained on: whom the site alone
        holds, and whom all sites hold. Each ``(N,)``.
    """
    said, trained = confidence(references.loss), references.trained
    known = ~np.isnan(references.loss)
    first, second = slice(0, len(said) // 2 * 2, 2), slice(1, None, 2)
    both = known[first] & known[second]
    is_pair, is_strange = both & (trained[first] ^ trained[second]), both & ~trained[first] & ~trained[second]
    members = forget | retain
    # A site that had too few people for one model has no pair of it, of anybody.
    pairs = np.flatnonzero(2 * is_pair[:, members].sum(axis=1) > members.sum())
    if len(pairs) < 2:
        return None
    now = confidence(loss)
    inside = np.where(trained[first], said[first], said[second])[pairs]
    outside = np.where(trained[first], said[second], said[first])[pairs]
    usable, strange = is_pair[pairs].all(axis=0), is_strange[pairs].all(axis=0)
    of_pairs = np.stack([said[first][pairs], said[second][pairs]])

    def unseen_sums(rows: NDArray[np.bool_]) -> UnseenSums:
        rows = rows & strange
        return _unseen_sums(of_pairs[:, :, rows], now[rows], person[rows])

    sums = ReferenceSums(unseen=unseen_sums(unseen), shared=unseen_sums(shared))
    rows = members & usable
    if len(np.unique(person[rows])) < FEWEST_PEOPLE:
        return sums
    fit = _Fit.of(inside[:, rows], outside[:, rows], person[rows])
    predicted, gap = fit.predict(inside.mean(axis=0), outside.mean(axis=0))

    def member_sums(rows: NDArray[np.bool_]) -> MemberSums:
        rows = rows & usable
        weight = gap[rows]
        if (weight**2).sum() < _LEAST_GAP * _ROUNDED * len(weight):
            weight = np.zeros_like(weight)
        columns = {
            "weight": weight,
            "gap": weight**2,
            "predicted": weight * predicted[rows],
            "excess": weight * (now[rows] - predicted[rows]),
        }
        return MemberSums(
            people=len(np.unique(person[rows])),
            images=int(rows.sum()),
            **{name: _coarse(float(column.sum())) for name, column in columns.items()},
        )

    return sums.model_copy(
        update={
            "forget": member_sums(forget),
            "retain": member_sums(retain),
            "noise": _coarse(min(max(fit.noise, 1e-6), 1e6)),
            "noise_people": fit.people,
        }
    )


class _Fit:
    """A fit of a site's reference models to one another: predictions, gaps and noise."""

    def __init__(self, coefficients: Floats, noise: float, people: int) -> None:
        self._coefficients, self.noise, self.people = coefficients, noise, people

    @classmethod
    def of(cls, inside: Floats, outside: Floats, person: NDArray[np.int64]) -> _Fit:
        """Fit answers ``(pairs, N)``: each pair's from the mean of the others'."""
        pairs = len(outside)
        others = [np.delete(np.arange(pairs), pair) for pair in range(pairs)]
        features = np.concatenate(
            [np.stack([outside[each].mean(axis=0), inside[each].mean(axis=0)], axis=1) for each in others]
        )
        answers = np.stack([outside.ravel(), inside.ravel()], axis=1)
        middle, level = features.mean(axis=0), answers.mean(axis=0)
        centred = features - middle
        slopes = np.linalg.solve(centred.T @ centred + _RIDGE * np.eye(2), centred.T @ (answers - level))
        fit = cls(np.vstack([level - middle @ slopes, slopes]), 0.0, len(np.unique(person)))

        whole, weight = fit.predict(inside.mean(axis=0), outside.mean(axis=0))
        found = squares = less = 0.0
        for pair, each in enumerate(others):
            predicted, gap = fit.predict(inside[each].mean(axis=0), outside[each].mean(axis=0))
            found += float((_by_person(gap * (outside[pair] - predicted), person) ** 2).sum())
            squares += float((gap**2).sum())
            # An audit predicts from one pair more, which is that much nearer to what all pairs would say.
            less += float((_by_person(weight * (predicted - whole), person) ** 2).sum())
        noise = found / max(squares, 1e-12)
        noise = max(noise - less / max(pairs * float((weight**2).sum()), 1e-12), noise / 3.0)
        # Of few people a fit takes some of the noise away.
        return cls(fit._coefficients, noise * fit.people / (fit.people - 2), fit.people)

    def predict(self, inside: Floats, outside: Floats) -> tuple[Floats, Floats]:
        """Return the predicted answer of a model that never saw the people, and the gap to one that did."""
        features = np.stack([np.ones_like(outside), outside, inside], axis=1)
        stranger, member = (features @ self._coefficients).T
        gap: Floats = np.clip(member - stranger, 0.0, _MOST_GAP)
        return np.clip(stranger, -_MOST_SAID, _MOST_SAID), gap


def _unseen_sums(of_pairs: Floats, now: Floats, person: NDArray[np.int64]) -> UnseenSums:
    """Return the sums of answers ``(2, pairs, N)`` and of the audited model's answers ``(N,)``."""
    means, pairs = of_pairs.mean(axis=0), of_pairs.shape[1]
    if not len(now):
        return UnseenSums()
    each = np.stack([_by_person(_line(x, now), person) for x in means]).mean(axis=0)
    half = [
        _line(means[other], z)
        for pair in range(pairs)
        for z in of_pairs[:, pair]
        for other in range(pairs)
        if other != pair
    ]
    upper = np.triu_indices(LINE)
    return UnseenSums(
        people=len(each),
        line=(float(len(now)), *map(_coarse, each.sum(axis=0)[1:])),
        products=tuple(map(_coarse, (each.T @ each)[upper])),
        half_line=(float(len(now)), *map(_coarse, np.mean(half, axis=0).sum(axis=0)[1:])),
    )


def _line(x: Floats, z: Floats) -> Floats:
    return np.stack([np.ones_like(x), x, z, x * x, x * z], axis=1)


def _by_person(values: Floats, person: NDArray[np.int64]) -> Floats:
    """Return the sum for each person of values ``(N,)`` or ``(N, K)``."""
    _, index = np.unique(person, return_inverse=True)
    sums = np.zeros((int(index.max(initial=-1)) + 1, *values.shape[1:]))
    np.add.at(sums, index, values)
    return sums


def _coarse(value: float) -> float:
    """Round to three digits. More would identify a person and change no verdict."""
    return float(f"{value:.{_DIGITS}g}")
