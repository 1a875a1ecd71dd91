"""What is known of one model after an unlearning: every attack, beside the original and the retrained models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dlfd_fleet.audit import (
    Attack,
    AttackComparison,
    Difference,
    MembershipScores,
    Need,
    Observation,
    Role,
    SampleScores,
    Scores,
    Verdict,
    accuracy_difference,
    auc_difference,
    gap_to_retrain,
    judge_beside_retrained,
    loss_attack,
    measure,
    possible_attacks,
    tpr_estimate,
)
from dlfd_fleet.audit.samples import ROLES
from dlfd_fleet.bench.experiment import Experiment, labelled
from dlfd_fleet.data.dataset import IdentityDataset
from dlfd_fleet.exceptions import DataError
from dlfd_fleet.models import FeatureClassifier
from dlfd_fleet.settings import AuditSettings
from dlfd_fleet.unlearning import predict_features_and_probabilities

_NEAR_SHARE = 0.25


def observe(model: FeatureClassifier, experiment: Experiment) -> Observation:
    """Predict every image of an experiment once."""
    parts: list[tuple[Role, IdentityDataset]] = [
        (Role.RETAIN, experiment.retain),
        (Role.FORGET, experiment.forget),
        (Role.VALIDATION, experiment.validation),
        (Role.TEST, experiment.test),
    ]
    people = sorted({name for _, faces in parts for name in faces.identities})
    number = {name: index for index, name in enumerate(people)}
    samples, features = [], []
    for role, faces in parts:
        seen, probabilities = predict_features_and_probabilities(model, labelled(faces))
        person = np.array([number[name] for name in faces.identities], dtype=np.int64)
        roles = np.full(len(faces), ROLES.index(role), dtype=np.uint8)
        samples.append(SampleScores.from_probabilities(probabilities, faces.labels.numpy(), person, roles))
        features.append(seen)
    columns = {
        name: np.concatenate([getattr(part, name) for part in samples])
        for name in ("role", "person", "label", "prediction", "loss")
    }
    return Observation(SampleScores(**columns), np.concatenate(features))


@dataclass(frozen=True)
class Baselines:
    """The models that a method is measured against.

    Attributes
    ----------
    retrained
        The retrained models that it is compared with, at least two.
    reference_models
        All retrained models, for attacks that need models which never saw the attacked people.
    relearned
        The first retrained model after the same further training as in the relearning attack.
    """

    original: Observation
    retrained: Sequence[Observation]
    reference_models: Sequence[Observation]
    relearned: Observation


@dataclass(frozen=True)
class Evidence:
    """Everything measured of one model; ``test`` and ``retain`` are its accuracies beside the retrained models'."""

    scores: Scores
    test: Difference
    retain: Difference
    attacks: tuple[AttackComparison, ...]
    failed_attacks: dict[str, str]
    """Attacks that could not be made on one of the models, and why; they are left out."""
    person_attacks: dict[str, Difference]
    tpr_at_1_fpr: dict[str, float]
    """Of attacks that score people one by one, where there are enough people never trained on."""
    neighbours: Difference
    gap_to_retrain: float
    verdict: Verdict


def evidence_of(
    candidate: Observation, known: Baselines, settings: AuditSettings, seed: int, labels: int | None = None
) -> Evidence:
    """Attack a model in every way and judge it beside the retrained ones; of models of several labels, this many."""
    scores = measure(candidate.samples, resamples=settings.resamples, seed=seed, labels=labels)
    possible, attacks, failed = list[Attack](), list[AttackComparison](), dict[str, str]()
    for attack in possible_attacks(candidate, len(known.reference_models)):
        try:
            attacks.append(_comparison(attack, candidate, known, settings, seed))
            possible.append(attack)
        except Exception as error:  # whatever an attack of another package raises; the other attacks count
            failed[attack.name] = f"{type(error).__name__}: {error}"
    people = {
        attack.name: _difference(attack, candidate, known.retrained, known, settings, seed, by_person=True)
        for attack in possible
        if attack.scores_people
    }
    test, retain = (_accuracy(role, candidate, known, settings, seed, labels) for role in (Role.TEST, Role.RETAIN))
    others = [measure(other.samples, resamples=200, seed=seed, labels=labels) for other in known.retrained]
    gaps = [gap_to_retrain(scores, other) for other in others]
    return Evidence(
        scores=scores,
        test=test,
        retain=retain,
        attacks=tuple(attacks),
        failed_attacks=failed,
        person_attacks=people,
        tpr_at_1_fpr=_found_at_1_fpr([one for one in possible if one.scores_people], candidate, known, seed),
        neighbours=neighbour_exposure(candidate, known.original, settings, seed),
        gap_to_retrain=float(np.mean(gaps)),
        verdict=judge_beside_retrained(scores, test, retain, attacks, settings),
    )


def _found_at_1_fpr(attacks: Sequence[Attack], candidate: Observation, known: Baselines, seed: int) -> dict[str, float]:
    found = {}
    for attack in attacks:
        each = [tpr_estimate(one, 1, np.random.default_rng(seed)) for one in _variants(attack, candidate, known)]
        shares = [one.value for one in each if one is not None]
        if shares:
            found[attack.name] = float(np.mean(shares))
    return found


def _accuracy(
    role: Role, candidate: Observation, known: Baselines, settings: AuditSettings, seed: int, labels: int | None
) -> Difference:
    """Compare the accuracy on people of one role with the retrained models'."""
    rows = candidate.samples.of_role(role)
    return accuracy_difference(
        candidate.samples.rows(rows),
        [other.samples.rows(rows) for other in known.retrained],
        resamples=settings.resamples,
        seed=seed,
        labels=labels,
    )


def neighbour_exposure(candidate: Observation, original: Observation, settings: AuditSettings, seed: int) -> Difference:
    """Return how much easier the retained people nearest to the forgotten ones became to attack (arXiv 2206.10469).

    The quarter of them whose mean features under the original lie closest, by cosine, to those of a forgotten person;
    AUC of the loss attack on them against test people, unlearned minus original.
    """
    samples, features = original.samples, original.features
    if features is None:
        raise DataError("The people nearest to the forgotten ones are found by features; none were recorded.")
    means = {
        role: _person_means(features[samples.of_role(role)], samples.person[samples.of_role(role)])
        for role in (Role.RETAIN, Role.FORGET)
    }
    people, retained = means[Role.RETAIN]
    closeness = (retained @ means[Role.FORGET][1].T).max(axis=1)
    near = people[np.argsort(-closeness)[: max(1, round(_NEAR_SHARE * len(people)))]]
    rows = samples.of_role(Role.TEST) | np.isin(samples.person, near)
    after, before = (loss_attack(one.samples.rows(rows), members=Role.RETAIN) for one in (candidate, original))
    return auc_difference([after], [before], resamples=settings.resamples, seed=seed)


def _person_means(
    features: NDArray[np.float32], person: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    people = np.unique(person)
    means = np.stack([features[person == one].mean(axis=0) for one in people])
    return people, means / np.linalg.norm(means, axis=1, keepdims=True).clip(1e-12)


def _comparison(
    attack: Attack, candidate: Observation, known: Baselines, settings: AuditSettings, seed: int
) -> AttackComparison:
    first, *others = known.retrained
    return AttackComparison(
        name=attack.name,
        original=_difference(attack, known.original, known.retrained, known, settings, seed),
        candidate=_difference(attack, candidate, known.retrained, known, settings, seed),
        control=_difference(attack, first, others, known, settings, seed),
    )


def _difference(
    attack: Attack,
    model: Observation,
    retrained: Sequence[Observation],
    known: Baselines,
    settings: AuditSettings,
    seed: int,
    *,
    by_person: bool = False,
) -> Difference:
    """Compare an attack on a model with the same attack on retrained ones."""

    def attacks(attacked: Observation) -> list[MembershipScores]:
        scores = _variants(attack, attacked, known)
        return [one.by_person() for one in scores] if by_person else scores

    others = [one for other in retrained for one in attacks(other)]
    return auc_difference(attacks(model), others, resamples=settings.resamples, seed=seed)


def _variants(attack: Attack, attacked: Observation, known: Baselines) -> list[MembershipScores]:
    """Return the scores of an attack on a model, one for each set of reference models if it needs them.

    A retrained model can only be attacked with the other ones as reference models, so any other model too is attacked
    with all but one, in turn: the attacks that are compared are equally strong.
    """
    if Need.REFERENCES not in attack.needs:
        return [_membership(attack, attacked, ())]
    pool = known.reference_models
    without = [tuple(one for one in pool if one is not out) for out in pool]
    variants = [others for out, others in zip(pool, without, strict=True) if out is attacked] or without
    return [_membership(attack, attacked, others) for others in variants]


@lru_cache(maxsize=256)
def _membership(attack: Attack, model: Observation, references: tuple[Observation, ...]) -> MembershipScores:
    return attack.score(model, references)
