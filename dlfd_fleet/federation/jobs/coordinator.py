"""The coordinator's side of a job: each method is one step, and what it came to is on disk before the next begins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from dlfd_fleet.audit import Scores, Verdict, gap_to_retrain, judge, judge_retrained
from dlfd_fleet.data import canonical
from dlfd_fleet.exceptions import DeliveryError, ExportError, JobError, ModelFileError
from dlfd_fleet.export import Parity, content_of, export_onnx, file_of
from dlfd_fleet.federation.jobs.pictures import fleet_profile, job_pictures, losses_of
from dlfd_fleet.federation.jobs.summary import summarise
from dlfd_fleet.federation.protocol.messages import DevicesReached, PendingQuery, PendingReply
from dlfd_fleet.federation.protocol.packing import Arrays
from dlfd_fleet.federation.records.job_record import STEPS, Champion, JobRecord, JobStep
from dlfd_fleet.federation.records.journal import Journal
from dlfd_fleet.federation.records.store import ONNX_FILE, Store
from dlfd_fleet.federation.release.champion import agreed_champion
from dlfd_fleet.federation.release.publication import devices_reached
from dlfd_fleet.federation.rounds.audits import AuditedModel
from dlfd_fleet.federation.rounds.counts import Claim, claims_of
from dlfd_fleet.federation.rounds.fleet import Fleet, site_name
from dlfd_fleet.federation.rounds.requests import EarlierRequests, Settled, ask_pending, settle
from dlfd_fleet.federation.rounds.rounds import Effort
from dlfd_fleet.federation.rounds.strategy import FederatedUnlearning
from dlfd_fleet.files import whole_file
from dlfd_fleet.models import ModelCard, build, digest, load_model, save_model, state_arrays
from dlfd_fleet.progress import ProgressDisplay
from dlfd_fleet.report.contents import AskedRequest, FileResult, ModelResult, SiteShare, loss_counts
from dlfd_fleet.settings import Format, Settings
from dlfd_fleet.tracking import Tracker
from dlfd_fleet.tracking.figures import score_table
from dlfd_fleet.tracking.registry import CANDIDATE, CHAMPION

_ASKED = "asked"


@dataclass
class Coordinator:
    """One job: the fleet, the strategy, the store and the tracker, and the record of how far it is."""

    settings: Settings
    store: Store
    fleet: Fleet
    tracker: Tracker
    progress: ProgressDisplay
    record: JobRecord
    journal: Journal
    models: dict[str, AuditedModel] = field(default_factory=dict)
    rounds: dict[int, Mapping[str, float]] = field(default_factory=dict)
    """What the gate read after each round."""
    _strategy: FederatedUnlearning | None = None

    # ------------------------------------------------------------------ the job's frame

    def advance(self, step: JobStep, **changes: object) -> None:
        """Write how far the job is; a job that goes over its steps again does not fall back."""
        step = max(step, self.record.step, key=STEPS.index)
        absent = self.record.absent | self.fleet.absent
        changes |= {"step": step, "seconds": self.journal.seconds, "absent": absent}
        self.record = self.record.model_copy(update=changes)
        self.store.save(self.record)

    def note(self, **changes: object) -> None:
        """Note something for the job's report; it is written with the next :meth:`advance`."""
        noted = self.record.proceedings.model_copy(update=changes)
        self.record = self.record.model_copy(update={"proceedings": noted})

    def pending(self, card: ModelCard | None = None) -> dict[int, PendingReply]:
        """Ask the sites what they hold and how many people ask to be forgotten; of those that the model's card fits.

        A job that is resumed asks again, for its nodes may have new ids; it goes on with what the sites said at first.
        """
        erasing, job, fleet = self.record.kind == "erase", self.record.job, self.fleet
        settings = self.settings.fleet
        known = self.store.step(job, _ASKED) is not None
        first = self.journal.facts(_ASKED, list[PendingReply], list) if known else []
        fleet.counted_before = self._counted_before()
        fleet.wait_for_nodes(max(settings.least_sites, len(first)), settings.connect_seconds)
        query = PendingQuery(
            job=job,
            take=erasing and not known,
            epoch=self.epoch(),
            devices=self._devices_reached(self.epoch()),
        )
        largest = self.settings.erasure.largest_forget_share if erasing else 1.0
        replies = ask_pending(fleet, query, largest, card, self._earlier_requests(first) if erasing else None)
        if not known:
            first = self.journal.facts(_ASKED, list[PendingReply], lambda: list(replies.values()))
        if len(first) < settings.least_sites:
            raise JobError(f"{len(first)} sites take part, fewer than {settings.least_sites}: {fleet.why_absent()}.")
        nodes = {reply.site: node for node, reply in replies.items()}
        for reply in first:
            if reply.site not in nodes:
                fleet.absent[site_name(reply.site)] = "was there when the job began, and has not come back"
        self._note_missing()
        present = {nodes[reply.site]: reply for reply in first if reply.site in nodes}
        fleet.members = frozenset(present)
        fleet.counted = {node: frozenset(reply.requests) for node, reply in present.items()}
        said = dict(enumerate(first))
        counted = claims_of(said, settings.largest_weight_ratio, settings.largest_growth, fleet.counted_before)
        claims = {reply.site: counted[number] for number, reply in said.items()}
        fleet.claims = {node: claims[reply.site] for node, reply in present.items()}
        self._note_sites(first, claims)
        self.tracker.log_dataset(job, "fleet", fleet_profile(first), "unlearning" if erasing else "training")
        return present

    def _earlier_requests(self, first: Iterable[PendingReply]) -> dict[str, EarlierRequests]:
        """Return what is known of each site's requests: from before this job was interrupted, and of earlier jobs."""
        resumed = {site_name(reply.site): reply.requests for reply in first}
        released = self.store.released_requests()
        return {
            site: EarlierRequests(resumed.get(site, ()), released.get(site, {}))
            for site in resumed.keys() | released.keys()
        }

    def _note_missing(self) -> None:
        """Name the sites of the job before this one that do not answer now: what they were asked waits there."""
        earlier = [job for job in self.store.jobs() if job.job != self.record.job and job.proceedings.sites]
        for share in earlier[-1].proceedings.sites if earlier else ():
            if share.site not in self.fleet.names.values():
                self.fleet.absent.setdefault(share.site, f"took part in {earlier[-1].job}, and does not answer now")

    def _counted_before(self) -> dict[str, int]:
        """Return by how many images each site counted in the last job before this one that it took part in."""
        counted = {}
        for job in self.store.jobs():
            for share in job.proceedings.sites if job.started_at < self.record.started_at else ():
                images = share.training_images if share.counted_images is None else share.counted_images
                counted[share.site.removeprefix(site_name(""))] = images
        return counted

    def _note_sites(self, replies: Iterable[PendingReply], claims: Mapping[str, Claim]) -> None:
        """Note who takes part and what was asked, as the sites said it when the job began, and who says too much."""
        requests, sites = list[AskedRequest](), list[SiteShare]()
        for reply in replies:
            name, dates = site_name(reply.site), reply.dates
            sites.append(
                SiteShare(
                    site=name,
                    requests=len(reply.requests),
                    forget_images=reply.forget_images,
                    training_images=reply.retain_images,
                    counted_images=claims[reply.site].weight,
                )
            )
            if claims[reply.site].doubt:
                self.progress.say(f"{name} {claims[reply.site].doubt}.")
                self.tracker.set_tags(self.record.job, {f"dlfd.counted.{name}": claims[reply.site].doubt})
            for request in reply.requests:
                when = dates[request].model_dump() if request in dates else {}
                requests.append(AskedRequest(request=request, site=name, **when))
        self.note(asked=tuple(requests), sites=tuple(sites))

    def strategy(self, card: ModelCard) -> FederatedUnlearning:
        """Return the job's strategy, working on models of this card; its rounds go on counting."""
        if self._strategy is None:
            self._strategy = FederatedUnlearning(
                card=card,
                settings=self.settings,
                job=self.record.job,
                journal=self.journal,
                progress=self.progress,
                record=self._log,
            )
        self._strategy.card = card
        return self._strategy

    def _log(self, metrics: Mapping[str, float], step: int, site: str | None = None) -> None:
        self.tracker.log_metrics(self.record.job, metrics, step=step, site=site)
        if "attempt" in metrics:
            self.tracker.log_metrics(self.record.job, metrics, step=step, attempt=int(metrics["attempt"]))
        if "gate_utility" in metrics:
            self.rounds[step] = metrics

    def note_model(self, column: str, model: AuditedModel, effort: Effort) -> None:
        """Keep a model's scores, and what it took, for the table, and log them."""
        result = ModelResult(scores=model.scores, seconds=effort.seconds, bytes_sent=effort.sent_bytes)
        self.models[column] = model
        self.record = self.record.model_copy(update={"models": self.record.models | {column: result}})
        self.note(losses=self.record.proceedings.losses | {column: loss_counts(losses_of(model))})
        self._log({f"{column}.{name}": value for name, value in model.scores.metrics().items()}, 0)
        self._log({f"{column}.seconds": effort.seconds, f"{column}.bytes_sent": effort.sent_bytes}, 0)

    # ------------------------------------------------------------------ training

    def audited_champion(self, pending: Mapping[int, PendingReply]) -> AuditedModel | None:
        """Return the model that the fleet runs, attacked at the sites of today; None if a new one has none to beat."""
        kind = list[Champion]
        known = self.journal.facts("champion", kind, self._champions)
        if not known:
            return None
        try:
            model, card = load_model(self.store.model_folder(known[0].job))
        except ModelFileError as error:
            self.progress.say(f"{error} The new model is compared with none.")
            return None
        if any((reply.classes, reply.image_size) != (card.classes, card.image_size) for reply in pending.values()):
            self.progress.say(
                "The champion has other classes or another image size; the new model is compared with none."
            )
            return None
        return self.strategy(card).audit(self.fleet, state_arrays(model), "Auditing the champion", "champion")

    def _champions(self) -> list[Champion]:
        champion = agreed_champion(self.store, self.tracker, self.progress.say)
        return [champion] if champion else []

    def new_model(self, pending: Mapping[int, PendingReply], seed_offset: int = 0) -> tuple[ModelCard, Arrays]:
        """Return the card that the sites' data asks for, and seeded weights.

        Raises
        ------
        JobError
            If sites disagree about classes or image size, which :func:`ask_pending` lets none of them do.
        """
        shapes = {
            (tuple(map(canonical, reply.classes)), reply.image_size): (reply.classes, reply.image_size)
            for reply in sorted(pending.values(), key=lambda reply: reply.classes)
        }
        if len(shapes) > 1:
            raise JobError(f"The sites disagree about classes or image size: {sorted(shapes)}.")
        ((classes, image_size),) = shapes.values()
        model = self.settings.model
        card = ModelCard(
            architecture=model.architecture,
            classes=classes,
            image_size=image_size,
            dropout=model.dropout,
            epoch=self.epoch(),
            job=self.record.job,
        )
        torch.manual_seed(self.settings.seed + seed_offset)
        return card, state_arrays(build(card))

    def epoch(self) -> int:
        """Return the fleet's erasure epoch: of the champion; 0 before there is one."""
        champion = self.store.champion()
        return champion.epoch if champion else 0

    # ------------------------------------------------------------------ erasure

    def champion(self) -> tuple[ModelCard, Arrays, Champion]:
        """Return the model that the fleet runs: the registry's alias, or our own note when it does not answer.

        Raises
        ------
        JobError
            If there is none yet.
        """
        champion = self.journal.facts("champion", Champion, self._known_champion)
        model, card = load_model(self.store.model_folder(champion.job))
        arrays = state_arrays(model)
        self.tracker.set_tags(self.record.job, {"dlfd.parent_version": version_of(card, arrays)})
        return card, arrays, champion

    def _known_champion(self) -> Champion:
        champion = agreed_champion(self.store, self.tracker, self.progress.say)
        if champion is None:
            raise JobError('There is no champion model to unlearn from; run a training job first (job = "train").')
        return champion

    def note_original(self, original: AuditedModel, card: ModelCard, champion: Champion) -> None:
        """Note the model that is unlearned from, with what it took to make it."""
        made = self.store.load(champion.job).models.get(card.kind)
        self.note_model("original", original, Effort(made.seconds, made.bytes_sent) if made else Effort(0.0, 0))

    def judge_file(
        self, strategy: FederatedUnlearning, arrays: Arrays, file: Path, form: Format = "fp32"
    ) -> Verdict | None:
        """Attack an exported file at the sites; it must be torch's model, and must have forgotten too.

        Raises
        ------
        ExportError
            If it is not as near to torch on the sites' images, or not as accurate, as its format allows.
        """
        name, step = ("onnx", "audit-file") if form == "fp32" else (f"onnx_{form}", f"audit-file-{form}")
        content = content_of(file)
        scores, parity = strategy.audit_file(self.fleet, arrays, content, step)
        parity = self._beside_torch(strategy.card, scores, parity, name)
        self._log({f"{name}_max_abs_difference": parity.max_abs_difference}, 0)
        self._log({f"{name}_compared_images": parity.compared_images, f"{name}_agreement": parity.agreement or 0.0}, 0)
        self._log({f"{name}_size_bytes": file.stat().st_size}, 0)
        reason = parity.why_not(form, self.settings.export)
        if reason:
            raise ExportError(f"On the sites' images {file.name} {reason}; it is not released.")
        self._log({f"{name}.{metric}": value for metric, value in scores.metrics().items()}, 0)
        verdict = self._verdict_of_file(strategy.card, scores)
        result = FileResult(
            name=file.name,
            sha256=sha256(content).hexdigest(),
            size_bytes=len(content),
            max_abs_difference=parity.max_abs_difference,
            compared_images=parity.compared_images,
            agreement=parity.agreement,
            scores=scores,
            verdict=verdict,
        )
        self.note(files=self.record.proceedings.files | {form: result})
        return verdict

    def _beside_torch(self, card: ModelCard, scores: Scores, parity: Parity, name: str) -> Parity:
        """Add the accuracies of the file and of torch, if they are of the same images.

        A site may have been away from one of the two audits.
        """
        torch_model = self.models.get(card.kind)
        if torch_model is None or torch_model.scores.unseen_images != scores.unseen_images:
            return parity
        own, torchs = scores.test_accuracy.value, torch_model.scores.test_accuracy.value
        self._log({f"{name}_accuracy": own, f"{name}_torch_accuracy": torchs}, 0)
        return replace(parity, accuracy=own, torch_accuracy=torchs)

    def _verdict_of_file(self, card: ModelCard, scores: Scores) -> Verdict | None:
        if "original" not in self.models or scores.mia_auc is None:
            return None
        if card.kind == "retrained":
            return judge_retrained(self.models["original"].scores, scores, self.settings.audit)
        return judge(self.models["original"].scores, scores, self.settings.audit)

    def export(self, card: ModelCard, arrays: Arrays) -> Path:
        """Write the model and its ONNX file into the job's folder; one step of the job."""
        file = self.store.model_folder(self.record.job) / ONNX_FILE
        self.journal.facts("export", int, lambda: self._export(card, arrays, file))
        self.advance("exported")
        return file

    def _export(self, card: ModelCard, arrays: Arrays, file: Path) -> int:
        model = build(card)
        model.load_state_dict(arrays)
        save_model(model, card, file.parent)
        nothing = torch.zeros((0, 3, card.image_size, card.image_size), dtype=torch.uint8)
        with self.progress.phase("Exporting to ONNX", 1) as advance:
            report = export_onnx(
                model,
                card,
                file,
                version=version_of(card, arrays),
                settings=self.settings.export,
                images=nothing,
                verdict=self.record.verdict.outcome.value if self.record.verdict else "",
            )
            advance()
        self._log({"onnx_random_max_abs_difference": report.parity.max_abs_difference}, 0)
        return report.size_bytes

    def release(self, card: ModelCard, arrays: Arrays, forgotten: tuple[str, ...] = ()) -> None:
        """Make the model, which has forgotten these requests, the champion, here and in the registry."""
        # The record first: a job that says it is released and is not yet the champion becomes it when it is resumed.
        self.advance("released", released=True, epoch=card.epoch, forgotten=forgotten)
        verdict = self.record.verdict
        why = verdict.sentence() if verdict else "a training job"
        self.store.set_champion(Champion(job=self.record.job, epoch=card.epoch), f"job {self.record.job}", why)
        self.register(card, arrays, CHAMPION)
        if card.kind != "original":
            self.tracker.revoke_older_versions(self.record.job, card.epoch, purge=self.settings.release.purge_revoked)

    def hold(self, card: ModelCard, arrays: Arrays) -> None:
        """Register the model as the candidate: a person may look at it and promote it."""
        self.advance("exported", epoch=card.epoch)
        self.register(card, arrays, CANDIDATE)

    def register(self, card: ModelCard, arrays: Arrays, alias: str) -> None:
        """Log the model, register it with its lineage, and point an alias at it; the outbox waits for the server."""
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
            "dlfd.formats": ",".join(self.record.formats),
        }
        files = [file_of(form, folder / ONNX_FILE) for form in self.record.formats if form != "fp32"]
        files += [folder / name for name in ("model.safetensors", "card.json")]
        self.tracker.log_model(
            self.record.job,
            folder / ONNX_FILE,
            extra_files={file.name: file for file in files},
            input_example=example,
            outputs=len(card.classes),
            tags=tags,
            alias=alias,
        )

    def settle(
        self, outcome: Literal["released", "returned"], reason: str, epoch: int, requests: Iterable[str]
    ) -> Settled:
        """Tell every site how the job ended; one step of the job."""
        job, devices = self.record.job, self._devices_reached(epoch)
        return self.journal.facts(
            "settle", Settled, lambda: settle(self.fleet, job, self.progress, outcome, reason, epoch, requests, devices)
        )

    def _devices_reached(self, epoch: int) -> DevicesReached | None:
        """Return how far erasures have come on devices; None if that cannot be read, and then requests wait on."""
        try:
            return devices_reached(self.settings, epoch)
        except DeliveryError as error:
            self.progress.say(f"Whether devices have purged is not known, so no request is closed: {error}")
            return None

    def draw(self) -> None:
        """Draw the table and the histograms, into the job's folder and into MLflow."""
        retrained = self.models.get("retrained")
        if retrained is not None:
            gaps = {name: gap_to_retrain(model.scores, retrained.scores) for name, model in self.models.items()}
            self._log({f"{name}.gap_to_retrain": gap for name, gap in gaps.items()}, 0)
        table = summarise(self.record)
        pictures = {"scores": score_table(table.title, table.columns, table.rows, table.footer)}
        pictures |= job_pictures(self.models, self.rounds, self.store.phases(self.record.job))
        for name, png in pictures.items():
            with whole_file(self.store.job_folder(self.record.job) / f"{name}.png", JobError) as new:
                new.write_bytes(png)
            self.tracker.log_image(self.record.job, name, png)


def version_of(card: ModelCard, arrays: Mapping[str, torch.Tensor]) -> str:
    """Return a model's version: its erasure epoch and the start of its digest. It is known before any registry is."""
    return f"{card.epoch}-{digest(arrays)[:12]}"
