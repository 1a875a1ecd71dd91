"""The training job: federated averaging, judged beside the champion before anything moves."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlfd_fleet.audit import Outcome, Scores, judge_trained, judge_without_each
from dlfd_fleet.exceptions import JobCancelledError, JobError, ModelFileError, VerdictError
from dlfd_fleet.federation.jobs.coordinator import Coordinator
from dlfd_fleet.federation.jobs.references import make_references
from dlfd_fleet.federation.jobs.releaser import FleetReleaser
from dlfd_fleet.federation.jobs.ways import SinceTraining
from dlfd_fleet.federation.protocol.packing import Arrays
from dlfd_fleet.federation.records.journal import Merged
from dlfd_fleet.federation.rounds.audits import AuditedModel
from dlfd_fleet.federation.rounds.references import ROUND as REFERENCE_ROUND
from dlfd_fleet.federation.rounds.requests import agreed_shape
from dlfd_fleet.models import (
    ModelCard,
    build,
    build_empty,
    described,
    digest,
    load_arrays,
    normalised,
    start,
    state_arrays,
    with_frozen,
)

_GIVEN, _OF_AN_APP = "given", "weights of the app's own"


@dataclass(frozen=True)
class Given:
    """A model that somebody else's strategy has trained on the fleet.

    Attributes
    ----------
    parent
        SHA-256 of the weights that its training began with; None of fresh ones.
    epoch
        The fleet's erasure epoch when its training began: who was forgotten since may be remembered.
    """

    arrays: Arrays
    parent: str | None = None
    epoch: int = 0


def train(job: Coordinator, releaser: FleetReleaser, given: Given | None = None) -> None:
    """Train a model by federated averaging, export it, and make it the champion unless it is worse than that one.

    It goes on from the champion, or begins with fresh weights where there is none or ``training.start`` says so. The
    champion is audited first: a site whose counts are made up is found before anything is trained.

    Parameters
    ----------
    given
        A model that is trained already, to be judged and released likewise.
    """
    if given is not None:  # first of all: a job that is killed has nowhere else to find it
        kept = Merged(given.arrays, (given.parent,) if given.parent else ())
        job.journal.merged(_GIVEN, lambda: kept)
    job.pending()
    found = releaser.audited_champion()
    champion = found[1] if found else None
    card = new_card(job)
    if job.journal.is_done(_GIVEN):
        card, arrays = _given(job, card, found)
    elif found is not None and job.settings.training.start == "champion":
        card, begin = _going_on(card, *found)
        arrays = job.rounds(card).train(begin)
    else:
        card, begin = _beginning_anew(job, card)
        arrays = job.rounds(card).train(begin)
    effort = job.context(card).effort()
    model = job.audits(card).audit(arrays, "Auditing the trained model", "original")
    job.note_model("original", model, effort)
    verdict = judge_trained(champion.scores if champion else None, model.scores, job.settings.audit)
    if champion is not None and verdict.outcome is not Outcome.FAIL:
        own = (champion.own_test, model.own_test)
        verdict = judge_without_each(verdict, champion.scores, model.scores, *own, job.settings.audit)
    if verdict.outcome is Outcome.FAIL:
        job.advance("judged", verdict=verdict)
        stays = "the champion stays" if champion else "there is no champion yet"
        raise VerdictError(f"The verdict is {verdict.sentence()} The trained model is not released; {stays}.")
    releaser.release_or_hold(card, arrays)
    job.advance("settled", note=f"trained; {_said(model.scores)}{_with_references(job, card, arrays)}")


def _with_references(job: Coordinator, card: ModelCard, arrays: Arrays) -> str:
    """Make the reference models of a released model, if the settings say so; return in words what came of it.

    The model is out: what keeps the fleet from having references is said, and ends no job.
    """
    if not (job.record.released and job.settings.references.with_training and job.settings.references.models):
        return ""
    try:
        return f"; {make_references(job, card, arrays, _rounds_in_the_model(job))}"
    except JobCancelledError:
        raise
    except JobError as error:
        job.journal.abandon(REFERENCE_ROUND)
        return f"; there are no reference models: {error}"


def _rounds_in_the_model(job: Coordinator) -> int:
    """Return how many rounds of training are in the model that this job has trained, as far as is known."""
    before = 0 if job.record.proceedings.began_with else SinceTraining.of(job.earlier).rounds
    return before + job.settings.training.rounds


def _said(scores: Scores) -> str:
    """Say how good a model is, for whoever started its training."""
    if scores.test_accuracy is None or scores.balanced_accuracy is None:
        return f"accuracy on the people whom it was trained on is {scores.retain_accuracy.value:.3f}"
    said = f"test accuracy is {scores.test_accuracy}, balanced {scores.balanced_accuracy.value:.3f}"
    return f"{said}; a constant answer's is {1.0 / max(scores.unseen_classes, 1):.3f}"


def _given(job: Coordinator, card: ModelCard, found: tuple[ModelCard, AuditedModel] | None) -> tuple[ModelCard, Arrays]:
    """Return the given model, which is among the job's steps.

    Averaging has made floats of its counters, and has rounded what is frozen: they are what they were.

    Raises
    ------
    JobError
        If its weights are not those of the network, or have been trained where they are to be frozen.
    """
    kept = job.journal.merged(_GIVEN, lambda: Merged({}))
    model = build(card)
    try:
        load_arrays(model, kept.arrays)
    except ModelFileError as error:
        raise JobError(f"The trained model is no {card.architecture}, which the task says it is. {error}") from error
    arrays, parent = state_arrays(model), kept.requests[0] if kept.requests else None
    begun: Arrays = {}
    began_with: str | None = _OF_AN_APP
    if parent and found:
        begun, began_with = dict(found[1].arrays), found[0].began_with
        card = _frozen_so_far(card, arrays, begun, found[0])
    elif card.frozen:
        begun = state_arrays(start(card, job.settings.model.weights))
        card = _frozen_so_far(card, arrays, begun)
    exact = {
        name: begun[name] for name in card.frozen_of(arrays) if name in begun and _alike(arrays[name], begun[name])
    }
    if parent is None:
        job.note(began_with=began_with or "")
    return card.model_copy(update={"parent": parent, "began_with": began_with}), arrays | exact


def _alike(array: Tensor, begun: Tensor) -> bool:
    """Tell whether an array is one that was averaged with copies of itself."""
    if array.shape != begun.shape or not array.is_floating_point():
        return torch.equal(array, begun)
    return torch.allclose(array, begun, rtol=1e-5, atol=1e-8)


def _frozen_so_far(card: ModelCard, arrays: Arrays, begun: Arrays, before: ModelCard | None = None) -> ModelCard:
    """Return a card that freezes only what its model's training has left as it was.

    A training loop that does not freeze batch norm changes the statistics in frozen layers: of these layers the
    parameters alone are frozen from then on.

    Parameters
    ----------
    begun, before
        What the training began with: arrays, and the card of a champion. What a factory of one's own freezes in fresh
        weights it may fill with random numbers, so that nobody can compare.

    Raises
    ------
    JobError
        If a parameter has been trained.
    """
    known = None if before is None else with_frozen(before)
    trained = {
        name
        for name, array in card.frozen_of(arrays).items()
        if name not in begun or not _alike(array, begun[name]) or (known is not None and not known.freezes(name))
    }
    if not trained:
        return card
    parameters = dict(build_empty(card).network.named_parameters(remove_duplicate=False))
    of_factory = with_frozen(card.model_copy(update={"frozen": ()}))
    for name in sorted(trained & parameters.keys()):
        if known is not None or not of_factory.freezes(name):
            raise JobError(
                f"'{name}' is to be frozen, and has been trained: what it has learned from somebody could not be "
                "forgotten any more. Freeze no more than the model that the training began with, or begin anew with "
                "`dlfd-fleet job start train --fresh`."
            )
    return card.model_copy(update={"frozen": tuple(name for name in card.frozen_of(arrays) if name in parameters)})


def _beginning_anew(job: Coordinator, card: ModelCard) -> tuple[ModelCard, Arrays]:
    """Return the card of a new model, and fresh weights, with those that it starts from over them."""
    weights = job.settings.model.weights
    if job.settings.model.frozen and weights is None and not card.of_factory:
        job.progress.say(
            "The frozen layers begin with random weights, and keep them: name better ones in model.weights."
        )
    torch.manual_seed(job.settings.seed)
    card = normalised(card, weights)
    arrays = state_arrays(start(card, weights))
    job.note(began_with=described(card, weights))
    return card.model_copy(update={"began_with": described(card, weights)}), arrays


def _going_on(card: ModelCard, before: ModelCard, champion: AuditedModel) -> tuple[ModelCard, Arrays]:
    """Return the card of a model that goes on from the champion, and the champion's weights.

    Raises
    ------
    JobError
        If the settings ask for another network than the champion is, or freeze what the champion has trained.
    """
    if (before.architecture, before.arguments) != (card.architecture, card.arguments):
        raise JobError(
            f"The champion is a {before.architecture}, and model.architecture asks for a {card.architecture}: set "
            "model.architecture to the champion's, or begin anew with `dlfd-fleet job start train --fresh`."
        )
    card = _frozen_so_far(card, champion.arrays, champion.arrays, before)
    updates = {"classes": before.classes, "parent": digest(champion.arrays), "began_with": before.began_with}
    return card.model_copy(update=updates), dict(champion.arrays)


def new_card(job: Coordinator) -> ModelCard:
    """Return the card of a new model that the sites' data asks for.

    Raises
    ------
    JobError
        If sites disagree about classes or input.
    ModelFileError
        If its network cannot be built here, or has no layer that is to be frozen.
    """
    shape, model = agreed_shape(job.fleet.said), job.settings.model
    card = ModelCard(
        architecture=model.architecture,
        classes=shape.classes,
        multi_label=shape.multi_label,
        input=shape.input,
        arguments=model.arguments,
        feature_layer=model.feature_layer,
        frozen=model.frozen,
        dropout=model.dropout,
        mean=model.mean,
        std=model.std,
        epoch=job.epoch,
        job=job.record.job,
    )
    return with_frozen(card)
