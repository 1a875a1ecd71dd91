"""One row of a benchmark's table: what is known of one model on one seed."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from dlfd_fleet.audit import Observation, Role, Verdict, auc_difference, loss_attack
from dlfd_fleet.bench.evidence import Baselines, Evidence, evidence_of
from dlfd_fleet.bench.experiment import Experiment

ORIGINAL, RETRAINED = "original", "retrained"


class Row(BaseModel):
    """What is known of one model: a method's, on one seed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    seed: int
    index: int = 0
    """Which of several retrained models, or of a method's runs."""
    settings: dict[str, Any] = {}
    """Hyper-parameters of the candidate that validation people chose."""
    metrics: dict[str, float]
    verdict: Verdict
    failed_attacks: dict[str, str] = {}
    """Attacks that could not be made, and why."""
    losses: dict[str, list[float]]
    """Losses of forgotten, retained and test images, for the histograms; nats."""


def row_of(
    experiment: Experiment,
    baselines: Baselines,
    method: str,
    model: Observation,
    again: Observation,
    extra: dict[str, float],
    settings: dict[str, Any] | None = None,
    index: int = 0,
) -> Row:
    """Attack a model beside retrained ones, and write down everything that is known of it.

    Parameters
    ----------
    again
        The model after further training.
    extra
        What it took, by the names of the table.
    """
    seed = experiment.seed
    evidence = evidence_of(model, baselines, experiment.settings.audit, seed, experiment.card.labels)
    relearned = auc_difference(
        [loss_attack(again.samples)], [loss_attack(baselines.relearned.samples)], resamples=200, seed=seed
    )
    losses = {
        role.value: model.samples.loss[model.samples.of_role(role)].tolist()
        for role in (Role.FORGET, Role.RETAIN, Role.TEST)
    }
    metrics = _metrics(evidence) | {"relearned_gap": relearned.value} | extra
    return Row(
        method=method,
        seed=seed,
        index=index,
        settings=settings or {},
        metrics=metrics,
        verdict=evidence.verdict,
        failed_attacks=evidence.failed_attacks,
        losses=losses,
    )


def _metrics(evidence: Evidence) -> dict[str, float]:
    """Flatten the evidence: the fleet's names, and for each attack its AUC and its distance from retraining."""
    flat = evidence.scores.metrics()
    for attack in evidence.attacks:
        flat[f"{attack.name}_auc"] = attack.candidate.model
        flat[f"{attack.name}_gap"] = attack.candidate.value
        flat[f"{attack.name}_gap_error"] = attack.candidate.standard_error
    for name, difference in evidence.person_attacks.items():
        flat[f"{name}_person_auc"] = difference.model
        flat[f"{name}_person_gap"] = difference.value
    flat |= {f"{name}_tpr_at_1_fpr": share for name, share in evidence.tpr_at_1_fpr.items()}
    flat["test_gap"] = evidence.test.value
    flat["retain_gap"] = evidence.retain.value
    flat["neighbour_exposure"] = evidence.neighbours.value
    flat["gap_to_retrain"] = evidence.gap_to_retrain
    return flat
