"""The fleet's scores, with bounds from a bootstrap over people.

Images of one person are correlated, so a resample draws people, not images. All scores are two-sided: losses of
forgotten people that lie far above those of unseen people give them away as surely as losses far below.
"""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, ConfigDict

from dlfd_fleet.audit.attacks import accuracy_estimate, auc_estimate, loss_attack
from dlfd_fleet.audit.bootstrap import Estimate, Unit, ratio
from dlfd_fleet.audit.samples import Role, SampleScores
from dlfd_fleet.exceptions import DataError


class Scores(BaseModel):
    """Everything that is measured of one model; names are those of MLflow, tables and reports."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    test_accuracy: Estimate
    balanced_accuracy: Estimate
    retain_accuracy: Estimate
    forget_accuracy: Estimate | None
    mia_accuracy: Estimate | None
    mia_auc: Estimate | None
    forgetting_score: Unit | None
    nomus: Unit | None
    control_auc: Estimate | None
    """AUC between two halves of people never trained on: the negative control."""
    majority_baseline: Unit
    """Test accuracy of always answering the majority class."""
    unseen_classes: int
    """Classes that the unseen people show; with one, a collapse cannot be seen."""
    forget_images: int
    unseen_images: int

    def metrics(self) -> dict[str, float]:
        """Return one number for each name, bounds as ``NAME_low`` and ``NAME_high``."""
        flat: dict[str, float] = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, Estimate):
                flat |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
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

    It rewards collapse: a constant answer scores high. Read it beside the balanced accuracy, never alone.
    """
    return (test_accuracy + 1.0 - 2.0 * forgetting_score(mia_accuracy)) / 2.0


def gap_to_retrain(candidate: Scores, retrained: Scores) -> float:
    """Return how far a model is from a retrained one: the mean absolute difference of four scores, 0 at best.

    The scores are the average gap's of Fan et al. (arXiv 2310.12508): test, retain, forget and MIA accuracy; those that
    were not measured are left out.
    """
    pairs = [
        (getattr(candidate, name), getattr(retrained, name))
        for name in ("test_accuracy", "retain_accuracy", "forget_accuracy", "mia_accuracy")
    ]
    return float(np.mean([abs(one.value - other.value) for one, other in pairs if one and other]))


def measure(samples: SampleScores, *, unseen: Role = Role.TEST, resamples: int = 2000, seed: int = 0) -> Scores:
    """Score one model from what it says of each image.

    Parameters
    ----------
    samples
        Rows of the retain, forget and unseen people; the forget set may be empty.
    unseen
        The people never trained on that the forget set is compared with and utility is measured on: validation
        people while choosing, test people for the evidence.
    resamples, seed
        Bootstrap resamples over people, and their seed.

    Raises
    ------
    DataError
        If there are no rows of the unseen people or of the retain set.
    """
    samples = samples.canonical()
    outside, retain, forget = samples.of(unseen), samples.of(Role.RETAIN), samples.of(Role.FORGET)
    if not len(outside) or not len(retain):
        missing, split = (unseen.value, unseen.value) if not len(outside) else ("retain", "train")
        raise DataError(
            f"No {missing} images were audited, so nothing can be measured: that needs people of the split '{split}' "
            "who have not asked to be forgotten; add some to a site's manifest."
        )
    generator = np.random.default_rng(seed)
    test = _accuracy(outside, resamples, generator)
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
    return Scores(
        test_accuracy=test,
        balanced_accuracy=_balanced_accuracy(outside, resamples, generator),
        retain_accuracy=_accuracy(retain, resamples, generator),
        forget_accuracy=_accuracy(forget, resamples, generator) if len(forget) else None,
        mia_accuracy=attack,
        mia_auc=auc,
        forgetting_score=forgetting_score(attack.value) if attack else None,
        nomus=nomus(test.value, attack.value) if attack else None,
        control_auc=control,
        majority_baseline=float(np.bincount(outside.label).max() / len(outside)),
        unseen_classes=len(np.unique(outside.label)),
        forget_images=len(forget),
        unseen_images=len(outside),
    )


def _accuracy(samples: SampleScores, resamples: int, generator: np.random.Generator) -> Estimate:
    hits = (samples.prediction == samples.label).astype(np.float64)[:, None]
    return ratio(samples.person, hits, np.ones_like(hits), resamples, generator)


def _balanced_accuracy(samples: SampleScores, resamples: int, generator: np.random.Generator) -> Estimate:
    counts = (samples.label[:, None] == np.unique(samples.label)[None, :]).astype(np.float64)
    hits = counts * (samples.prediction == samples.label)[:, None]
    return ratio(samples.person, hits, counts, resamples, generator)
