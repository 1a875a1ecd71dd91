"""The fleet's scores, with bounds from a bootstrap over people.

Images of one person are correlated, so a resample draws people, not images. All scores are two-sided: losses of
forgotten people that lie far above those of unseen people give them away as surely as losses far below.
"""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, ConfigDict

from dlfd_fleet.audit.attacks import MembershipScores, accuracy_estimate, auc_estimate, loss_attack
from dlfd_fleet.audit.bootstrap import Estimate, Unit, ratio
from dlfd_fleet.audit.samples import Role, SampleScores
from dlfd_fleet.exceptions import DataError


class Scores(BaseModel):
    """Everything that is measured of one model; names are those of MLflow, tables and reports."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    test_accuracy: Estimate | None
    """None, like everything else that compares with unseen people, if none of them were audited."""
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
    """Test accuracy of always answering the majority class."""
    unseen_classes: int
    """Classes that the unseen people show; with one, a collapse cannot be seen."""
    forget_images: int
    unseen_images: int
    retain_balanced_accuracy: Estimate | None = None
    """Balanced accuracy on retained people, where there are no unseen ones: it shows a collapse there, too."""
    reference_auc: Estimate | None = None
    """Of the forgotten people's losses, beside those under a model that never saw them (:func:`beside_reference`).

    Only where there are no unseen people to compare the forgotten ones with, and such a model."""

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
        Rows of the retain, forget and unseen people; the forget set may be empty. Where everybody was trained on there
        are no unseen people: what compares with them is None then.
    unseen
        The people never trained on that the forget set is compared with and utility is measured on: validation
        people while choosing, test people for the evidence.
    resamples, seed
        Bootstrap resamples over people, and their seed.

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
        return Scores(
            test_accuracy=None,
            balanced_accuracy=None,
            retain_accuracy=_accuracy(retain, resamples, generator),
            forget_accuracy=_accuracy(forget, resamples, generator) if len(forget) else None,
            mia_accuracy=None,
            mia_auc=None,
            forgetting_score=None,
            nomus=None,
            control_auc=None,
            majority_baseline=None,
            unseen_classes=0,
            forget_images=len(forget),
            unseen_images=0,
            retain_balanced_accuracy=_balanced_accuracy(retain, resamples, generator),
        )
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


def beside_reference(
    samples: SampleScores, reference: SampleScores, *, resamples: int = 2000, seed: int = 0
) -> Estimate | None:
    """Return the chance that a forgotten image has a lower loss under a model than under a reference model.

    An AUC: 0.5 if the losses of the forgotten people lie as they do under the reference, which never saw them; more if
    the model knows them better; less if it is worse at them than ignorance. The same people are on both sides, and they
    cannot be paired, for nobody is followed from one audit to the next: taking the sides as independent errs on the
    wide side. None if a side has no forgotten image.

    Parameters
    ----------
    samples, reference
        What the model, and one that was trained without the forgotten people, say of them; rows of the forget set.
    """
    inside, outside = (one.canonical().of(Role.FORGET) for one in (samples, reference))
    if not len(inside) or not len(outside):
        return None
    both = SampleScores.concatenate([inside, outside])
    attack = MembershipScores(-both.loss, np.arange(len(both)) < len(inside), both.person)
    return auc_estimate(attack, resamples, np.random.default_rng(seed))


def _accuracy(samples: SampleScores, resamples: int, generator: np.random.Generator) -> Estimate:
    hits = (samples.prediction == samples.label).astype(np.float64)[:, None]
    return ratio(samples.person, hits, np.ones_like(hits), resamples, generator)


def _balanced_accuracy(samples: SampleScores, resamples: int, generator: np.random.Generator) -> Estimate:
    counts = (samples.label[:, None] == np.unique(samples.label)[None, :]).astype(np.float64)
    hits = counts * (samples.prediction == samples.label)[:, None]
    return ratio(samples.person, hits, counts, resamples, generator)
