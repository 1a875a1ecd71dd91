"""Membership attacks: turn a model's answers into a score for each image that is higher for members.

Every attack returns :class:`MembershipScores` for the same images in the same order, so models can be compared image by
image. :func:`evaluate` turns them into numbers with bounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from dlfd_fleet.audit.bootstrap import NOTHING_KNOWN, Estimate, Floats, draws, estimate, pair_wins, person_sums, units
from dlfd_fleet.audit.samples import Role, SampleScores
from dlfd_fleet.exceptions import DataError

_FEWEST_NON_MEMBERS = 300
_OFFLINE_SLOPE = 0.3


@dataclass(frozen=True)
class MembershipScores:
    """Scores of one attack on one model: how much each image looks like a member.

    Attributes
    ----------
    score
        Score of each image, higher for members, shape ``(N,)``.
    member
        Truth: True for forgotten people, False for people never trained on, shape ``(N,)``.
    person
        Person number of each image, shape ``(N,)``; no person is on both sides.
    """

    score: Floats
    member: NDArray[np.bool_]
    person: NDArray[np.int64]

    def __post_init__(self) -> None:
        """Refuse a side without images and scores that are not numbers."""
        if not self.member.any() or self.member.all():
            raise DataError("An attack needs images of forgotten people and of people never trained on.")
        if not np.isfinite(self.score).all():
            raise DataError("An attack gave a score that is not finite.")

    def sides(self) -> tuple[MembershipSide, MembershipSide]:
        """Return the members' scores and people, and those of the others."""
        return MembershipSide(self.score[self.member], self.person[self.member]), MembershipSide(
            self.score[~self.member], self.person[~self.member]
        )

    def by_person(self) -> MembershipScores:
        """Return one row a person: the mean of their images' scores."""
        people, index = np.unique(self.person, return_inverse=True)
        counts = np.bincount(index)
        return MembershipScores(
            np.bincount(index, weights=self.score) / counts, np.bincount(index, weights=self.member) > 0, people
        )

    def auc(self) -> float:
        """Return the chance that a member scores above a person never trained on."""
        from sklearn.metrics import roc_auc_score

        return float(roc_auc_score(self.member, self.score))


@dataclass(frozen=True)
class MembershipSide:
    """Scores ``(N,)`` and people ``(N,)`` of one side."""

    score: Floats
    person: NDArray[np.int64]


class AttackResult(BaseModel):
    """The result of one attack, with bounds by bootstrap over people."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    auc: Estimate
    accuracy: Estimate
    """Balanced accuracy of a cross-validated threshold on the score."""
    person_auc: Estimate
    """AUC over people, each with the mean score of their images."""
    tpr_at_1_fpr: Estimate | None
    """Share of members found at a false positive rate of 1%; None with fewer than 300 images of people never trained
    on."""


def loss_attack(samples: SampleScores, *, members: Role = Role.FORGET, unseen: Role = Role.TEST) -> MembershipScores:
    """Score an image by how low its loss is (Yeom et al., arXiv 1709.01604)."""
    both = samples.of(members, unseen)
    return MembershipScores(-both.loss, both.of_role(members), both.person)


def rmia(
    samples: SampleScores,
    references: Sequence[SampleScores],
    *,
    members: Role = Role.FORGET,
    unseen: Role = Role.TEST,
    population: Role = Role.VALIDATION,
) -> MembershipScores:
    """Score an image by how often it beats population images in likelihood ratio (RMIA, arXiv 2312.03262).

    ``Pr_z[(p(x) / p_ref(x)) / (p(z) / p_ref(z)) >= 1]`` with ``p`` the probability of the true class, and ``p_ref`` its
    mean over reference models that saw neither members nor the others, corrected as in the offline attack: ``((1 + a)
    p_out + 1 - a) / 2``. Population images only set the scale and are not attacked.

    Parameters
    ----------
    samples
        Answers of the attacked model for members, unseen and population people.
    references
        Answers of each reference model for the same images in the same order.

    Raises
    ------
    DataError
        If there is no reference model, no population image, or the rows are not the same images.
    """
    if not references:
        raise DataError("RMIA needs at least one reference model that never saw the attacked people.")
    if any(not np.array_equal(samples.person, other.person) for other in references):
        raise DataError("The reference models were audited on other images than the attacked one.")
    outside = np.mean([np.exp(-other.loss) for other in references], axis=0)
    ratio = np.exp(-samples.loss) / (((1.0 + _OFFLINE_SLOPE) * outside + 1.0 - _OFFLINE_SLOPE) / 2.0)
    scale = np.sort(ratio[samples.of_role(population)])
    if not len(scale):
        raise DataError(f"RMIA needs {population.value} images as its population; there are none.")
    attacked = samples.of_role(members) | samples.of_role(unseen)
    score = np.searchsorted(scale, ratio[attacked], side="right") / len(scale)
    return MembershipScores(score, samples.of_role(members)[attacked], samples.person[attacked])


def linear_probe(features: Floats, member: NDArray[np.bool_], person: NDArray[np.int64]) -> MembershipScores:
    """Score an image by a logistic regression on its penultimate features ``(N, F)``, trained on other people.

    It finds methods that change only the head and keep the forgotten people in the features. Folds are by person, so
    the probe learns what members have in common, not who they are.

    Raises
    ------
    DataError
        If a side has fewer than two people.
    """
    # Sites import this module and never attack: scikit-learn would take a second of each of their messages.
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    sides = [len(np.unique(person[member == side])) for side in (True, False)]
    if min(sides) < 2:
        raise DataError("A probe needs two forgotten people and two never trained on; there are fewer.")
    folds = StratifiedGroupKFold(min(5, *sides), shuffle=True, random_state=0)
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=1000))
    score = cross_val_predict(probe, features, member, groups=person, cv=folds, method="decision_function")
    return MembershipScores(score.astype(np.float64), member, person)


def evaluate(attack: MembershipScores, *, resamples: int = 2000, seed: int = 0) -> AttackResult:
    """Measure an attack: AUC, balanced accuracy, AUC over people and, with enough images, TPR at 1% FPR."""
    generator = np.random.default_rng(seed)
    return AttackResult(
        auc=auc_estimate(attack, resamples, generator),
        accuracy=accuracy_estimate(attack, resamples, generator),
        person_auc=auc_estimate(attack.by_person(), resamples, generator),
        tpr_at_1_fpr=tpr_estimate(attack, resamples, generator),
    )


def auc_estimate(attack: MembershipScores, resamples: int, generator: np.random.Generator) -> Estimate:
    """Estimate the AUC, resampling people on both sides.

    The AUC is a ratio of sums over pairs of people, so every resample is two small matrix products. With one person on
    a side, the spread comes from the other side, if that is wider.
    """
    inside, outside = attack.sides()
    drawn = units(inside.person), units(outside.person)
    people = min(len(np.unique(unit)) for unit in drawn)
    wins = pair_wins(inside.score, drawn[0], outside.score, drawn[1])
    resampled, value = resampled_aucs(wins, *drawn, resamples, generator), attack.auc()
    for one, others in ((inside, outside), (outside, inside)):
        if len(np.unique(one.person)) == 1:
            error = _spread_of_people(others)
            if error > np.nanstd(resampled):
                resampled = value + error * generator.standard_normal(resamples)
                people = max(2, len(np.unique(others.person)))
    return estimate(value, resampled, people)


def _spread_of_people(side: MembershipSide) -> float:
    """Return the spread of one person's AUC if nobody differs: each person against the others of a side."""
    people = np.unique(side.person)
    if len(people) < 2:
        return 0.5
    wins = pair_wins(side.score, side.person, side.score, side.person)
    sizes = person_sums(side.person, np.ones((len(side.person), 1)))[:, 0]
    won = wins.sum(axis=1) - np.diag(wins)
    return float(np.sqrt(np.mean((won / (sizes * (sizes.sum() - sizes)) - 0.5) ** 2)))


def resampled_aucs(
    wins: Floats,
    inside: NDArray[np.int64],
    outside: NDArray[np.int64],
    resamples: int,
    generator: np.random.Generator,
) -> Floats:
    """Return the AUC ``(R,)`` of each resample of people, from the pairs ``(P, Q)`` that members win.

    Differences of wins give differences of AUCs over the same resamples.
    """
    sizes = [person_sums(person, np.ones((len(person), 1)))[:, 0] for person in (inside, outside)]
    drawn = [draws(person, resamples, generator) for person in (inside, outside)]
    resampled: Floats = ((drawn[0] @ wins) * drawn[1]).sum(axis=1) / ((drawn[0] @ sizes[0]) * (drawn[1] @ sizes[1]))
    return resampled


def accuracy_estimate(attack: MembershipScores, resamples: int, generator: np.random.Generator) -> Estimate:
    """Estimate the balanced accuracy of a logistic regression on the score, cross-validated as in the paper.

    The bounds resample people among the attack's out-of-fold answers.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    inside, outside = attack.sides()
    score = np.concatenate([inside.score, outside.score])[:, None]
    truth = np.repeat([1.0, 0.0], [len(inside.score), len(outside.score)])
    folds = min(5, len(inside.score), len(outside.score))
    if folds < 2:
        return NOTHING_KNOWN
    split = StratifiedKFold(folds, shuffle=True, random_state=int(generator.integers(2**31)))
    regression = LogisticRegression(class_weight="balanced")
    right = (cross_val_predict(regression, score, truth, cv=split) == truth).astype(np.float64)
    rates, people = [], []
    for side, hits in ((inside, right[truth == 1.0]), (outside, right[truth == 0.0])):
        unit = units(side.person)
        sums = draws(unit, resamples, generator) @ person_sums(unit, np.stack([hits, np.ones_like(hits)], axis=1))
        rates.append(sums[:, 0] / sums[:, 1])
        people.append(len(np.unique(unit)))
    value = (right[truth == 1.0].mean() + right[truth == 0.0].mean()) / 2.0
    return estimate(float(value), np.mean(rates, axis=0), min(people))


def tpr_estimate(attack: MembershipScores, resamples: int, generator: np.random.Generator) -> Estimate | None:
    """Estimate the share of members found at a false positive rate of 1%; None with fewer than 300 unseen images."""
    inside, outside = attack.sides()
    if len(outside.score) < _FEWEST_NON_MEMBERS:
        return None
    # The smallest threshold that at most one non-member in a hundred passes; its own error is not in the bounds.
    threshold = np.quantile(outside.score, 0.99, method="higher")
    hits = (inside.score > threshold).astype(np.float64)[:, None]
    unit = units(inside.person)
    drawn = draws(unit, resamples, generator)
    sums = drawn @ person_sums(unit, np.hstack([hits, np.ones_like(hits)]))
    return estimate(float(hits.mean()), sums[:, 0] / sums[:, 1], drawn.shape[1])
