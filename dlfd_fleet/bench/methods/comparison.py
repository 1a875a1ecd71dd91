"""One method on one seed: tuned on validation people, limited in time, measured on people no gate has seen."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from dlfd_fleet.audit import ATTACKS, Observation
from dlfd_fleet.bench.cost import PassSeconds, peak_memory
from dlfd_fleet.bench.entry_code import code_of
from dlfd_fleet.bench.evidence import Baselines, observe
from dlfd_fleet.bench.experiment import MAKES_MODELS, code_of_networks, digest_of_code, labelled
from dlfd_fleet.bench.models import ExperimentModels
from dlfd_fleet.bench.rows import ORIGINAL, RETRAINED, Row, row_of
from dlfd_fleet.exceptions import ConfigurationError
from dlfd_fleet.settings import Settings
from dlfd_fleet.unlearning import (
    METHODS,
    Candidate,
    Method,
    UnlearnOutcome,
    UtilityBound,
    checkpoint_rank,
    dlfd,
    loss_monitor,
)
from dlfd_fleet.unlearning.methods import own_settings
from dlfd_fleet.unlearning.references import References

WITH_REFERENCES, WITH_OWN_ANSWERS = "+references", "+own"
"""What the name of a method ends with that aims at what reference models say, or at the model's own answers."""
_RUN_APART = 1_000_000
_MAKES_ROWS = (
    "dlfd_fleet.audit",
    "dlfd_fleet.unlearning",
    "dlfd_fleet.bench.cost",
    "dlfd_fleet.bench.evidence",
    "dlfd_fleet.bench.models",
    "dlfd_fleet.bench.rows",
    __name__,
)


def measure_method(models: ExperimentModels, name: str, index: int = 0) -> Row:
    """Run one method of the registry and attack what it leaves.

    Every candidate of its tuning grid starts from the original, under the same limit of wall-clock time; validation
    people choose the best one.

    Parameters
    ----------
    name
        Of the method; with ``+references`` it aims at what reference models say, and with ``+own`` at what the original
        says of changed copies.
    index
        Which of the method's runs; each has its own batches, augmentation and dropout.
    """
    method, aim = split_name(name)
    best: tuple[tuple[bool, float, float], Candidate, _Trial] | None = None
    experiment = models.experiment
    gate = experiment.settings.unlearning
    monitor = loss_monitor(labelled(experiment.forget), labelled(experiment.validation), labelled(experiment.retain))
    original = monitor(models.original)
    bound = UtilityBound.under(original, gate.max_utility_drop, by_chance=True)
    tuning = 0.0
    known = models.references if aim == WITH_REFERENCES else None
    own = aim == WITH_OWN_ANSWERS
    for candidate in method.candidates:
        trial = _unlearn(models, name, candidate, _seed_of_run(experiment.seed, index), known, own=own)
        tuning += trial.outcome.cost.seconds
        rank = checkpoint_rank(monitor(trial.outcome.model), bound, gate.gate)
        if best is None or rank > best[0]:
            best = rank, candidate, trial
    assert best is not None  # noqa: S101 - a registered method has a candidate
    _, chosen, trial = best
    outcome, cost, least = trial.outcome, trial.outcome.cost, trial.passes.least_seconds(trial.outcome.cost)
    again = models.relearn(outcome.model)
    extra = {
        "seconds": cost.seconds,
        "share_of_retraining_time": cost.seconds / models.retraining_seconds(trial.passes),
        "times_lower_bound": cost.seconds / least if least else 0.0,
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
    return _row(models, name, observe(outcome.model, experiment), again, extra, settings, index=index)


def split_name(name: str) -> tuple[Method, str]:
    """Return the method of a row's name, and what the name ends with if the method aims at something.

    Raises
    ------
    ConfigurationError
        If there is no such method, or it can aim at nothing.
    """
    aim = _aim_of(name)
    method = METHODS.find(name.removesuffix(aim))
    if aim and not method.aims_at_references:
        raise ConfigurationError(
            f"The method '{method.name}' does not train on the retain set at its end, so that it aims at no references "
            f"and no answers; leave '{aim}' out."
        )
    return method, aim


def _aim_of(name: str) -> str:
    return next((aim for aim in (WITH_REFERENCES, WITH_OWN_ANSWERS) if name.endswith(aim)), "")


def measure_baselines(models: ExperimentModels) -> Iterator[Row]:
    """Attack the original, and each retrained model beside the others: what chance alone makes of a perfect method."""
    known, retraining = models.baselines, models.retraining_seconds(models.measure_seconds())
    yield _row(models, ORIGINAL, known.original, models.relearn(models.original), {}, {})
    again = [known.relearned, *(models.relearn(models.retrained(index)) for index in range(1, len(known.retrained)))]
    for index, model in enumerate(known.retrained):
        others = [other for other in known.retrained if other is not model]
        beside = Baselines(known.original, others, known.reference_models, again[index - 1])
        extra = {"seconds": retraining, "share_of_retraining_time": 1.0}
        yield _row(models, RETRAINED, model, again[index], extra, {}, beside, index)


def row_key(settings: Settings, method: str, faces: str) -> str:
    """Return a digest of everything that decides a row, for resuming: settings, images, and code.

    The code is ours, and that of the packages that the method, the attacks and the network come from.
    """
    sections = {"data", "model", "training", "unlearning", "audit", "bench"}
    aim = _aim_of(method)
    plain = method.removesuffix(aim)
    sections |= {"references"} if aim == WITH_REFERENCES else set()
    tree = settings.model_dump(mode="json", include=sections)
    tree["bench"].pop("jobs")
    # Rows of different code belong in no one table.
    code = digest_of_code(*MAKES_MODELS, *_MAKES_ROWS)
    tried = METHODS[plain].candidates if plain in METHODS else ()
    candidates = [(_described(one), code_of(one.unlearner)) for one in tried]
    attacks = [(attack.name, code_of(attack.score)) for attack in ATTACKS.values()]
    parts = json.dumps([tree, method, candidates, attacks, faces, code, code_of_networks(settings.model)], default=str)
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


def _unlearn(
    models: ExperimentModels,
    method: str,
    candidate: Candidate,
    seed: int,
    references: References | None,
    *,
    own: bool = False,
) -> _Trial:
    """Run a candidate on a copy of the original, towards its own answers if ``own``; their making counts as time."""
    before = models.measure_seconds()
    experiment = models.experiment
    bench = experiment.settings.bench
    limit = bench.time_limit * candidate.time * models.retraining_seconds(before)
    shared = {"max_seconds": limit, "batch_size": bench.batch_size}
    settings = experiment.settings.unlearning.model_copy(update=shared | dict(candidate.changes))
    device = next(models.original.parameters()).device
    ordinary = models.ordinary_bytes
    with peak_memory(device) as peak:
        started = time.perf_counter()
        problem = models.problem(models.original, settings, seed, references, own=own)
        making = time.perf_counter() - started
        outcome = candidate.unlearn(method, problem)
    if own:
        outcome = replace(outcome, cost=replace(outcome.cost, seconds=outcome.cost.seconds + making))
    passes = before.mean_with(models.measure_seconds())
    return _Trial(outcome, passes, peak.grown / ordinary if ordinary else 0.0)


def _described(candidate: Candidate) -> dict[str, Any]:
    time = {} if candidate.time == 1.0 else {"time": candidate.time}
    return own_settings(candidate.unlearner) | dict(candidate.changes) | time


def _row(
    models: ExperimentModels,
    method: str,
    model: Observation,
    again: Observation,
    extra: dict[str, float],
    settings: dict[str, Any],
    baselines: Baselines | None = None,
    index: int = 0,
) -> Row:
    return row_of(models.experiment, baselines or models.baselines, method, model, again, extra, settings, index)
