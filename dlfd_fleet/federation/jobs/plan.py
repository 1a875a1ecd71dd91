"""A plan: who asks, what an erasure of them will be able to show, and what it costs. It changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

import numpy as np

from dlfd_fleet.audit import Role, expect
from dlfd_fleet.exceptions import JobError
from dlfd_fleet.federation.jobs.coordinator import Coordinator
from dlfd_fleet.federation.jobs.due import waiting_at
from dlfd_fleet.federation.jobs.erase import Origin
from dlfd_fleet.federation.jobs.ways import SinceTraining
from dlfd_fleet.federation.protocol.messages import PendingReply
from dlfd_fleet.federation.records.due import erasure_due
from dlfd_fleet.federation.records.job_record import JobKind, JobRecord
from dlfd_fleet.federation.rounds.aims import aimed_at, aims_of, why_not_better
from dlfd_fleet.federation.rounds.audits import AuditedModel
from dlfd_fleet.report.words import AIMS, count
from dlfd_fleet.settings import Settings

_NAMES: tuple[tuple[JobKind, str], ...] = (("erase", "erasure"), ("train", "training"))


def plan(job: Coordinator, origin: Origin) -> None:
    """Audit the champion on the people whose requests wait, and note what that says; one model goes to each site."""
    pending, card = job.pending(origin.card), origin.card
    asking = [reply.waiting for reply in pending.values() if reply.waiting]
    many = "1 request waits" if sum(asking) == 1 else f"{sum(asking)} requests wait"
    said = [f"{many} at {len(asking)} of {len(pending)} sites" if asking else "Nobody asks"]
    if any(reply.forget_images for reply in pending.values()):
        model = job.audits(card).audit(origin.arrays, "Auditing the champion", "champion", plan=True)
        said += [_who(model), expect(model.scores, job.settings.audit.margin).sentence().rstrip(".")]
        if job.settings.erasure.way != "retrain" and not SinceTraining.of(job.earlier).why_retrain(
            job.settings.erasure
        ):
            said.append(what_it_will_aim_at(job.settings, tuple(pending.values())))
    elif asking:
        said.append("The champion was trained on none of them, so the sites have only to purge")
    said += [_due(job, pending), _way(job)]
    said += last_costs(job.earlier)
    note = ". ".join(said)
    job.progress.say(f"{note}.")
    job.advance("settled", note=note, epoch=card.epoch)


def what_it_will_aim_at(settings: Settings, replies: Sequence[PendingReply]) -> str:
    """Say what an erasure that unlearns will aim at, and what it does if that is not reached, or fails.

    Parameters
    ----------
    replies
        What the sites hold, and who asks.
    """
    erasure, aims = settings.erasure, aims_of(replies, settings.erasure)
    aim, rounds = aimed_at(aims), f"After at most {count(erasure.rounds, 'round')}"
    because = why_not_better(aim, replies, erasure, have="have")
    said = f"{'If it unlearns, the' if erasure.way == 'cheapest' else 'The'} erasure will aim at {AIMS[aim]}"
    said += f", because {because}" if because else ", unless a site finds these models too poor"
    if aim == "fleet-gate":
        return (
            f"{said}. So all sites take part. {rounds} an audit judges the best model, even if that gate is not reached"
        )
    then = "all sites take part, up to one gate of the whole fleet"
    if len(aims) > 1:
        then = f"it aims at {AIMS[aimed_at(aims[1:])]}; if that fails too, {then}"
    return (
        f"{said}. {rounds} an audit judges its model, even if the gate of a site is not reached. If that fails, or "
        f"retained people lose more than {settings.audit.max_retain_drop:g}, the erasure begins again: {then}"
    )


def refuse_beside(unfinished: JobRecord) -> None:
    """Refuse to plan while another kind of job is not finished.

    Raises
    ------
    JobError
        If it is another kind.
    """
    if unfinished.kind != "plan":
        raise JobError(f"{unfinished.job} is not finished, and a plan goes on with nothing; see `job status`.")


def _due(job: Coordinator, pending: Mapping[int, PendingReply]) -> str:
    """Say whether `job start erase --if-due` would start a job now, by the same rule."""
    now = datetime.now(UTC)
    waiting = waiting_at(job.fleet, pending, (), now)
    due = erasure_due(job.settings.erasure.due, waiting, job.earlier, now.astimezone().date())
    return due.why.rstrip(".")


def _way(job: Coordinator) -> str:
    """Say how far the model is from its last full training, and whether the next erasure trains anew for that."""
    since, erasure = SinceTraining.of(job.earlier), job.settings.erasure
    if reason := since.why_retrain(erasure):
        return f"The next erasure trains anew: {reason}"
    return ". ".join(filter(None, (since.sentence(), since.advice(erasure))))


def _who(model: AuditedModel) -> str:
    rows = model.samples.of(Role.FORGET)
    count = len(np.unique(rows.person))
    people = "1 person" if count == 1 else f"{count} people"
    return f"The champion was trained on {people} who ask, {len(rows)} images in all"


def last_costs(earlier: Iterable[JobRecord]) -> list[str]:
    """Say what the last jobs took, of those that are over."""
    over = [record for record in earlier if record.step == "settled" and record.proceedings.phases]
    found = []
    for kind, name in _NAMES:
        last = next((record for record in reversed(over) if record.kind == kind), None)
        if last is not None:
            sent = sum(phase.sent_bytes for phase in last.proceedings.phases.values())
            found.append(f"The last {name} took {last.seconds:.0f} s and {sent / 1e6:.1f} MB")
    return found
