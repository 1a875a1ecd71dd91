"""What a coordinator may do when people at some sites ask to be forgotten: our rounds, and those of other papers.

Every method starts from the same trained model, works on the same sites, and runs as many rounds of repair as DLFD may.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from torch import Tensor

from dlfd_fleet.federation.protocol.differences import model_of
from dlfd_fleet.federation.protocol.messages import (
    FitResult,
    FitTask,
    PendingReply,
    UnlearnTask,
)
from dlfd_fleet.federation.protocol.packing import (
    COORDINATOR,
    MODEL,
    Arrays,
    arrays_of,
)
from dlfd_fleet.federation.records.journal import Merged
from dlfd_fleet.federation.rounds.aggregation import RunningMean, check_update, is_statistic
from dlfd_fleet.federation.rounds.audits import AuditedModel
from dlfd_fleet.federation.rounds.fleet import Fleet
from dlfd_fleet.federation.rounds.strategy import FederatedUnlearning, cosine
from dlfd_fleet.federation.site.handlers import add_unlearning
from dlfd_fleet.federation.site.held_model import held_model
from dlfd_fleet.federation.site.site_of_node import site_of_node
from dlfd_fleet.federation.site.training import run_unlearn
from dlfd_fleet.models import build, state_arrays
from dlfd_fleet.progress import Advance
from dlfd_fleet.settings import Settings
from dlfd_fleet.unlearning.peers import ProjectedGradientAscent
from dlfd_fleet.unlearning.peers.fine_tuning import weight_layers

_STORED_EVERY = 2


@dataclass(frozen=True)
class Situation:
    """What a method finds when it is asked: the sites, their answers, the model, and what the server has stored.

    Attributes
    ----------
    fresh
        The weights that the training of the model began from.
    norms
        L2 norms of the sites' updates of that training, by round and site.
    """

    fleet: Fleet
    pending: Mapping[int, PendingReply]
    original: AuditedModel
    fresh: Arrays
    norms: Mapping[int, Mapping[str, float]]


class AscentTask(UnlearnTask):
    """Ascend the loss of the people who ask, instead of DLFD."""

    TYPE: ClassVar[str] = "train.ascend"


class GradientAscent(FederatedUnlearning):
    """A strategy whose forgetting sites ascend."""

    unlearn_task: ClassVar[type[UnlearnTask]] = AscentTask


class AveragedWithAll(FederatedUnlearning):
    """Plain federated averaging: forgetting sites distance, the others train, and all count by their images."""

    def _distance(
        self, fleet: Fleet, arrays: Arrays, pending: Mapping[int, PendingReply], attempt: int, advance: Advance
    ) -> Merged:
        forgotten = super()._distance(fleet, arrays, pending, attempt, advance)
        erasure, mean = self.settings.erasure, RunningMean()
        asked = sum(reply.retain_images for reply in pending.values() if reply.requests)
        mean.add(forgotten.arrays, asked)
        others = {node: reply.retain_images for node, reply in pending.items() if not reply.requests}
        task = self._fit_task(fleet, pending, "repair", erasure.repair_epochs, erasure.learning_rate)
        trained, _ = self._merge(fleet, others, task, FitResult, arrays, advance)
        mean.add(trained.value(), trained.weight)
        return Merged(self.as_sent(fleet, mean.value(), arrays), forgotten.requests)


class Eraser(FederatedUnlearning):
    """FedEraser (Liu et al., arXiv 2012.13891): the training again, shorter, each update as long as it was then.

    The paper lengthens an update whatever it takes. The update of a site with one batch left can be a fortieth as long
    as it was then; lengthened so much, it throws the model away. So :func:`lengthening` has a bound.
    """

    def calibrate(
        self, fleet: Fleet, arrays: Arrays, pending: Mapping[int, PendingReply], norms: Mapping[str, float]
    ) -> Arrays:
        """Return the model after one round whose updates have new directions and old lengths (section 3, step 2)."""
        training = self.settings.training
        self._round += 1
        epochs = max(1, training.local_epochs // 2)
        task = self._fit_task(fleet, pending, "retrain", epochs, training.learning_rate)
        mean = RunningMean()
        records = task.to_records(model=arrays)
        for reply in fleet.exchange(FitTask.TYPE, dict.fromkeys(fleet.wait_for_nodes(), records), str(self._round)):
            result = FitResult.from_records(reply.records, reply.sender)
            update = arrays_of(reply.records, MODEL, reply.sender)
            model = model_of(update, arrays, task.precision, reply.sender)
            length = check_update(model, arrays, reply.sender).trained
            scale = lengthening(norms[reply.sender], length, training.local_epochs / epochs)
            mean.add({name: _scaled(name, array, arrays[name], scale) for name, array in model.items()}, result.weight)
        return self.as_sent(fleet, mean.value(), arrays)


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


def _dlfd(strategy: FederatedUnlearning, situation: Situation) -> Arrays:
    """Return one attempt's model; the audit of the result, which every method's model has, is not its cost."""
    _, merged = strategy.attempt(situation.fleet, situation.pending, situation.original, 1, [])
    return merged.arrays


def _continued(strategy: FederatedUnlearning, situation: Situation) -> Arrays:
    return _repaired(strategy, situation, situation.original.arrays)


def _repaired(strategy: FederatedUnlearning, situation: Situation, arrays: Arrays) -> Arrays:
    """Return a model after as many rounds of plain training on retain images as DLFD may take."""
    erasure, fleet = strategy.settings.erasure, situation.fleet
    with strategy.progress.phase("Repair", erasure.rounds * len(situation.pending)) as advance:
        for number in range(erasure.rounds):
            rate = erasure.learning_rate * cosine(number, erasure.rounds)
            final = number == erasure.rounds - 1
            arrays = strategy.fit_round(
                fleet, arrays, situation.pending, "repair", erasure.repair_epochs, rate, advance, final=final
            )
    return arrays


def _ascended(strategy: FederatedUnlearning, situation: Situation) -> Arrays:
    with strategy.progress.phase("Gradient ascent", 1) as advance:
        ascended = strategy.distancing_round(situation.fleet, situation.original.arrays, situation.pending, 1, advance)
    return _repaired(strategy, situation, ascended.arrays)


def _negated(strategy: FederatedUnlearning, situation: Situation) -> Arrays:
    model = build(strategy.card)
    model.load_state_dict(situation.original.arrays)
    with torch.no_grad():
        weight_layers(model)[0].weight.neg_()
    return _repaired(strategy, situation, state_arrays(model))


def _erased(strategy: FederatedUnlearning, situation: Situation) -> Arrays:
    assert isinstance(strategy, Eraser)  # noqa: S101 - the registry pairs them
    arrays, stored = situation.fresh, sorted(situation.norms)[::_STORED_EVERY]
    with strategy.progress.phase("Calibration", len(stored)) as advance:
        for number in stored:
            arrays = strategy.calibrate(situation.fleet, arrays, situation.pending, situation.norms[number])
            advance()
    return arrays


@dataclass(frozen=True)
class FederatedMethod:
    """A method: its strategy, what it does with it, and the updates that it makes the server store in training.

    Attributes
    ----------
    changes
        What it sets, by section of the settings.
    """

    strategy: type[FederatedUnlearning]
    run: Callable[[FederatedUnlearning, Situation], Arrays]
    stored_rounds: Callable[[int], int] = lambda _: 0
    changes: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    def set(self, settings: Settings) -> Settings:
        """Return the settings under which it runs."""
        sections = {name: getattr(settings, name).model_copy(update=each) for name, each in self.changes.items()}
        return settings.model_copy(update=sections)


_INT8 = {"fleet": {"update_precision": "int8"}}
FEDERATED_METHODS: dict[str, FederatedMethod] = {
    "dlfd": FederatedMethod(FederatedUnlearning, _dlfd),
    "DLFD int8": FederatedMethod(FederatedUnlearning, _dlfd, changes=_INT8),
    "DLFD int8 one round": FederatedMethod(FederatedUnlearning, _dlfd, changes=_INT8 | {"erasure": {"rounds": 1}}),
    "DLFD averaged with all": FederatedMethod(AveragedWithAll, _dlfd),
    "continued FedAvg": FederatedMethod(FederatedUnlearning, _continued),
    "gradient ascent": FederatedMethod(GradientAscent, _ascended),
    "NoT": FederatedMethod(FederatedUnlearning, _negated),
    "FedEraser": FederatedMethod(Eraser, _erased, lambda rounds: -(-rounds // _STORED_EVERY)),
}


client_app = add_unlearning(ClientApp())


@client_app.train("ascend", mods=[held_model])
def ascend(message: Message, context: Context) -> Message:
    """Ascend the loss of the people who ask, at their site."""
    task = AscentTask.from_records(message.content, COORDINATOR)
    with site_of_node(context) as site:
        arrays = arrays_of(message.content, MODEL, COORDINATOR)
        result, model = run_unlearn(site, task, arrays, ProjectedGradientAscent())
    return Message(result.to_records(model=model), reply_to=message)
