"""The ServerApp of the fleet: a training job, and the erasure job in the order of its steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from dlfd_fleet.audit import Outcome, Verdict, judge_retrained, judge_trained, judge_without_each
from dlfd_fleet.configuration import load_settings
from dlfd_fleet.exceptions import FleetError, JobError
from dlfd_fleet.federation.app_errors import log_errors_in_words
from dlfd_fleet.federation.jobs.coordinator import Coordinator
from dlfd_fleet.federation.jobs.reporting import publish_report, signer_of
from dlfd_fleet.federation.jobs.run import run_jobs
from dlfd_fleet.federation.jobs.variants import publish_variants
from dlfd_fleet.federation.protocol.messages import PendingReply
from dlfd_fleet.federation.protocol.packing import Arrays
from dlfd_fleet.federation.records.job_record import JobKind, JobRecord
from dlfd_fleet.federation.release.release_rule import may_release, retrain_instead
from dlfd_fleet.federation.rounds.audits import AuditedModel
from dlfd_fleet.federation.rounds.requests import NOTHING_TO_UNLEARN, someone_to_unlearn
from dlfd_fleet.models import ModelCard, digest
from dlfd_fleet.plain_text import PlainConsole, visible
from dlfd_fleet.progress import ConsoleProgress, ProgressDisplay
from dlfd_fleet.settings import Settings

_LONGEST_REASON = 500

log_errors_in_words()
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the job that the run's configuration names: ``job = "train"`` or ``job = "erase"``."""
    kind = str(context.run_config.get("job", "erase"))
    if kind not in ("train", "erase"):
        raise JobError(f"job = '{kind}' is no kind of job; use 'train' or 'erase'.")
    run(grid, cast(JobKind, kind), load_settings().settings, ConsoleProgress(PlainConsole()))


def run(grid: Grid, kind: JobKind, settings: Settings, progress: ProgressDisplay) -> JobRecord:
    """Run one job on the nodes of a grid, and return its record; one that was interrupted is resumed."""
    return run_jobs(grid, kind, settings, progress, {"train": train, "erase": erase})


def train(job: Coordinator) -> None:
    """Train a model by federated averaging, export it, and make it the champion unless it is worse than that one.

    The champion is audited first: a site whose counts are made up is found before anything is trained.
    """
    pending = job.pending()
    champion = job.audited_champion(pending)
    card, arrays = job.new_model(pending)
    strategy = job.strategy(card)
    arrays = strategy.train(job.fleet, arrays, pending)
    effort = strategy.effort(job.fleet)
    model = strategy.audit(job.fleet, arrays, "Auditing the original model", "original")
    job.note_model("original", model, effort)
    verdict = judge_trained(champion.scores if champion else None, model.scores, job.settings.audit)
    if champion is not None and verdict.outcome is not Outcome.FAIL:
        own = (champion.own_test, model.own_test)
        verdict = judge_without_each(verdict, champion.scores, model.scores, *own, job.settings.audit)
    if verdict.outcome is Outcome.FAIL:
        job.advance("judged", verdict=verdict)
        stays = "The champion stays" if champion else "There is no champion yet"
        raise JobError(f"The trained model is not released. {stays}. {verdict.sentence()}")
    publish(job, card, arrays)
    job.advance("settled", note="trained")


def erase(job: Coordinator) -> None:
    """Forget, by DLFD, everybody who has asked; the way of one erasure job."""
    card, base, champion = job.champion()
    strategy = job.strategy(card)
    pending = job.pending(card)
    asked = tuple(request for reply in pending.values() for request in reply.requests)
    if not asked:
        job.advance("settled", note="nobody asks to be forgotten", epoch=card.epoch)
        return
    job.advance(job.record.step, requests=len(asked))
    if not someone_to_unlearn(pending):
        settled = job.settle("released", NOTHING_TO_UNLEARN, card.epoch, asked)
        note = f"{NOTHING_TO_UNLEARN}; {settled.purged_images} images purged at the sites"
        job.advance("settled", note=note, epoch=card.epoch, acknowledged=settled.acknowledged)
        return
    job.note(parent=digest(base))
    signer_of(job)  # a key that cannot sign shows now, and not when the model is out
    original = strategy.audit(job.fleet, base, "Attacking the original model", "original")
    job.note_original(original, card, champion)

    unlearned = strategy.unlearn(job.fleet, pending, original)
    job.note_model("unlearned", unlearned.model, unlearned.effort)
    job.note(attempts=unlearned.attempts, readings=unlearned.readings)
    if unlearned.relearned is not None:
        job.note_model("relearned", *unlearned.relearned)
    new = card.model_copy(
        update={"kind": "unlearned", "epoch": card.epoch + 1, "parent": digest(base), "job": job.record.job}
    )
    arrays, verdict, forgotten = unlearned.model.arrays, unlearned.verdict, unlearned.requests
    if retrain_instead(verdict, job.settings) or job.settings.erasure.compare_retrain:
        retrained, reverdict = retrain(job, card, pending, original)
        if retrain_instead(verdict, job.settings):
            new, arrays, verdict = new.model_copy(update={"kind": "retrained"}), retrained.arrays, reverdict
            forgotten = asked  # nobody trained on any of them
            job.note(retrained=True)
    job.advance("judged", verdict=verdict)
    if verdict.outcome is not Outcome.FAIL:
        publish(job, new, arrays, hold=not may_release(verdict, job.settings), forgotten=forgotten)
    finish(job, new, forgotten, len(asked))


def retrain(
    job: Coordinator, card: ModelCard, pending: dict[int, PendingReply], original: AuditedModel
) -> tuple[AuditedModel, Verdict]:
    """Train anew without the forgotten people: the gold standard, and the exact fallback."""
    _, fresh = job.new_model(pending, seed_offset=1)
    strategy = job.strategy(card)
    before = strategy.effort(job.fleet)
    arrays = strategy.train(job.fleet, fresh, pending, "retrain")
    effort = strategy.effort(job.fleet) - before
    model = strategy.audit(job.fleet, arrays, "Attacking the retrained model", "retrained")
    job.note_model("retrained", model, effort)
    return model, judge_retrained(original.scores, model.scores, job.settings.audit)


def publish(
    job: Coordinator, card: ModelCard, arrays: Arrays, hold: bool = False, forgotten: tuple[str, ...] = ()
) -> None:
    """Export, audit the file that ships, and move the alias if it holds what the model promised.

    A model that policy holds, or whose file it holds, is registered as the candidate.
    """
    file = job.export(card, arrays)
    verdict = job.judge_file(job.strategy(card), arrays, file)
    if verdict is not None:
        job.advance("exported", verdict=verdict)
        if verdict.outcome is Outcome.FAIL:
            return
        hold = hold or not may_release(verdict, job.settings)
    if hold:
        job.hold(card, arrays)
        return
    publish_variants(job, card, arrays, file)
    job.release(card, arrays, forgotten)


def finish(job: Coordinator, card: ModelCard, forgotten: tuple[str, ...], asked: int) -> None:
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
    for show in (job.draw, partial(publish_report, job)):
        note += unshown(job, show)
    job.advance("settled", note=note)


def unshown(job: Coordinator, show: Callable[[], None]) -> str:
    """Draw figures or write a report; say in words why that cannot be done.

    The sites have been told, so nothing is left that a job could be held for. What an operator can mend, such as a full
    disk, stops it as ever: it is resumed, and then it is drawn.
    """
    try:
        show()
    except FleetError:
        raise
    except Exception as error:
        words = visible(f"; its report cannot be drawn: {type(error).__name__}: {error}", _LONGEST_REASON)
        job.progress.say(f"{job.record.job}{words}")
        return words
    return ""
