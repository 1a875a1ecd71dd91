"""The ServerApp of the fleet: a training job, and the erasure job in the order of its steps."""

from __future__ import annotations

import time
from typing import cast

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from rich.console import Console

from dlfd_fleet.audit import Verdict, judge_retrained
from dlfd_fleet.exceptions import JobError
from dlfd_fleet.federation.coordinator import Coordinator, coordinate, may_release, retrain_instead
from dlfd_fleet.federation.messages import Arrays, PendingReply
from dlfd_fleet.federation.store import JobKind, JobRecord
from dlfd_fleet.federation.strategy import AuditedModel
from dlfd_fleet.models import ModelCard, digest
from dlfd_fleet.progress import ConsoleProgress, ProgressDisplay
from dlfd_fleet.settings import Settings, load_settings

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the job that the run's configuration names: ``job = "train"`` or ``job = "erase"``."""
    kind = str(context.run_config.get("job", "erase"))
    if kind not in ("train", "erase"):
        raise JobError(f"job = '{kind}' is no kind of job; use 'train' or 'erase'.")
    run(grid, cast(JobKind, kind), load_settings().settings, ConsoleProgress(Console()))


def run(grid: Grid, kind: JobKind, settings: Settings, progress: ProgressDisplay) -> JobRecord:
    """Run one job on the nodes of a grid, and return its record."""
    with coordinate(grid, kind, settings, progress) as job:
        train(job) if kind == "train" else erase(job)
    return job.record


def train(job: Coordinator) -> None:
    """Train the original model by federated averaging, export it and make it the champion."""
    started = time.perf_counter()
    pending = job.pending()
    card, arrays = job.new_model(pending)
    strategy = job.strategy(card)
    arrays = strategy.train(job.fleet, arrays, pending)
    seconds, sent = time.perf_counter() - started, job.sent()
    job.note_model("original", strategy.audit(job.fleet, arrays, "Auditing the original model"), seconds, sent)
    publish(job, card, arrays)
    job.advance("settled", note="trained")


def erase(job: Coordinator) -> None:
    """Forget, by DLFD, everybody who has asked; the way of one erasure job."""
    card, base, champion = job.champion()
    strategy = job.strategy(card)
    pending = job.pending()
    if not any(reply.requests for reply in pending.values()):
        job.advance("settled", note="nobody asks to be forgotten", epoch=card.epoch)
        return
    job.advance("started", requests=sum(len(reply.requests) for reply in pending.values()))
    original = strategy.audit(job.fleet, base, "Attacking the original model")
    job.note_original(original, champion)

    sent = job.sent()
    unlearned = strategy.unlearn(job.fleet, pending, original)
    job.note_model("unlearned", unlearned.model, unlearned.seconds, job.sent() - sent)
    new = card.model_copy(
        update={"kind": "unlearned", "epoch": card.epoch + 1, "parent": digest(base), "job": job.record.job}
    )
    arrays, verdict = unlearned.model.arrays, unlearned.verdict
    if retrain_instead(verdict, job.settings) or job.settings.erasure.compare_retrain:
        retrained, reverdict = retrain(job, card, pending, original)
        if retrain_instead(verdict, job.settings):
            new, arrays, verdict = new.model_copy(update={"kind": "retrained"}), retrained.arrays, reverdict
    job.advance("judged", verdict=verdict)
    if may_release(verdict, job.settings):
        publish(job, new, arrays)
    finish(job, new)


def retrain(
    job: Coordinator, card: ModelCard, pending: dict[int, PendingReply], original: AuditedModel
) -> tuple[AuditedModel, Verdict]:
    """Train anew without the forgotten people: the gold standard, and the exact fallback."""
    started, sent = time.perf_counter(), job.sent()
    _, fresh = job.new_model(pending, seed_offset=1)
    strategy = job.strategy(card)
    arrays = strategy.train(job.fleet, fresh, pending, "retrain")
    seconds, sent = time.perf_counter() - started, job.sent() - sent
    model = strategy.audit(job.fleet, arrays, "Attacking the retrained model")
    job.note_model("retrained", model, seconds, sent)
    return model, judge_retrained(original.scores, model.scores, job.settings.audit)


def publish(job: Coordinator, card: ModelCard, arrays: Arrays) -> None:
    """Export, audit the file that ships, and move the alias if it holds what the model promised."""
    file = job.export(card, arrays)
    verdict = job.judge_file(job.strategy(card), arrays, file)
    if verdict is not None:
        job.advance("exported", verdict=verdict)
        if not may_release(verdict, job.settings):
            return
    job.release(card, arrays)


def finish(job: Coordinator, card: ModelCard) -> None:
    """Tell the sites how it ended; purge what a released model has forgotten; draw the result."""
    verdict = job.record.verdict
    reason = verdict.sentence() if verdict else ""
    strategy = job.strategy(card)
    if job.record.released:
        purged = strategy.settle(job.fleet, "released", reason, card.epoch, purge=True)
        note = f"released as epoch {card.epoch}; {purged} images purged at the sites"
    else:
        strategy.settle(job.fleet, "returned", reason, card.epoch - 1, purge=False)
        note = "not released: the alias stays, and the requests wait for the next job"
    job.advance("settled", note=note)
    job.draw()
