"""The fleet's scores, with bounds from a bootstrap over people.

Images of one person are correlated, so a resample draws people, not images. All scores are two-sided: losses of
forgotten people that lie far above those of unseen people give them away as surely as losses far below.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from dlfd_fleet.audit.samples import Role, SampleScores
from dlfd_fleet.exceptions import DataError

Unit = Annotated[float, Field(ge=0.0, le=1.0)]


class Estimate(BaseModel):
    """A score, its 95% bounds and its standard error; all are fractions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: Unit
    low: Unit
    high: Unit
    standard_error: Annotated[float, Field(ge=0.0)]


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
    """Return ``|attack - 0.5|`` of an attack accuracy or AUC: 0 is perfect, 0.5 is an open book."""
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
        missing = unseen.value if not len(outside) else "retain"
        raise DataError(f"No {missing} images were audited, so nothing can be measured; check the sites' manifests.")
    generator = np.random.default_rng(seed)
    test = _accuracy(outside, resamples, generator)
    attack = _loss_attack(forget, outside, resamples, generator) if len(forget) else None
    auc = _auc(forget, outside, resamples, generator) if len(forget) else None
    control = samples.of(Role.VALIDATION if unseen is Role.TEST else Role.TEST)
    return Scores(
        test_accuracy=test,
        balanced_accuracy=_balanced_accuracy(outside, resamples, generator),
        retain_accuracy=_accuracy(retain, resamples, generator),
        forget_accuracy=_accuracy(forget, resamples, generator) if len(forget) else None,
        mia_accuracy=attack,
        mia_auc=auc,
        forgetting_score=forgetting_score(attack.value) if attack else None,
        nomus=nomus(test.value, attack.value) if attack else None,
        control_auc=_auc(control, outside, resamples, generator) if len(control) else None,
        majority_baseline=float(np.bincount(outside.label).max() / len(outside)),
        unseen_classes=len(np.unique(outside.label)),
        forget_images=len(forget),
        unseen_images=len(outside),
    )


def _estimate(value: float, resampled: NDArray[np.float64]) -> Estimate:
    # A resample without any member of a class says nothing, and is left out.
    kept = np.clip(resampled[np.isfinite(resampled)], 0.0, 1.0)
    if not len(kept):
        return Estimate(value=value, low=0.0, high=1.0, standard_error=0.5)
    low, high = np.quantile(kept, [0.025, 0.975])
    return Estimate(value=value, low=min(low, value), high=max(high, value), standard_error=float(kept.std()))


def _draws(person: NDArray[np.int64], resamples: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """Return how often each of P people is drawn, ``(resamples, P)``; P draws with replacement each."""
    people = len(np.unique(person))
    return generator.multinomial(people, np.full(people, 1.0 / people), size=resamples).astype(np.float64)


def _person_sums(person: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum rows ``(N, K)`` by person, ``(P, K)``."""
    _, index = np.unique(person, return_inverse=True)
    sums = np.zeros((index.max() + 1, values.shape[1]))
    np.add.at(sums, index, values)
    return sums


def _ratio(
    person: NDArray[np.int64],
    hits: NDArray[np.float64],
    counts: NDArray[np.float64],
    resamples: int,
    generator: np.random.Generator,
) -> Estimate:
    """Estimate the mean over columns of ``sum(hits) / sum(counts)``, each ``(N, K)``."""
    draws = _draws(person, resamples, generator)
    with np.errstate(invalid="ignore", divide="ignore"):
        resampled = (draws @ _person_sums(person, hits)) / (draws @ _person_sums(person, counts))
    return _estimate(float((hits.sum(0) / counts.sum(0)).mean()), resampled.mean(axis=1))


def _accuracy(samples: SampleScores, resamples: int, generator: np.random.Generator) -> Estimate:
    hits = (samples.prediction == samples.label).astype(np.float64)[:, None]
    return _ratio(samples.person, hits, np.ones_like(hits), resamples, generator)


def _balanced_accuracy(samples: SampleScores, resamples: int, generator: np.random.Generator) -> Estimate:
    counts = (samples.label[:, None] == np.unique(samples.label)[None, :]).astype(np.float64)
    hits = counts * (samples.prediction == samples.label)[:, None]
    return _ratio(samples.person, hits, counts, resamples, generator)


def _loss_attack(
    members: SampleScores, unseen: SampleScores, resamples: int, generator: np.random.Generator
) -> Estimate:
    """Estimate the balanced accuracy of a logistic regression on losses, cross-validated as in the paper.

    The bounds resample people among the attack's out-of-fold answers.
    """
    loss = np.concatenate([members.loss, unseen.loss])[:, None]
    truth = np.repeat([1.0, 0.0], [len(members), len(unseen)])
    folds = min(5, len(members), len(unseen))
    if folds < 2:
        return Estimate(value=0.5, low=0.0, high=1.0, standard_error=0.5)
    attack = LogisticRegression(class_weight="balanced")
    split = StratifiedKFold(folds, shuffle=True, random_state=int(generator.integers(2**31)))
    right = (cross_val_predict(attack, loss, truth, cv=split) == truth).astype(np.float64)
    sides = [(samples, right[truth == side]) for samples, side in ((members, 1.0), (unseen, 0.0))]
    rates = []
    for samples, hits in sides:
        draws = _draws(samples.person, resamples, generator)
        sums = draws @ _person_sums(samples.person, np.stack([hits, np.ones_like(hits)], axis=1))
        rates.append(sums[:, 0] / sums[:, 1])
    return _estimate(float(np.mean([hits.mean() for _, hits in sides])), np.mean(rates, axis=0))


def _auc(members: SampleScores, unseen: SampleScores, resamples: int, generator: np.random.Generator) -> Estimate:
    """Estimate the AUC of 'a low loss means a member', resampling people on both sides.

    The AUC is a ratio of sums over pairs of people, so every resample is two small matrix products.
    """
    truth = np.repeat([1.0, 0.0], [len(members), len(unseen)])
    value = roc_auc_score(truth, -np.concatenate([members.loss, unseen.loss]))
    difference = unseen.loss[None, :] - members.loss[:, None]
    wins = (difference > 0) + 0.5 * (difference == 0)
    by_pair = _person_sums(unseen.person, _person_sums(members.person, wins).T).T
    sizes = [_person_sums(side.person, np.ones((len(side), 1)))[:, 0] for side in (members, unseen)]
    drawn = [_draws(side.person, resamples, generator) for side in (members, unseen)]
    resampled = ((drawn[0] @ by_pair) * drawn[1]).sum(axis=1) / ((drawn[0] @ sizes[0]) * (drawn[1] @ sizes[1]))
    return _estimate(float(value), resampled)
