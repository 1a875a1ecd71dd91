"""Compute the fleet's scores, with bounds from a bootstrap over people.

Images of one person are correlated, so a resample draws people, not images. All scores are two-sided: losses far above
those of unseen people reveal forgotten people as much as losses far below.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from dlfd_fleet.audit.attacks import accuracy_estimate, auc_estimate, loss_attack
from dlfd_fleet.audit.bootstrap import Estimate, Floats, Unit, person_sums, ratio, ratio_of_sums, units
from dlfd_fleet.audit.samples import Role, SampleScores
from dlfd_fleet.audit.shares import MemberShare
from dlfd_fleet.exceptions import DataError

_MOST_RETAINED = 2048  # images


class Scores(BaseModel):
    """All scores of one model; the names are those of MLflow, tables and reports."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    test_accuracy: Estimate | None
    """None if no unseen people were audited, like all scores that need them."""
    balanced_accuracy: Estimate | None
    retain_accuracy: Estimate
    forget_accuracy: Estimate | None
    mia_accuracy: Estimate | None
    mia_auc: Estimate | None
    forgetting_score: Unit | None
    nomus: Unit | None
    control_auc: Estimate | None
    """AUC between two halves of people never trained on: the negative control."""
    majority_baseline: Unit | None
    """Test accuracy of always answering the most frequent class, or the most frequent value of each label."""
    unseen_classes: int
    """Number of classes among unseen people; with one, a collapse cannot be seen. With labels: 2, or 1 if each label
    has only one value."""
    forget_images: int
    unseen_images: int
    retain_balanced_accuracy: Estimate | None = None
    """Balanced accuracy on retained people, if nobody is unseen; it shows a collapse."""
    retain_auc: Estimate | None = None
    """If nobody is unseen: AUC of forgotten people's losses against those of retained people. 0.5 if the model knows
    both equally. A retrained model shows its value for a model that never saw the forgotten people."""
    member_share: MemberShare | None = None
    """How much of what the model shows of members it shows of forgotten people; None unless reference models have
    answered for all of them."""

    def metrics(self) -> dict[str, float]:
        """Return one number for each name, with bounds as ``NAME_low`` and ``NAME_high``."""
        flat: dict[str, float] = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, Estimate):
                flat |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
            elif isinstance(value, MemberShare):
                flat |= value.metrics()
            elif value is not None:
                flat[name] = float(value)
        return flat


SCORE_NAMES: tuple[str, ...] = (
    "test_accuracy",
    "balanced_accuracy",
    "retain_accuracy",
    "forget_accuracy",
    "mia_accuracy",
    "mia_auc",
    "forgetting_score",
    "nomus",
)


def forgetting_score(attack: float) -> float:
    """Return ``|attack - 0.5|`` of an attack accuracy or AUC: 0 is best, 0.5 is worst."""
    return abs(attack - 0.5)


def nomus(test_accuracy: float, mia_accuracy: float) -> float:
    """Return NoMUS, ``(test accuracy + 1 - 2 |MIA - 0.5|) / 2`` (arXiv 2409.14747): 1 is perfect.

    A collapsed model scores high. Always read it with the balanced accuracy.
    """
    return (test_accuracy + 1.0 - 2.0 * forgetting_score(mia_accuracy)) / 2.0


def gap_to_retrain(candidate: Scores, retrained: Scores) -> float:
    """Return the mean absolute difference of four scores between a model and a retrained one; 0 is best.

    This is the average gap of Fan et al. (arXiv 2310.12508): test, retain, forget and MIA accuracy. Scores that were
    not measured are left out.
    """
    pairs = [
        (getattr(candidate, name), getattr(retrained, name))
        for name in ("test_accuracy", "retain_accuracy", "forget_accuracy", "mia_accuracy")
    ]
    return float(np.mean([abs(one.value - other.value) for one, other in pairs if one and other]))


def measure(
    samples: SampleScores,
    *,
    unseen: Role = Role.TEST,
    resamples: int = 2000,
    seed: int = 0,
    labels: int | None = None,
) -> Scores:
    """Score one model by its answers for each image.

    With labels, accuracy is the share of right labels. Balanced accuracy is the mean over labels that have both values
    among unseen people. The attack is on whole images.

    Parameters
    ----------
    samples
        Rows of retained, forgotten and unseen people. The forget set may be empty. Without unseen people the scores
        that need them are None.
    unseen
        Which people never trained on are used: validation people for choices, test people for the evidence.
    resamples, seed
        Bootstrap resamples over people, and their seed.
    labels
        Number of labels of an image, for a model with labels.

    Raises
    ------
    DataError
        If there are no rows of the retain set.
    """
    samples = samples.canonical()
    outside, retain, forget = samples.of(unseen), samples.of(Role.RETAIN), samples.of(Role.FORGET)
    if not len(retain):
        raise DataError(
            "No retain images were audited, so nothing can be measured: that needs people of the split 'train' "
            "who have not asked to be forgotten; add some to a site's manifest."
        )
    generator = np.random.default_rng(seed)
    if not len(outside):
        balanced = _Balanced.of(retain, labels)
        return Scores(
            test_accuracy=None,
            balanced_accuracy=None,
            retain_accuracy=_accuracy(retain, resamples, generator, labels),
            forget_accuracy=_accuracy(forget, resamples, generator, labels) if len(forget) else None,
            mia_accuracy=None,
            mia_auc=None,
            forgetting_score=None,
            nomus=None,
            control_auc=None,
            majority_baseline=None,
            unseen_classes=0,
            forget_images=len(forget),
            unseen_images=0,
            retain_balanced_accuracy=ratio_of_sums(balanced.hits, balanced.counts, resamples, generator),
            retain_auc=_against_retained(retain, forget, resamples, generator) if len(forget) else None,
        )
    test = _accuracy(outside, resamples, generator, labels)
    attack = auc = None
    if len(forget):
        losses = loss_attack(samples, unseen=unseen)
        attack = accuracy_estimate(losses, resamples, generator)
        auc = auc_estimate(losses, resamples, generator)
    other = Role.VALIDATION if unseen is Role.TEST else Role.TEST
    has_control = bool(samples.of_role(other).any())
    control = (
        auc_estimate(loss_attack(samples, members=other, unseen=unseen), resamples, generator) if has_control else None
    )
    balanced = _Balanced.of(outside, labels)
    return Scores(
        test_accuracy=test,
        balanced_accuracy=ratio_of_sums(balanced.hits, balanced.counts, resamples, generator),
        retain_accuracy=_accuracy(retain, resamples, generator, labels),
        forget_accuracy=_accuracy(forget, resamples, generator, labels) if len(forget) else None,
        mia_accuracy=attack,
        mia_auc=auc,
        forgetting_score=forgetting_score(attack.value) if attack else None,
        nomus=nomus(test.value, attack.value) if attack else None,
        control_auc=control,
        majority_baseline=balanced.majority,
        unseen_classes=balanced.classes,
        forget_images=len(forget),
        unseen_images=len(outside),
    )


def _against_retained(
    retain: SampleScores, forget: SampleScores, resamples: int, generator: np.random.Generator
) -> Estimate:
    """Return the chance that a forgotten image has a lower loss than a retained one.

    Unlike a loss it does not depend on how sure a model is in general, so it compares two models.
    """
    # Retained images may be many; every k-th of the canonical order, which is by person, tells as much.
    few = retain.rows(np.unique(np.linspace(0, len(retain) - 1, _MOST_RETAINED).astype(np.intp)))
    return auc_estimate(loss_attack(SampleScores.concatenate([few, forget]), unseen=Role.RETAIN), resamples, generator)


def _accuracy(samples: SampleScores, resamples: int, generator: np.random.Generator, labels: int | None) -> Estimate:
    hits = samples.share_right(labels)[:, None]
    return ratio(samples.person, hits, np.ones_like(hits), resamples, generator)


@dataclass(frozen=True)
class _Balanced:
    """Counts for a balanced accuracy, with columns for classes or for both values of labels.

    Attributes
    ----------
    hits, counts
        Right predictions and images by person and column, ``(P, K)``.
    majority
        Accuracy of the most frequent answer.
    classes
        Number of classes; a constant answer is right for one of them.
    """

    hits: Floats
    counts: Floats
    majority: float
    classes: int

    @classmethod
    def of(cls, samples: SampleScores, labels: int | None) -> _Balanced:
        """Count the images of each class, or of each value of labels that have both values."""
        unit = units(samples.person)
        return cls._of_classes(samples, unit) if labels is None else cls._of_labels(samples, unit, labels)

    @classmethod
    def _of_classes(cls, samples: SampleScores, unit: NDArray[np.int64]) -> _Balanced:
        _, people = np.unique(unit, return_inverse=True)
        shown, column = np.unique(samples.label, return_inverse=True)
        shape = (int(people.max()) + 1, len(shown))
        # Summed by person at once: a column a class for each image would be far more.
        cell = people.reshape(-1) * shape[1] + column.reshape(-1)

        def sums(weights: Floats) -> Floats:
            return np.bincount(cell, weights, math.prod(shape)).reshape(shape).astype(np.float64)

        counts = sums(np.ones(len(cell)))
        return cls(sums(samples.share_right()), counts, float(counts.sum(axis=0).max() / len(samples)), len(shown))

    @classmethod
    def _of_labels(cls, samples: SampleScores, unit: NDArray[np.int64], labels: int) -> _Balanced:
        truth, said = samples.applying(labels)
        values = np.concatenate([~truth, truth], axis=1)
        counts, hits = person_sums(unit, values), person_sums(unit, values & np.tile(truth == said, 2))
        shown = counts.sum(axis=0).reshape(2, labels)
        both = shown.all(axis=0)
        kept = np.tile(both, 2) if both.any() else shown.ravel() > 0
        majority = float((shown.max(axis=0) / len(samples)).mean())
        return cls(hits[:, kept], counts[:, kept], majority, 2 if both.any() else 1)
