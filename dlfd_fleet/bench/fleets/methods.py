"""What a coordinator may do when people at some sites ask to be forgotten: our rounds, and those of other papers.

Every method starts from the same trained model, works on the same sites, and runs as many rounds of repair as DLFD may.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from dlfd_fleet.exceptions import ConfigurationError
from dlfd_fleet.export import content_of, export_onnx, no_inputs
from dlfd_fleet.federation.protocol.messages import Aim, FitResult, FitTask
from dlfd_fleet.federation.protocol.packing import Arrays
from dlfd_fleet.federation.records.job_folders import ONNX_FILE
from dlfd_fleet.federation.records.journal import Merged
from dlfd_fleet.federation.rounds.aggregation import RunningMean, check_update, is_statistic
from dlfd_fleet.federation.rounds.audits import AuditedModel
from dlfd_fleet.federation.rounds.erasure import AtAskedSites, Erasure, ForgettingRound, with_settings_of_method
from dlfd_fleet.federation.rounds.rounds import Forgetting, Rounds, cosine
from dlfd_fleet.models import build, load_arrays, state_arrays
from dlfd_fleet.settings import Settings
from dlfd_fleet.unlearning.peers.fine_tuning import weight_layers

_STORED_EVERY = 2


@dataclass(frozen=True)
class Situation:
    """What a method finds when it is asked, beside the sites: the model, and what the server has stored.

    Attributes
    ----------
    fresh
        The weights that the training of the model began from.
    norms
        L2 norms of the sites' updates of that training, by round and site.
    """

    original: AuditedModel
    fresh: Arrays
    norms: Mapping[int, Mapping[str, float]]


def averaged_with_all(rounds: Rounds, forgetting: Forgetting) -> Merged:
    """Forget as plain federated averaging does: the other sites train meanwhile, and all count by their images."""
    job, erasure, mean = rounds.job, rounds.job.settings.erasure, RunningMean()
    forgotten, arrays = AtAskedSites()(rounds, forgetting), forgetting.arrays
    replies = job.fleet.replies()
    mean.add(forgotten.arrays, sum(reply.retain_images for reply in replies.values() if reply.requests))
    others = [node for node, reply in replies.items() if not reply.requests]
    task = rounds.fit_task("repair", erasure.repair_epochs, erasure.learning_rate)
    trained, _ = rounds.merge(others, task, FitResult, arrays, forgetting.advance)
    mean.add(trained.value(), trained.weight)
    return Merged(rounds.as_sent(mean.value(), arrays), forgotten.requests)


def calibrate(rounds: Rounds, arrays: Arrays, norms: Mapping[str, float]) -> Arrays:
    """Return the model after one round whose updates have new directions and old lengths.

    FedEraser (Liu et al., arXiv 2012.13891, section 3, step 2): the training again, shorter, each update as long as it
    was then. The paper lengthens an update whatever it takes. The update of a site with one batch left can be a
    fortieth as long as it was then; lengthened so much, it throws the model away. So :func:`lengthening` has a bound.
    """
    job, training = rounds.job, rounds.job.settings.training
    number, epochs = job.next_round(), max(1, training.local_epochs // 2)

    def compute() -> Merged:
        task = rounds.fit_task("retrain", epochs, training.learning_rate)
        mean, records = RunningMean(), task.to_records(model=arrays)
        tasks = dict.fromkeys(job.fleet.wait_for_nodes(), records)
        for reply in job.fleet.exchange(FitTask.TYPE, tasks, str(number), job.card):
            result = FitResult.from_records(reply.records, reply.sender)
            job.fleet.worked(reply.node, result.seconds)
            model = rounds.trained_arrays(reply, task, arrays)
            length = check_update(model, job.card.trained(arrays), reply.sender).trained
            scale = lengthening(norms[reply.sender], length, training.local_epochs / epochs)
            mean.add({name: _scaled(name, array, arrays[name], scale) for name, array in model.items()}, result.weight)
        return Merged(rounds.as_sent(mean.value(), arrays))

    return job.journal.merged(f"calibrate-{number}", compute).arrays


def lengthening(then: float, now: float, epochs: float) -> float:
    """Return by what an update is multiplied to be as long as it was in the training that is made again.

    Parameters
    ----------
    then, now
        Lengths (L2) of the update in that training and of the one that gives the direction.
    epochs
        How many times as long that training was. Under momentum and one gradient a model moves, from rest, by at most
        the square of the time, which is the bound.
    """
    return min(then / max(now, 1e-12), epochs**2)


def _scaled(name: str, array: Tensor, before: Tensor, scale: float) -> Tensor:
    """Lengthen an update; statistics of batch norm are no update."""
    if is_statistic(name) or not array.is_floating_point():
        return array
    return before + scale * (array - before)


def _attempted(erasure: Erasure, situation: Situation) -> Arrays:
    """Return one attempt's model; the audit of the result, which every method's model has, is not its cost."""
    return erasure.attempt(situation.original, 1).merged.arrays


def _continued(erasure: Erasure, situation: Situation) -> Arrays:
    return _repaired(erasure, situation.original.arrays)


def _repaired(erasure: Erasure, arrays: Arrays) -> Arrays:
    """Return a model after as many rounds of plain training on retain images as DLFD may take."""
    job, settings = erasure.job, erasure.job.settings.erasure
    with job.progress.phase("Repair", settings.rounds * len(job.fleet.members)) as advance:
        for number in range(settings.rounds):
            rate = settings.learning_rate * cosine(number, settings.rounds)
            final = number == settings.rounds - 1
            arrays = erasure.rounds.fit_round(arrays, "repair", settings.repair_epochs, rate, advance, final=final)
    return arrays


def _forgotten_once(erasure: Erasure, situation: Situation) -> Arrays:
    """Return the model after one round that forgets, and repair."""
    with erasure.job.progress.phase("Gradient ascent", 1) as advance:
        forgotten = erasure.forget(erasure.rounds, Forgetting(situation.original.arrays, 1, Aim.REFERENCES, advance))
    return _repaired(erasure, forgotten.arrays)


def _negated(erasure: Erasure, situation: Situation) -> Arrays:
    model = build(erasure.job.card)
    load_arrays(model, situation.original.arrays)
    with torch.no_grad():
        weight_layers(model)[0].weight.neg_()
    return _repaired(erasure, state_arrays(model))


def _erased(erasure: Erasure, situation: Situation) -> Arrays:
    arrays, stored = situation.fresh, sorted(situation.norms)[::_STORED_EVERY]
    with erasure.job.progress.phase("Calibration", len(stored)) as advance:
        for number in stored:
            arrays = calibrate(erasure.rounds, arrays, situation.norms[number])
            advance()
    return arrays


EVIDENCE = frozenset({"audit-unlearned", "relearn", "audit-relearned", "audit-file"})
"""Steps of a job that say what came of it, and change nothing."""


def _whole_job(erasure: Erasure, situation: Situation) -> Arrays:
    """Return one attempt's model, and take all that a job takes that releases it, whatever its verdict would be."""
    job, arrays = erasure.job, erasure.attempt(situation.original, 1).merged.arrays
    candidate = erasure.audits.audit(arrays, "Auditing the unlearned model", "unlearned-1")
    if job.settings.erasure.relearning_rounds:
        erasure.relearn(candidate, 1)
    model = build(job.card)
    load_arrays(model, arrays)
    with tempfile.TemporaryDirectory() as folder:
        file, settings = Path(folder) / ONNX_FILE, job.settings.export
        export_onnx(model, job.card, file, version="bench", settings=settings, images=no_inputs(job.card))
        erasure.audits.audit_file(arrays, content_of(file), file.name, at=job.auditing_file(exact=True))
    return arrays


@dataclass(frozen=True)
class FederatedMethod:
    """A method: what it does with the rounds of a job, and the updates that it makes the server store in training.

    Attributes
    ----------
    forget
        Its round that forgets.
    changes
        What it sets, by section of the settings.
    references
        Whether sites have the answers of reference models, and the audits of a job are done, too.
    """

    run: Callable[[Erasure, Situation], Arrays]
    forget: ForgettingRound = field(default_factory=AtAskedSites)
    stored_rounds: Callable[[int], int] = lambda _: 0
    changes: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    references: bool = False

    def set(self, settings: Settings) -> Settings:
        """Return the settings under which it runs."""
        sections = {name: getattr(settings, name).model_copy(update=each) for name, each in self.changes.items()}
        changed = settings.model_copy(update=sections)
        return with_settings_of_method(changed) if "method" in self.changes.get("erasure", {}) else changed

    @classmethod
    def with_references(
        cls, method: str = "dlfd", changes: Mapping[str, Mapping[str, object]] = MappingProxyType({})
    ) -> FederatedMethod:
        """Return a method of the registry that aims at what reference models say, as a whole erasure job."""
        own = {**changes, "erasure": {"method": method}}
        return cls(_whole_job, AtAskedSites(method), changes=own, references=True)

    @classmethod
    def aiming_at_own(cls, method: str) -> FederatedMethod:
        """Return a method of the registry that aims at the model's own answers to changed images."""
        return cls(_attempted, AtAskedSites(method), changes={"erasure": {"method": method}})


_INT8 = {"fleet": {"update_precision": "int8"}}
_NO_AIM = {"erasure": {"own_answers": False}}
FEDERATED_METHODS: dict[str, FederatedMethod] = {
    "dlfd": FederatedMethod(_attempted),
    "DLFD int8": FederatedMethod(_attempted, changes=_INT8),
    "DLFD int8 one round": FederatedMethod(_attempted, changes=_INT8 | {"erasure": {"rounds": 1}}),
    "DLFD without an aim": FederatedMethod(_attempted, changes=_NO_AIM),
    "DLFD averaged with all": FederatedMethod(_attempted, averaged_with_all, changes=_NO_AIM),
    "fine-tune+own": FederatedMethod.aiming_at_own("fine-tune"),
    "msg+own": FederatedMethod.aiming_at_own("msg"),
    "not+own": FederatedMethod.aiming_at_own("not"),
    "continued FedAvg": FederatedMethod(_continued),
    "gradient ascent": FederatedMethod(_forgotten_once, AtAskedSites("ascent")),
    "NoT": FederatedMethod(_negated),
    "FedEraser": FederatedMethod(_erased, stored_rounds=lambda rounds: -(-rounds // _STORED_EVERY)),
    "dlfd+references": FederatedMethod.with_references(),
    "DLFD int8+references": FederatedMethod.with_references(changes=_INT8),
    "fine-tune+references": FederatedMethod.with_references("fine-tune"),
    "msg+references": FederatedMethod.with_references("msg"),
    "not+references": FederatedMethod.with_references("not"),
}


def choose_federated(text: str, settings: Settings) -> tuple[str, ...]:
    """Return the methods that a comma-separated list names, or all of them; without reference models, those without.

    Raises
    ------
    ConfigurationError
        If there is no such method, or it needs reference models and there are to be none.
    """
    able = [name for name, one in FEDERATED_METHODS.items() if settings.references.models or not one.references]
    chosen = able if text == "all" else list(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in chosen:
        if name not in FEDERATED_METHODS:
            raise ConfigurationError(f"There is no method '{name}' here; choose among {', '.join(FEDERATED_METHODS)}.")
        if name not in able:
            raise ConfigurationError(
                f"'{name}' needs reference models, and references.models is 0; set how many to train, such as 4."
            )
    return tuple(chosen)
