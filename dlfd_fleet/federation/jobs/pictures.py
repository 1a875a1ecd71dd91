"""What a job's run in MLflow shows beside its metrics: pictures, tags, and what data it was about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from dlfd_fleet.audit import Role, SampleScores
from dlfd_fleet.audit.shift import mean_by_person
from dlfd_fleet.federation.protocol.messages import PendingReply
from dlfd_fleet.federation.records.job_record import JobRecord
from dlfd_fleet.federation.rounds.audits import AuditedModel
from dlfd_fleet.report.contents import Phase
from dlfd_fleet.tracking.figures import loss_histograms, person_scores, time_by_phase, trade_off
from dlfd_fleet.tracking.registry import EPOCH_TAG, VERDICT_TAG

_GROUPS = {"forget": Role.FORGET, "retain": Role.RETAIN, "unseen": Role.TEST}


def job_pictures(
    models: Mapping[str, AuditedModel], rounds: Mapping[int, Mapping[str, float]], phases: Mapping[str, Phase]
) -> dict[str, bytes]:
    """Draw a job, as PNG by name.

    Parameters
    ----------
    models
        Audited models by column: original, unlearned, retrained.
    rounds
        What the gate read after each round; without validation people there is nothing to trade off.
    phases
        What the finished steps took, those of a kind together.
    """
    groups = {name: {group: _of(model, group) for group in _GROUPS} for name, model in models.items()}
    pictures = {
        "losses": loss_histograms({name: losses_of(model) for name, model in models.items()}),
        "people": person_scores(
            {
                name: {group: mean_by_person(parts[group].loss, parts[group].person) for group in ("forget", "unseen")}
                for name, parts in groups.items()
            }
        ),
        "time": time_by_phase({name: phase.seconds for name, phase in phases.items()}),
    }
    attacked = {number: values for number, values in rounds.items() if "gate_loss_auc" in values}
    if attacked:
        pictures["trade_off"] = trade_off(attacked)
    return pictures


def losses_of(model: AuditedModel) -> dict[str, NDArray[np.float64]]:
    """Return the losses of forgotten, retained and unseen images, nats."""
    return {group: _of(model, group).loss for group in _GROUPS}


def _of(model: AuditedModel, group: str) -> SampleScores:
    return model.samples.of(_GROUPS[group])


def outcome_tags(record: JobRecord) -> dict[str, str]:
    """Return the tags by which a job's run is found: how it ended."""
    judged = {VERDICT_TAG: record.verdict.outcome.value} if record.verdict else {}
    epoch = {EPOCH_TAG: str(record.epoch)} if record.released else {}
    exact = {"dlfd.exact": str(record.proceedings.exact).lower()} if record.proceedings.retrained else {}
    return {
        **judged,
        **exact,
        **epoch,
        "dlfd.step": record.step,
        "dlfd.released": str(record.released).lower(),
        "dlfd.requests": str(record.requests),
    }


def fleet_profile(replies: Iterable[PendingReply]) -> dict[str, object]:
    """Return what a job works on, as sums over all sites: no site and no person can be told from them."""
    answers = list(replies)
    counts = np.sum([reply.class_images for reply in answers], axis=0).tolist()
    classes = answers[0].classes
    return {
        "sites": len(answers),
        "input": answers[0].input.sentence(),
        "retain_images": dict(zip(classes, counts, strict=True)),
        **({"labelled_images": sum(reply.retain_images for reply in answers)} if answers[0].multi_label else {}),
        "forget_images": sum(reply.forget_images for reply in answers),
        "requests": sum(len(reply.requests) for reply in answers),
    }
