"""The coordinator's side of a job: each method is one step, and what it came to is on disk before the next begins."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from flwr.serverapp import Grid
from numpy.typing import NDArray

from dlfd_fleet.audit import Outcome, Role, Verdict, gap_to_retrain, judge, judge_retrained
from dlfd_fleet.exceptions import ExportError, FleetError, JobError, TrackingError
from dlfd_fleet.export import export_onnx
from dlfd_fleet.federation.fleet import Fleet
from dlfd_fleet.federation.messages import Arrays, PendingReply
from dlfd_fleet.federation.store import Champion, JobKind, JobRecord, JobStep, ModelResult, Store
from dlfd_fleet.federation.strategy import AuditedModel, FederatedUnlearning, ask_pending
from dlfd_fleet.federation.summary import summarise
from dlfd_fleet.models import ModelCard, build, digest, load_model, save_model, state_arrays
from dlfd_fleet.progress import ProgressDisplay
from dlfd_fleet.settings import Settings, flatten
from dlfd_fleet.tracking import Tracker, open_tracker
from dlfd_fleet.tracking.figures import loss_histograms, score_table

ONNX_FILE = "model.onnx"
_SEND_PATIENCE = 60.0


@dataclass
class Coordinator:
    """One job: the fleet, the strategy, the store and the tracker, and the record of how far it is."""

    settings: Settings
    store: Store
    fleet: Fleet
    tracker: Tracker
    progress: ProgressDisplay
    record: JobRecord
    started: float = field(default_factory=time.perf_counter)
    models: dict[str, AuditedModel] = field(default_factory=dict)
    _strategy: FederatedUnlearning | None = None

    # ------------------------------------------------------------------ the job's frame

    def advance(self, step: JobStep, **changes: object) -> None:
        """Write how far the job is."""
        seconds = time.perf_counter() - self.started
        changes |= {"step": step, "seconds": seconds, "absent": dict(self.fleet.absent)}
        self.record = self.record.model_copy(update=changes)
        self.store.save(self.record)

    def pending(self) -> dict[int, PendingReply]:
        """Ask the sites what they hold and how many people ask to be forgotten."""
        erasing = self.record.kind == "erase"
        return ask_pending(self.fleet, self.record.job, self.settings.erasure.largest_forget_share if erasing else 1.0)

    def strategy(self, card: ModelCard) -> FederatedUnlearning:
        """Return the job's strategy, working on models of this card; its rounds go on counting."""
        if self._strategy is None:
            self._strategy = FederatedUnlearning(self.settings, card, self.record.job, self.progress, self._log)
        self._strategy.card = card
        return self._strategy

    def _log(self, metrics: Mapping[str, float], step: int, site: str | None = None) -> None:
        self.tracker.log_metrics(self.record.job, metrics, step=step, site=site)

    def note_model(self, column: str, model: AuditedModel, seconds: float, sent: int) -> None:
        """Keep a model's scores, seconds and bytes for the table, and log them."""
        result = ModelResult(scores=model.scores, seconds=seconds, bytes_sent=sent)
        self.models[column] = model
        self.record = self.record.model_copy(update={"models": self.record.models | {column: result}})
        self._log({f"{column}.{name}": value for name, value in model.scores.metrics().items()}, 0)
        self._log({f"{column}.seconds": seconds, f"{column}.bytes_sent": sent}, 0)

    def sent(self) -> int:
        """Return the array bytes that travelled so far, both directions."""
        return self.fleet.sent_bytes + self.fleet.received_bytes

    # ------------------------------------------------------------------ training

    def new_model(self, pending: Mapping[int, PendingReply], seed_offset: int = 0) -> tuple[ModelCard, Arrays]:
        """Return the card that the sites' data asks for, and seeded weights.

        Raises
        ------
        JobError
            If sites disagree about classes or image size.
        """
        shapes = {(reply.classes, reply.image_size) for reply in pending.values()}
        if len(shapes) > 1:
            raise JobError(
                f"The sites disagree about classes or image size: {sorted(shapes)}; make their site.json agree."
            )
        (classes, image_size) = shapes.pop()
        model = self.settings.model
        card = ModelCard(
            architecture=model.architecture,
            classes=classes,
            image_size=image_size,
            dropout=model.dropout,
            job=self.record.job,
        )
        torch.manual_seed(self.settings.seed + seed_offset)
        return card, state_arrays(build(card))

    # ------------------------------------------------------------------ erasure

    def champion(self) -> tuple[ModelCard, Arrays, Champion]:
        """Return the model that the fleet runs: the registry's alias, or our own note when it does not answer.

        Raises
        ------
        JobError
            If there is none yet.
        """
        champion = self._registered_champion()
        if champion is None:
            raise JobError('There is no champion model to unlearn from; run a training job first (job = "train").')
        model, card = load_model(self.store.model_folder(champion.job))
        return card, state_arrays(model), champion

    def _registered_champion(self) -> Champion | None:
        """Return the registry's champion if we hold its model and it is not under the fleet's epoch.

        A registry that lags behind (entries wait in the outbox) or names a model of another fleet is not followed.
        """
        own = self.store.champion()
        try:
            version = self.tracker.champion()
        except TrackingError as error:
            self.progress.say(f"{error} Our own note of the champion is used.")
            return own
        job = version.tags.get("dlfd.job", "") if version else ""
        if own is None or not job or not (self.store.model_folder(job) / ONNX_FILE).exists():
            return own
        found = Champion(job=job, epoch=int(version.tags.get("dlfd.epoch", "0")) if version else 0)
        return found if found.epoch >= own.epoch else own

    def note_original(self, original: AuditedModel, champion: Champion) -> None:
        """Note the model that is unlearned from, with the cost of the job that made it."""
        made = list(self.store.load(champion.job).models.values())
        seconds, sent = (made[-1].seconds, made[-1].bytes_sent) if made else (0.0, 0)
        self.note_model("original", original, seconds, sent)

    def judge_file(self, strategy: FederatedUnlearning, arrays: Arrays, file: Path) -> Verdict | None:
        """Attack the exported file at the sites; it must be torch's model, and must have forgotten too.

        Raises
        ------
        ExportError
            If a probability differs from torch's by more than the tolerance on any image of a site.
        """
        scores, distance, images = strategy.audit_file(self.fleet, arrays, file.read_bytes())
        self._log({"onnx_max_abs_difference": distance, "onnx_compared_images": images}, 0)
        tolerance = self.settings.export.parity_tolerance
        if distance > tolerance:
            raise ExportError(
                f"On the sites' images a probability of {file.name} differs from torch by {distance:.3g}, more than "
                f"{tolerance:.3g}; it is not released."
            )
        self._log({f"onnx.{name}": value for name, value in scores.metrics().items()}, 0)
        if "original" not in self.models or scores.mia_auc is None:
            return None
        if strategy.card.kind == "retrained":
            return judge_retrained(self.models["original"].scores, scores, self.settings.audit)
        return judge(self.models["original"].scores, scores, self.settings.audit)

    def export(self, card: ModelCard, arrays: Arrays) -> Path:
        """Write the model and its ONNX file into the job's folder."""
        folder = self.store.model_folder(self.record.job)
        model = build(card)
        model.load_state_dict(arrays)
        save_model(model, card, folder)
        nothing = torch.zeros((0, 3, card.image_size, card.image_size), dtype=torch.uint8)
        with self.progress.phase("Exporting to ONNX", 1) as advance:
            report = export_onnx(
                model,
                card,
                folder / ONNX_FILE,
                version=version_of(card, arrays),
                settings=self.settings.export,
                images=nothing,
            )
            advance()
        self._log(
            {"onnx_size_bytes": report.size_bytes, "onnx_random_max_abs_difference": report.max_abs_difference}, 0
        )
        self.advance("exported")
        return report.file

    def release(self, card: ModelCard, arrays: Arrays) -> None:
        """Make the model the champion, here and in the registry."""
        self.store.set_champion(Champion(job=self.record.job, epoch=card.epoch))
        self.advance("released", released=True, epoch=card.epoch)
        self.register(card, arrays)

    def register(self, card: ModelCard, arrays: Arrays) -> None:
        """Log the model, register it with its lineage, and move the alias; the outbox keeps what cannot be sent."""
        folder = self.store.model_folder(self.record.job)
        shape = (2, card.image_size, card.image_size, 3)
        example = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        verdict = self.record.verdict
        tags = {
            "dlfd.version": version_of(card, arrays),
            "dlfd.job": self.record.job,
            "dlfd.kind": card.kind,
            "dlfd.epoch": str(card.epoch),
            "dlfd.parent": card.parent or "",
            "dlfd.weights_sha256": digest(arrays),
            "dlfd.verdict": verdict.outcome.value if verdict else "",
        }
        self.tracker.log_model(
            self.record.job,
            folder / ONNX_FILE,
            extra_files={"model.safetensors": folder / "model.safetensors", "card.json": folder / "card.json"},
            input_example=example,
            outputs=len(card.classes),
            tags=tags,
            alias="champion",
        )
        if card.epoch:
            self.tracker.revoke_older_versions(self.record.job, card.epoch)

    def draw(self) -> None:
        """Draw the table and the histograms, into the job's folder and into MLflow."""
        retrained = self.models.get("retrained")
        if retrained is not None:
            gaps = {name: gap_to_retrain(model.scores, retrained.scores) for name, model in self.models.items()}
            self._log({f"{name}.gap_to_retrain": gap for name, gap in gaps.items()}, 0)
        table = summarise(self.record)
        pictures = {"scores": score_table(table.title, table.columns, table.rows, table.footer)}
        pictures["losses"] = loss_histograms({name: _losses(model) for name, model in self.models.items()})
        for name, png in pictures.items():
            (self.store.job_folder(self.record.job) / f"{name}.png").write_bytes(png)
            self.tracker.log_image(self.record.job, name, png)


def may_release(verdict: Verdict, settings: Settings) -> bool:
    """Tell whether a verdict moves the alias."""
    if verdict.outcome is Outcome.INCONCLUSIVE:
        return settings.release.on_inconclusive == "release"
    return verdict.outcome is Outcome.PASS


def retrain_instead(verdict: Verdict, settings: Settings) -> bool:
    """Tell whether a verdict asks for federated retraining."""
    if verdict.outcome is Outcome.INCONCLUSIVE:
        return settings.release.on_inconclusive == "retrain"
    return verdict.outcome is Outcome.FAIL and settings.erasure.fallback_retrain


def _losses(model: AuditedModel) -> dict[str, NDArray[np.float64]]:
    roles = {"forget": Role.FORGET, "retain": Role.RETAIN, "unseen": Role.TEST}
    return {name: model.samples.of(role).loss for name, role in roles.items()}


def version_of(card: ModelCard, arrays: Mapping[str, torch.Tensor]) -> str:
    """Return a model's version: its erasure epoch and the start of its digest. It is known before any registry is."""
    return f"{card.epoch}-{digest(arrays)[:12]}"


@contextmanager
def coordinate(grid: Grid, kind: JobKind, settings: Settings, progress: ProgressDisplay) -> Iterator[Coordinator]:
    """Open a job, and close it whatever happens: its record and its run always say how it ended."""
    store = Store(settings.state_folder)
    with open_tracker(settings.tracking, settings.state_folder) as tracker:
        fleet = Fleet(grid, settings.erasure.reply_timeout_seconds)
        finish_earlier_jobs(store, fleet, tracker, settings, progress)
        record = store.new_job(kind)
        job = Coordinator(settings, store, fleet, tracker, progress, record)
        tags = {"dlfd.kind": kind, "dlfd.epoch": str((store.champion() or Champion(job="", epoch=0)).epoch)}
        tracker.start_job(record.job, kind=kind, parameters=flatten(settings.model_dump(mode="json")), tags=tags)
        status: Literal["FINISHED", "FAILED", "KILLED"] = "FINISHED"
        try:
            yield job
        except BaseException as error:
            status = "FAILED" if isinstance(error, Exception) else "KILLED"
            _close_failed(job, error)
            raise
        finally:
            tracker.finish_job(record.job, status)
            waiting = tracker.flush(_SEND_PATIENCE)
            if waiting:
                job.record = job.record.model_copy(update={"unsent": waiting})
                store.save(job.record)


def _close_failed(job: Coordinator, error: BaseException) -> None:
    """Return the requests of a job that failed before its model was released."""
    if job.record.step in ("released", "settled"):
        return
    reason = str(error) if isinstance(error, FleetError) else f"the job stopped ({type(error).__name__})"
    job.advance("failed", note=reason)


def finish_earlier_jobs(
    store: Store, fleet: Fleet, tracker: Tracker, settings: Settings, progress: ProgressDisplay
) -> None:
    """Bring jobs to an end whose process died: a released one is settled at the sites, any other is abandoned.

    Requests of an abandoned job wait for the next one: sites accept them again at its query.
    """
    for record in store.unfinished():
        champion = store.champion()
        if champion is None or champion.job != record.job:
            store.save(record.model_copy(update={"step": "abandoned", "note": "its process died"}))
            progress.say(f"The job {record.job} had died before its release; its requests wait for this one.")
            continue
        job = Coordinator(settings, store, fleet, tracker, progress, record)
        model, card = load_model(store.model_folder(record.job))
        job.register(card, state_arrays(model))
        if record.kind == "erase":
            job.strategy(card).settle(fleet, "released", f"released by {record.job}", card.epoch, purge=True)
        job.advance("settled", released=True, epoch=card.epoch)
        progress.say(f"The job {record.job} had died after its release; it is settled now.")
