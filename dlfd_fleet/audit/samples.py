"""Hold a predictor's answer for each image, without naming the image."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlfd_fleet.exceptions import DataError


class Role(StrEnum):
    """The role of a person in an audit."""

    RETAIN = "retain"
    FORGET = "forget"
    VALIDATION = "validation"
    TEST = "test"


ROLES: tuple[Role, ...] = tuple(Role)
_LABELS_A_NUMBER = 62
_FEWEST_ALIKE = 3


@dataclass(frozen=True)
class SampleScores:
    """One row an image: person (a number), role, label, prediction and loss.

    Attributes
    ----------
    role
        Index into :data:`ROLES`, shape ``(N,)``, uint8.
    person
        Random person number of each image, unique within a site, shape ``(N,)``, int64.
    label, prediction
        Class indices, shape ``(N,)``, int64. For labels, the combination as a number with one bit for each label; more
        than 62 labels take several numbers, ``(N, W)``.
    loss
        Cross-entropy of the true class, or combination, in nats, shape ``(N,)``, float64.
    """

    role: NDArray[np.uint8]
    person: NDArray[np.int64]
    label: NDArray[np.int64]
    prediction: NDArray[np.int64]
    loss: NDArray[np.float64]

    def __post_init__(self) -> None:
        """Refuse columns of different lengths and losses that are not numbers."""
        if len({len(getattr(self, field.name)) for field in fields(self)}) != 1:
            raise DataError("The columns of the audited samples differ in length; send one value an image.")
        if not np.isfinite(self.loss).all():
            raise DataError("An audited sample has a loss that is not finite; the model is broken.")

    def __len__(self) -> int:
        return len(self.loss)

    @property
    def right(self) -> NDArray[np.bool_]:
        """Which rows ``(N,)`` are predicted right; with labels, all of an image's labels."""
        pairs = zip(numbers(self.prediction), numbers(self.label), strict=True)
        right: NDArray[np.bool_] = np.logical_and.reduce([said == true for said, true in pairs])
        return right

    def share_right(self, labels: int | None = None) -> NDArray[np.float64]:
        """Return how much of each row ``(N,)`` is right: 1 or 0, or with labels the share of right labels."""
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

        ``label`` holds class indices ``(N,)``. For a multi-label head it holds 0 and 1, ``(N, C)``, and the combination
        is the class. Probabilities are at least 1e-12, so losses are finite (27.6 nats a label).
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

        Label l has the classes 2 l (does not apply) and 2 l + 1, so that balanced accuracy over classes is the mean
        over labels.
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
        """Return rows as :meth:`of_each_label` does, from images with labels; each has the image's loss."""
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
        """Return which of this many labels apply to each image, and which are predicted; each ``(N, L)``."""
        word, bit = np.divmod(np.arange(labels), _LABELS_A_NUMBER)
        truth, said = (
            (np.stack(numbers(column), axis=1)[:, word] >> bit & 1).astype(np.bool_)
            for column in (self.label, self.prediction)
        )
        return truth, said

    @classmethod
    def concatenate(cls, parts: Iterable[SampleScores]) -> SampleScores:
        """Join parts with different people; person numbers are shifted so that they differ."""
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
        """Return the rows with coarse losses: each is the mean of at least three similar losses.

        An exact loss would identify an image in another audit, or a photograph that two people have. Neighbours are
        next in loss, whatever their roles; equal losses keep the order of the rows.
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
        """Return the rows in a fixed order: by role, then by the mean loss of their person, then by loss.

        So measurements do not depend on the order of sites or on person numbers. People with equal means are ordered by
        their rows; if these are equal, too, their order does not matter.
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
        """Return the rows of a mask ``(N,)``, of indices or of a slice."""
        return SampleScores(*(getattr(self, field.name)[rows] for field in fields(self)))


def numbers(column: NDArray[Any]) -> list[NDArray[Any]]:
    """Return the numbers ``(N,)`` in which classes or combinations are stored, the lowest first."""
    return [column] if column.ndim == 1 else list(column.T)


def numbers_of_labels(labels: int) -> tuple[int, ...]:
    """Return the exclusive upper limit of each number that stores combinations of this many labels."""
    whole, rest = divmod(labels, _LABELS_A_NUMBER)
    return (2**_LABELS_A_NUMBER,) * whole + ((2**rest,) if rest else ())


def _combinations(label: NDArray[np.integer] | NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the number of each combination ``(N, L)`` of 0 and 1, or numbers ``(N, W)`` for more than 62 labels."""
    starts = range(0, label.shape[1], _LABELS_A_NUMBER)
    parts = [label[:, start : start + _LABELS_A_NUMBER].astype(np.int64) for start in starts]
    columns = [part @ (1 << np.arange(part.shape[1], dtype=np.int64)) for part in parts]
    return columns[0] if len(columns) == 1 else np.stack(columns, axis=1)


def _binary_losses(probabilities: NDArray[np.floating], label: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the cross-entropy of each label ``(N, L)``, nats."""
    chosen = np.where(label == 1, probabilities, 1.0 - probabilities).astype(np.float64)
    return -np.log(np.clip(chosen, 1e-12, 1.0))
