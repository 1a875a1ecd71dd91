"""One method on one seed: tuned on validation people, limited in time, measured on people no gate has seen."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from dlfd_fleet.audit import ATTACKS, Observation, Role, Verdict, auc_difference, loss_attack
from dlfd_fleet.bench.cost import PassSeconds, measure_passes, peak_memory
from dlfd_fleet.bench.evidence import Evidence, Gold, observe, weigh
from dlfd_fleet.bench.experiment import MAKES_MODELS, Experiment, digest_of_code, labelled, reference
from dlfd_fleet.data.dataset import augmentation
from dlfd_fleet.models import FaceClassifier, FeatureClassifier
from dlfd_fleet.settings import Settings
from dlfd_fleet.unlearning import (
    METHODS,
    Candidate,
    UnlearningProblem,
    UnlearnOutcome,
    UtilityFloor,
    checkpoint_rank,
    dlfd,
    fit,
    loss_monitor,
    recalibrate,
)

ORIGINAL, RETRAINED = "original", "retrained"
_RUN_APART = 1_000_000
_MAKES_ROWS = (
    "dlfd_fleet.audit",
    "dlfd_fleet.unlearning",
    "dlfd_fleet.bench.cost",
    "dlfd_fleet.bench.evidence",
    __name__,
)


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
    losses: dict[str, list[float]]
    """Losses of forgotten, retained and test images, for the histograms; nats."""


@dataclass(frozen=True)
class Bed:
    """One experiment with its cached models: where every method lies down to be measured."""

    experiment: Experiment
    cache: Path

    @cached_property
    def original(self) -> FaceClassifier:
        """The model that all methods start from."""
        return reference(self.experiment, "original", 0, self.cache).model

    def retrained(self, index: int) -> FaceClassifier:
        """One of the models trained without the forgotten people."""
        return reference(self.experiment, "retrained", index, self.cache).model

    @cached_property
    def gold(self) -> Gold:
        """What the original and the retrained models say of every image."""
        models = [self.retrained(index) for index in range(self.experiment.settings.bench.references)]
        observed = [observe(model, self.experiment) for model in models]
        return Gold(
            original=observe(self.original, self.experiment),
            retrained=observed,
            reference_models=observed,
            relearned=self.relearn(models[0]),
        )

    def relearn(self, model: FeatureClassifier) -> Observation:
        """Train a copy on retain images as any later round would, and observe it: relearning (arXiv 2505.22310)."""
        settings, again = self.experiment.settings, copy.deepcopy(model)
        fit(
            again,
            labelled(self.experiment.retain),
            settings.training.model_copy(update={"batch_size": settings.bench.batch_size}),
            epochs=settings.bench.relearning_epochs,
            learning_rate=settings.bench.relearning_rate,
            seed=self.experiment.seed,
            class_weights=self.experiment.class_weights,
            augment=augmentation(settings.bench.augmentation),
        )
        recalibrate(again, labelled(self.experiment.retain))
        return observe(again, self.experiment)

    def measure_seconds(self) -> PassSeconds:
        """Return the seconds of one image here and now: a machine's speed changes with what else it does."""
        batch_size = self.experiment.settings.bench.batch_size
        return measure_passes(copy.deepcopy(self.original), labelled(self.experiment.retain), batch_size)

    @cached_property
    def ordinary_bytes(self) -> int:
        """What an ordinary training step takes: the model, its gradients, momentum and activations."""
        batch_size = self.experiment.settings.bench.batch_size
        with peak_memory(next(self.original.parameters()).device) as peak:
            measure_passes(copy.deepcopy(self.original), labelled(self.experiment.retain), batch_size)
        return peak.grown

    def retraining_seconds(self, passes: PassSeconds) -> float:
        """Return the seconds of a retraining at this speed."""
        return self.experiment.settings.bench.epochs * len(self.experiment.retain) * passes.train


def measure_method(bed: Bed, method: str, index: int = 0) -> Row:
    """Run one method of the registry and weigh what it leaves.

    Every candidate of its tuning grid starts from the original, under the same limit of wall-clock time; validation
    people choose the best one.

    Parameters
    ----------
    index
        Which of the method's runs; each has its own batches, augmentation and dropout.
    """
    best: tuple[tuple[bool, float, float], Candidate, _Trial] | None = None
    experiment = bed.experiment
    gate = experiment.settings.unlearning
    monitor = loss_monitor(*(labelled(part) for part in (experiment.forget, experiment.validation, experiment.retain)))
    original = monitor(bed.original)
    floor = UtilityFloor.under(original, gate.max_utility_drop, by_chance=True)
    tuning = 0.0
    for candidate in METHODS.find(method).candidates:
        trial = _unlearn(bed, candidate, _seed_of_run(experiment.seed, index))
        tuning += trial.outcome.cost.seconds
        rank = checkpoint_rank(monitor(trial.outcome.model), floor, gate.gate)
        if best is None or rank > best[0]:
            best = rank, candidate, trial
    assert best is not None  # noqa: S101 - a registered method has a candidate
    _, chosen, trial = best
    outcome, cost, least = trial.outcome, trial.outcome.cost, trial.passes.floor(trial.outcome.cost)
    again = bed.relearn(outcome.model)
    extra = {
        "seconds": cost.seconds,
        "share_of_retraining_time": cost.seconds / bed.retraining_seconds(trial.passes),
        "times_floor": cost.seconds / least if least else 0.0,
        "monitor_share": cost.monitor_seconds / cost.seconds,
        "tuning_seconds": tuning,
        "peak_memory_ratio": trial.memory,
        "own_success": float(outcome.success),
        "image_passes_forward": cost.forward_images,
        "image_passes_backward": cost.backward_images,
    }
    settings = _described(chosen)
    if chosen.unlearner is dlfd:
        settings = experiment.settings.unlearning.model_dump(exclude={"max_seconds", "epochs"}) | settings
    return _row(bed, method, observe(outcome.model, experiment), again, extra, settings, index=index)


def measure_references(bed: Bed) -> Iterator[Row]:
    """Weigh the original, and each retrained model beside the others: what chance alone makes of a perfect method."""
    gold, retraining = bed.gold, bed.retraining_seconds(bed.measure_seconds())
    yield _row(bed, ORIGINAL, gold.original, bed.relearn(bed.original), {}, {})
    again = [gold.relearned, *(bed.relearn(bed.retrained(index)) for index in range(1, len(gold.retrained)))]
    for index, model in enumerate(gold.retrained):
        others = [other for other in gold.retrained if other is not model]
        beside = Gold(gold.original, others, gold.reference_models, again[index - 1])
        extra = {"seconds": retraining, "share_of_retraining_time": 1.0}
        yield _row(bed, RETRAINED, model, again[index], extra, {}, beside, index)


def row_key(settings: Settings, method: str, faces: str) -> str:
    """Return a digest of everything that decides a row, for resuming: settings, images, and the code of the methods."""
    tree = settings.model_dump(mode="json", include={"data", "model", "training", "unlearning", "audit", "bench"})
    tree["bench"].pop("jobs")
    # Rows of different code belong in no one table.
    code = digest_of_code(*MAKES_MODELS, *_MAKES_ROWS)
    candidates = [_described(one) for one in METHODS[method].candidates] if method in METHODS else []
    parts = json.dumps([tree, method, candidates, list(ATTACKS), faces, code], default=str)
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class _Trial:
    """A candidate's outcome, the machine's speed beside it, and its peak memory in those of an ordinary step."""

    outcome: UnlearnOutcome
    passes: PassSeconds
    memory: float


def _seed_of_run(seed: int, index: int) -> int:
    """Return the seed of a run's random numbers: the split's own for the first, and no other split's."""
    return seed + _RUN_APART * index


def _unlearn(bed: Bed, candidate: Candidate, seed: int) -> _Trial:
    """Run a candidate on a copy of the original."""
    before = bed.measure_seconds()
    experiment = bed.experiment
    bench = experiment.settings.bench
    limit = bench.time_limit * candidate.time * bed.retraining_seconds(before)
    shared = {"max_seconds": limit, "batch_size": bench.batch_size}
    settings = experiment.settings.unlearning.model_copy(update=shared | dict(candidate.changes))
    device = next(bed.original.parameters()).device
    ordinary = bed.ordinary_bytes
    with peak_memory(device) as own:
        outcome = candidate.unlearner(
            UnlearningProblem(
                model=copy.deepcopy(bed.original),
                retain=labelled(experiment.retain),
                forget=labelled(experiment.forget),
                validation=labelled(experiment.validation),
                settings=settings,
                seed=seed,
                class_weights=experiment.class_weights,
                augment=augmentation(experiment.settings.bench.augmentation),
            )
        )
    passes = before.mean_with(bed.measure_seconds())
    return _Trial(outcome, passes, own.grown / ordinary if ordinary else 0.0)


def _described(candidate: Candidate) -> dict[str, Any]:
    own: dict[str, Any] = vars(candidate.unlearner) if is_dataclass(candidate.unlearner) else {}
    return own | dict(candidate.changes) | ({} if candidate.time == 1.0 else {"time": candidate.time})


def _row(
    bed: Bed,
    method: str,
    model: Observation,
    again: Observation,
    extra: dict[str, float],
    settings: dict[str, Any],
    gold: Gold | None = None,
    index: int = 0,
) -> Row:
    return weighed_row(bed.experiment, gold or bed.gold, method, model, again, extra, settings, index)


def weighed_row(
    experiment: Experiment,
    gold: Gold,
    method: str,
    model: Observation,
    again: Observation,
    extra: dict[str, float],
    settings: dict[str, Any] | None = None,
    index: int = 0,
) -> Row:
    """Weigh a model beside retrained ones, and write down everything that is known of it.

    Parameters
    ----------
    again
        The model after further training.
    extra
        What it took, by the names of the table.
    """
    seed = experiment.seed
    evidence = weigh(model, gold, experiment.settings.audit, seed)
    relearned = auc_difference(
        [loss_attack(again.samples)], [loss_attack(gold.relearned.samples)], resamples=200, seed=seed
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
