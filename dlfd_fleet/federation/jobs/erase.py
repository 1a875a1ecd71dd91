"""The erasure job, in the order of its steps: the same for a fleet's own ServerApp and for anybody else's."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

import torch

from dlfd_fleet.audit import Outcome, Verdict, gap_to_retrain, judge, judge_relearned, judge_without_each
from dlfd_fleet.federation.jobs.coordinator import Coordinator
from dlfd_fleet.federation.jobs.ways import Way, choose, rounds_anew
from dlfd_fleet.federation.protocol.packing import Arrays
from dlfd_fleet.federation.release.release_rule import (
    may_release,
    may_release_retrained,
    may_retrain,
    retrain_instead,
)
from dlfd_fleet.federation.rounds.audits import AuditedModel
from dlfd_fleet.federation.rounds.job_context import Effort
from dlfd_fleet.federation.rounds.requests import NOTHING_TO_UNLEARN, someone_to_unlearn
from dlfd_fleet.models import ModelCard, described, digest, frozen_values, start, state_arrays
from dlfd_fleet.unlearning.methods import METHODS


@dataclass(frozen=True)
class Origin:
    """The model that is unlearned from, and what it took to make it."""

    card: ModelCard
    arrays: Arrays
    effort: Effort


class Releaser(Protocol):
    """Where the model of an erasure goes."""

    def prepare(self) -> None:
        """Refuse what would stop a publication, before anything is unlearned."""

    def why_not_exact(self, origin: Origin) -> str:
        """Say why training anew would not be exact; nothing where nothing known speaks against it."""

    def release_or_hold(
        self, card: ModelCard, arrays: Arrays, forgotten: tuple[str, ...] = (), *, hold: bool = False
    ) -> None:
        """Keep a model; it is released if the job's record says so afterwards.

        Parameters
        ----------
        forgotten
            The requests that it has forgotten; sites purge their images once it is released.
        hold
            Whether policy keeps it from being released.
        """

    def show(self) -> str:
        """Draw the job and write its report; return in words what cannot be drawn, or nothing."""


def erase(job: Coordinator, origin: Origin, releaser: Releaser) -> None:
    """Forget everybody who has asked; the way of one erasure job."""
    card, erasure = origin.card, job.erasure(origin.card)
    if job.settings.model.weights and may_retrain(job.settings):
        start(card, job.settings.model.weights)  # weights that are gone are said before anybody unlearns
    job.pending(card)
    asked = tuple(request for reply in job.fleet.said for request in reply.requests)
    if not asked:
        where = " at the sites that take part; requests at the others wait" if job.record.absent else ""
        job.advance("settled", note=f"nobody asks to be forgotten{where}", epoch=card.epoch)
        return
    job.advance(job.record.step, requests=len(asked))
    if not someone_to_unlearn(dict(enumerate(job.fleet.said))):
        settled = job.settle("released", NOTHING_TO_UNLEARN, card.epoch, asked)
        note = f"{NOTHING_TO_UNLEARN}; {settled.purged_images} images purged at the sites"
        job.note(purged_images=settled.purged_images, settled_at=datetime.now(UTC))
        job.advance("settled", note=note, epoch=card.epoch, acknowledged=settled.acknowledged, forgotten=asked)
        return
    method = METHODS[job.settings.erasure.method]
    job.note(
        parent=digest(origin.arrays),
        began_with=card.began_with or "",
        frozen_layers=frozen_values(card.frozen, origin.arrays),
        **method.described(method.unlearner_at_site),
    )
    releaser.prepare()
    way = _way(job, origin, releaser)
    original = erasure.audits.audit(origin.arrays, "Attacking the original model", "original")
    job.note_model("original", original, origin.effort)

    new = card.model_copy(
        update={
            "kind": "unlearned",
            "epoch": card.epoch + 1,
            "parent": digest(origin.arrays),
            "job": job.record.job,
        }
    )
    if way.taken == "retrain":
        retrained = _retrain(job, card, original)
        _record_gaps(job, card, retrained)
        anew, verdict = _instead(job, new, original, retrained, way)
        if verdict.outcome is not Outcome.FAIL or job.settings.erasure.way == "retrain":
            _release(job, releaser, anew, retrained.arrays, verdict, asked, asked)
            return
        # It would fail again in the next job, and people would wait for ever.
        _unlearn_after_all(job, way, verdict)
    unlearned = erasure.run(original)
    job.note_model("unlearned", unlearned.model, unlearned.effort)
    job.note(attempts=unlearned.attempts, attempts_made=unlearned.attempts_made, readings=unlearned.readings)
    if unlearned.relearned is not None:
        job.note_model("relearned", *unlearned.relearned)
    arrays, verdict, forgotten = unlearned.model.arrays, unlearned.verdict, unlearned.requests
    if _may_retrain_now(job, verdict) or job.settings.erasure.compare_retrain:
        retrained = job.models["retrained"] if "retrained" in job.models else _retrain(job, card, original)
        _record_gaps(job, card, retrained)
        verdict = _beside_retrained(job, card, verdict, retrained)
        if _may_retrain_now(job, verdict):
            new, verdict = _instead(job, new, original, retrained, way)
            arrays, forgotten = retrained.arrays, asked  # nobody trained on any of them
    _release(job, releaser, new, arrays, verdict, forgotten, asked)


def _way(job: Coordinator, origin: Origin, releaser: Releaser) -> Way:
    """Choose between unlearning and training anew, where a retrained model may be released; one step of the job."""
    if not may_release_retrained(job.settings):
        return Way(taken="unlearn")

    def chosen() -> Way:
        doubt = releaser.why_not_exact(origin)
        return choose(job.settings, origin.card, origin.arrays, job.fleet.said, job.earlier, doubt)

    way = job.journal.facts("way", Way, chosen)
    job.note(way=way.taken, way_chosen=way.why)
    if way.why:
        job.progress.say(way.why)
    return way


def _may_retrain_now(job: Coordinator, verdict: Verdict) -> bool:
    """Tell whether a model is trained anew in place of an unlearned one; where that has failed already, it is not."""
    return retrain_instead(verdict, job.settings) and not job.record.proceedings.anew_failed


def _unlearn_after_all(job: Coordinator, way: Way, verdict: Verdict) -> None:
    """Note that the model that was trained anew has failed, and that the job unlearns."""
    why = f"{way.why} That model failed ({verdict.sentence().rstrip('.')}), so the model is unlearned."
    job.note(way="unlearn", way_chosen=why, anew_failed=verdict.sentence(), retrained=False, exact=False, exactness="")
    job.progress.say(f"The model that was trained anew fails: {verdict.sentence()} So the job unlearns.")


def _instead(
    job: Coordinator, card: ModelCard, original: AuditedModel, retrained: AuditedModel, way: Way
) -> tuple[ModelCard, Verdict]:
    """Return the card of a retrained model that may be released, and its verdict; note whether it is exact, and why."""
    weights = described(card, job.settings.model.weights)
    exactness = f"Training anew is not exact: {way.doubt}." if way.doubt else _why_exact(card, weights)
    job.note(retrained=True, exact=not way.doubt, exactness=exactness)
    verdict = job.judge_retrained(original.scores, retrained.scores)
    if verdict.outcome is not Outcome.FAIL:
        own, audit = (original.own_test, retrained.own_test), job.settings.audit
        verdict = judge_without_each(verdict, original.scores, retrained.scores, *own, audit)
    # Of what is frozen it is what the first training began with, whatever fresh weights begin with now.
    began_with = card.began_with if card.frozen else weights
    return card.model_copy(update={"kind": "retrained", "began_with": began_with}), verdict


def _why_exact(card: ModelCard, weights: str) -> str:
    words = f"The model was trained anew on everybody else, from {weights}"
    if card.frozen:
        words += "; its frozen layers are as they began"
        words += "" if card.began_with == weights else f", with {card.began_with}"
    if weights == "random weights" and (not card.frozen or card.began_with == weights):
        return f"{words}. So the procedure is exact: nothing of the people who asked went into it."
    return f"{words}. The procedure is exact if nobody of this fleet was in what it began with, as its operator says."


def _release(
    job: Coordinator,
    releaser: Releaser,
    card: ModelCard,
    arrays: Arrays,
    verdict: Verdict,
    forgotten: tuple[str, ...],
    asked: tuple[str, ...],
) -> None:
    """Release or hold a judged model, unless it has failed, and end the job."""
    job.advance("judged", verdict=verdict)
    if verdict.outcome is not Outcome.FAIL:
        releaser.release_or_hold(card, arrays, forgotten, hold=not may_release(verdict, job.settings))
    _finish(job, releaser, card, forgotten, len(asked))


def _retrain(job: Coordinator, card: ModelCard, original: AuditedModel) -> AuditedModel:
    """Train anew without the people who asked: to compare, or to release."""
    torch.manual_seed(job.settings.seed + 1)
    # What is frozen nobody has trained: it stays as it is, also if the starting weights are others by now.
    fresh = state_arrays(start(card, job.settings.model.weights)) | card.frozen_of(original.arrays)
    context = job.context(card)
    before = context.effort()
    arrays = job.rounds(card).train(fresh, "retrain", rounds=rounds_anew(job.settings, job.earlier))
    effort = context.effort() - before
    model = job.audits(card).audit(arrays, "Attacking the retrained model", "retrained")
    job.note_model("retrained", model, effort)
    return model


def _record_gaps(job: Coordinator, card: ModelCard, retrained: AuditedModel) -> None:
    """Log how far each model is from the retrained one, at the sites that answered for both."""
    beside = job.audits(card).beside
    gaps = {
        f"{name}.gap_to_retrain": gap_to_retrain(beside(model, retrained), beside(retrained, model))
        for name, model in job.models.items()
    }
    job.recorder.metrics(gaps, 0)


def _beside_retrained(job: Coordinator, card: ModelCard, verdict: Verdict, retrained: AuditedModel) -> Verdict:
    """Judge again where no unseen people were audited: then the retrained model is all that never saw the forgotten."""
    settings, models, beside = job.settings.audit, job.models, job.audits(card).beside
    original, again = models["original"], models.get("relearned")
    if all(models[column].scores.unseen_images for column in ("original", "unlearned")):
        return verdict
    verdict = judge(original.scores, models["unlearned"].scores, settings, retrained.scores)
    if verdict.outcome is not Outcome.FAIL and again is not None:
        before_it, anew = beside(original, again), beside(retrained, again)
        verdict = judge_relearned(verdict, before_it, again.scores, settings, anew)
    return verdict


def _finish(job: Coordinator, releaser: Releaser, card: ModelCard, forgotten: tuple[str, ...], asked: int) -> None:
    """Tell the sites how it ended; purge what a released model has forgotten; draw the result."""
    verdict = job.record.verdict
    reason = verdict.sentence() if verdict else ""
    if job.record.released:
        settled = job.settle("released", reason, card.epoch, forgotten)
        note = f"released as epoch {card.epoch}; {settled.purged_images} images purged at the sites"
        if waiting := asked - len(forgotten):
            note += f"; {waiting} requests wait for the next job, for their sites sent no update that counts"
    else:
        settled = job.settle("returned", reason, card.epoch - 1, ())
        note = "not released: the alias stays, and the requests wait for the next job"
        if job.record.epoch == card.epoch:
            note += "; the model is registered as the candidate"
    job.note(purged_images=settled.purged_images)
    job.advance(job.record.step, note=note, acknowledged=settled.acknowledged)
    job.advance("settled", note=note + releaser.show())
