"""What a predictor says of each image, without saying which image it was."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlfd_fleet.exceptions import DataError


class Role(StrEnum):
    """The part that a person plays in an audit."""

    RETAIN = "retain"
    FORGET = "forget"
    VALIDATION = "validation"
    TEST = "test"


ROLES: tuple[Role, ...] = tuple(Role)
_LABELS_A_NUMBER = 62
_FEWEST_ALIKE = 3


@dataclass(frozen=True)
class SampleScores:
    """One row an image: who (a number without meaning elsewhere), which part, and how well it is predicted.

    Attributes
    ----------
    role
        Index into :data:`ROLES`, shape ``(N,)``, uint8.
    person
        Number of the image's person, unique within a site and random, shape ``(N,)``, int64.
    label, prediction
        Class indices, shape ``(N,)``, int64; of a multi-label head the number of the combination, a bit a label. More
        than 62 labels take several numbers, ``(N, W)``, of 62 labels each.
    loss
        Cross-entropy of the true class, or combination, in nats, shape ``(N,)``, float64.
    """

    role: NDArray[np.uint8]
    person: NDArray[np.int64]
    label: NDArray[np.int64]
    prediction: NDArray[np.int64]
    loss: NDArray[np.float64]

    def __post_init__(self) -> None:
        """Refuse columns of unequal length and losses that are not numbers."""
        if len({len(getattr(self, field.name)) for field in fields(self)}) != 1:
            raise DataError("The columns of the audited samples differ in length; send one value an image.")
        if not np.isfinite(self.loss).all():
            raise DataError("An audited sample has a loss that is not finite; the model is broken.")

    def __len__(self) -> int:
        return len(self.loss)

    @property
    def right(self) -> NDArray[np.bool_]:
        """Which rows ``(N,)`` are predicted right; of several labels, all of them."""
        pairs = zip(numbers(self.prediction), numbers(self.label), strict=True)
        right: NDArray[np.bool_] = np.logical_and.reduce([said == true for said, true in pairs])
        return right

    def share_right(self, labels: int | None = None) -> NDArray[np.float64]:
        """Return how much of each row ``(N,)`` is predicted right: 1 or 0; of this many labels, the share of them."""
        if labels is None:
            return self.right.astype(np.float64)
        truth, said = self.applying(labels)
        share: NDArray[np.float64] = (truth == said).mean(axis=1)
        return share

    @classmethod
    def from_probabilities(
        cls,
        probabilities: NDArray[np.floating],
        label: NDArray[np.int64],
        person: NDArray[np.int64],
        role: NDArray[np.uint8],
    ) -> SampleScores:
        """Score probabilities ``(N, C)`` from any predictor, one row an image.

        ``label`` holds class indices ``(N,)``; or 0 and 1 ``(N, C)`` for the independent probabilities of a multi-label
        head, whose combination is then the class. Probabilities are bounded below by 1e-12, so that a certain mistake
        has a finite loss (27.6 nats a label).
        """
        if label.ndim == 2:
            loss = _binary_losses(probabilities, label).sum(axis=1)
            return cls(role, person, _combinations(label), _combinations(probabilities >= 0.5), loss)
        rows = np.arange(len(label))
        chosen = np.clip(probabilities[rows, label].astype(np.float64), 1e-12, 1.0)
        return cls(role, person, label, probabilities.argmax(axis=1).astype(np.int64), -np.log(chosen))

    @classmethod
    def of_each_label(
        cls,
        probabilities: NDArray[np.floating],
        label: NDArray[np.int64],
        person: NDArray[np.int64],
        role: NDArray[np.uint8],
    ) -> SampleScores:
        """Score the probabilities of a multi-label head ``(N, L)``, one row an image and label.

        Label l has the classes 2 l (it does not apply) and 2 l + 1, so that a balanced accuracy over classes is the
        mean of the labels' own.
        """
        count = label.shape[1]
        first = 2 * np.arange(count, dtype=np.int64)
        return cls(
            np.repeat(role, count),
            np.repeat(person, count),
            (first + label.astype(np.int64)).ravel(),
            (first + (probabilities >= 0.5)).ravel(),
            _binary_losses(probabilities, label).ravel(),
        )

    def each_label(self, labels: int) -> SampleScores:
        """Return rows as of :meth:`of_each_label` of an image with this many labels; their losses are its whole one."""
        truth, said = self.applying(labels)
        first = 2 * np.arange(labels, dtype=np.int64)
        return SampleScores(
            np.repeat(self.role, labels),
            np.repeat(self.person, labels),
            (first + truth).ravel(),
            (first + said).ravel(),
            np.repeat(self.loss, labels),
        )

    def applying(self, labels: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return which of this many labels apply to each image, and which the model says do; each ``(N, L)``."""
        word, bit = np.divmod(np.arange(labels), _LABELS_A_NUMBER)
        truth, said = (
            (np.stack(numbers(column), axis=1)[:, word] >> bit & 1).astype(np.bool_)
            for column in (self.label, self.prediction)
        )
        return truth, said

    @classmethod
    def concatenate(cls, parts: Iterable[SampleScores]) -> SampleScores:
        """Join parts whose people are different people; numbers are shifted so that they stay apart."""
        shifted, offset = [], 0
        for part in parts:
            shifted.append((part, part.person + offset))
            offset += int(part.person.max(initial=-1)) + 1
        if not shifted:
            raise DataError("There are no samples to audit; no site answered.")
        return cls(
            role=np.concatenate([part.role for part, _ in shifted]),
            person=np.concatenate([person for _, person in shifted]),
            label=np.concatenate([part.label for part, _ in shifted]),
            prediction=np.concatenate([part.prediction for part, _ in shifted]),
            loss=np.concatenate([part.loss for part, _ in shifted]),
        )

    def coarse(self) -> SampleScores:
        """Return the rows with losses as coarse as an audit needs them: each is the mean of three or more neighbours.

        A loss with all of its digits is a fingerprint: of an image that is audited twice, and of a photograph that two
        people have. Neighbours are next in loss, whatever their roles; equal ones are taken in the order of the rows.
        """
        if not len(self):
            return self
        order = np.lexsort([*self._answers(), self.role, self.loss])
        last = max(0, len(self) // _FEWEST_ALIKE - 1)
        group = np.minimum(np.arange(len(self)) // _FEWEST_ALIKE, last)
        loss = np.empty_like(self.loss)
        loss[order] = (np.bincount(group, weights=self.loss[order]) / np.bincount(group))[group]
        return SampleScores(self.role, self.person, self.label, self.prediction, loss)

    def canonical(self) -> SampleScores:
        """Return the rows in an order of their own: by role, then by the mean loss of their person, then by loss.

        What is measured must not depend on which site answered first, nor on the random numbers of people. People of
        one mean are in the order of their rows; those whose rows are alike, too, are the same to what is measured.
        """
        _, index = np.unique(self.person, return_inverse=True)
        first = np.lexsort([*self._answers(), self.loss, self.role, index])
        columns = (self.role, self.loss, self.label, self.prediction)
        rows = list(zip(*(column[first].tolist() for column in columns), strict=True))
        ends = np.cumsum(np.bincount(index))
        people = [rows[end - count : end] for end, count in zip(ends, np.bincount(index), strict=True)]
        keys = [(sum(row[1] for row in each) / len(each), each) for each in people]
        rank = np.empty(len(keys), dtype=np.int64)
        rank[sorted(range(len(keys)), key=keys.__getitem__)] = np.arange(len(keys))
        order = np.lexsort([*self._answers(), self.loss, rank[index], self.role])
        return SampleScores(
            self.role[order], rank[index][order], self.label[order], self.prediction[order], self.loss[order]
        )

    def _answers(self) -> list[NDArray[Any]]:
        return [*numbers(self.prediction), *numbers(self.label)]

    def of_role(self, role: Role) -> NDArray[np.bool_]:
        """Return which rows ``(N,)`` have this role."""
        mask: NDArray[np.bool_] = self.role == ROLES.index(role)
        return mask

    def of(self, *roles: Role) -> SampleScores:
        """Return the rows of these roles."""
        return self.rows(np.isin(self.role, [ROLES.index(role) for role in roles]))

    def rows(self, rows: NDArray[np.bool_] | NDArray[np.intp] | slice) -> SampleScores:
        """Return the rows of a mask ``(N,)``, of places or of a slice."""
        return SampleScores(*(getattr(self, field.name)[rows] for field in fields(self)))


def numbers(column: NDArray[Any]) -> list[NDArray[Any]]:
    """Return the numbers ``(N,)`` that classes or combinations are written in, the least one first."""
    return [column] if column.ndim == 1 else list(column.T)


def numbers_of_labels(labels: int) -> tuple[int, ...]:
    """Return the end of each number, itself left out, that combinations of this many labels are written in."""
    whole, rest = divmod(labels, _LABELS_A_NUMBER)
    return (2**_LABELS_A_NUMBER,) * whole + ((2**rest,) if rest else ())


def _combinations(label: NDArray[np.integer] | NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the number of each combination ``(N, L)`` of 0 and 1; of more than 62 labels numbers ``(N, W)``."""
    starts = range(0, label.shape[1], _LABELS_A_NUMBER)
    parts = [label[:, start : start + _LABELS_A_NUMBER].astype(np.int64) for start in starts]
    columns = [part @ (1 << np.arange(part.shape[1], dtype=np.int64)) for part in parts]
    return columns[0] if len(columns) == 1 else np.stack(columns, axis=1)


def _binary_losses(probabilities: NDArray[np.floating], label: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the cross-entropy of each label ``(N, L)``, nats."""
    chosen = np.where(label == 1, probabilities, 1.0 - probabilities).astype(np.float64)
    return -np.log(np.clip(chosen, 1e-12, 1.0))
