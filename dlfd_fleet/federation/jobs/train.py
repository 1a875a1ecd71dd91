"""The training job: federated averaging, judged beside the champion before anything moves."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from dlfd_fleet.audit import Outcome, judge_trained, judge_without_each
from dlfd_fleet.data import canonical
from dlfd_fleet.exceptions import JobError
from dlfd_fleet.federation.jobs.coordinator import Coordinator
from dlfd_fleet.federation.jobs.publisher import FleetPublisher
from dlfd_fleet.federation.protocol.messages import PendingReply
from dlfd_fleet.models import ModelCard, build, state_arrays


def train(job: Coordinator, publisher: FleetPublisher) -> None:
    """Train a model by federated averaging, export it, and make it the champion unless it is worse than that one.

    The champion is audited first: a site whose counts are made up is found before anything is trained.
    """
    pending = job.pending()
    champion = publisher.audited_champion(pending)
    card = new_card(job, pending)
    torch.manual_seed(job.settings.seed)
    fresh = state_arrays(build(card))
    arrays = job.rounds(card).train(fresh)
    effort = job.context(card).effort()
    model = job.audits(card).audit(arrays, "Auditing the original model", "original")
    job.note_model("original", model, effort)
    verdict = judge_trained(champion.scores if champion else None, model.scores, job.settings.audit)
    if champion is not None and verdict.outcome is not Outcome.FAIL:
        own = (champion.own_test, model.own_test)
        verdict = judge_without_each(verdict, champion.scores, model.scores, *own, job.settings.audit)
    if verdict.outcome is Outcome.FAIL:
        job.advance("judged", verdict=verdict)
        stays = "The champion stays" if champion else "There is no champion yet"
        raise JobError(f"The trained model is not released. {stays}. {verdict.sentence()}")
    publisher.publish(card, arrays)
    job.advance("settled", note="trained")


def new_card(job: Coordinator, pending: Mapping[int, PendingReply]) -> ModelCard:
    """Return the card of a new model that the sites' data asks for.

    Raises
    ------
    JobError
        If sites disagree about classes or image size, which
        :func:`~dlfd_fleet.federation.rounds.requests.ask_pending` lets none of them do.
    """
    shapes = {
        (tuple(map(canonical, reply.classes)), reply.image_size): (reply.classes, reply.image_size)
        for reply in sorted(pending.values(), key=lambda reply: reply.classes)
    }
    if len(shapes) > 1:
        raise JobError(f"The sites disagree about classes or image size: {sorted(shapes)}.")
    ((classes, image_size),) = shapes.values()
    model = job.settings.model
    return ModelCard(
        architecture=model.architecture,
        classes=classes,
        image_size=image_size,
        dropout=model.dropout,
        epoch=job.epoch,
        job=job.record.job,
    )
