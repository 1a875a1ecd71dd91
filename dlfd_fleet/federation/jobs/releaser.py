"""Where a fleet's own models go: into the job's folder as ONNX, to the sites for an attack, and into the registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import torch

from dlfd_fleet.audit import Outcome, Verdict, judge, judge_without_each
from dlfd_fleet.data import drawn_inputs
from dlfd_fleet.exceptions import ExportError, FleetError, JobError, ModelFileError
from dlfd_fleet.export import Parity, content_of, export_onnx, export_variant, no_inputs, prepare
from dlfd_fleet.federation.jobs.coordinator import Coordinator
from dlfd_fleet.federation.jobs.erase import Origin
from dlfd_fleet.federation.jobs.pictures import job_pictures
from dlfd_fleet.federation.jobs.recorder import TrackedJob
from dlfd_fleet.federation.jobs.reporting import e_product, record_report, said_in_short, signer_of
from dlfd_fleet.federation.jobs.summary import describe, summarise
from dlfd_fleet.federation.protocol.packing import Arrays
from dlfd_fleet.federation.records.job_folders import ONNX_FILE
from dlfd_fleet.federation.records.job_record import Champion, JobKind
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.federation.release.champion import agreed_champion
from dlfd_fleet.federation.release.exactness import why_not_exact
from dlfd_fleet.federation.release.release_rule import may_release
from dlfd_fleet.federation.rounds.audits import AuditedModel
from dlfd_fleet.federation.rounds.job_context import Effort
from dlfd_fleet.federation.rounds.requests import fits
from dlfd_fleet.files import whole_file
from dlfd_fleet.formats import FORMATS, FP32
from dlfd_fleet.models import ModelCard, build, card_of, digest, load_arrays, load_model, save_model, state_arrays
from dlfd_fleet.plain_text import visible
from dlfd_fleet.report.contents import FileResult
from dlfd_fleet.settings import Format
from dlfd_fleet.tracking import Tracker
from dlfd_fleet.tracking.figures import score_table
from dlfd_fleet.tracking.registry import CANDIDATE, CHAMPION

_LONGEST_REASON = 500
_WITHOUT_VERDICT: dict[JobKind, str] = {"train": "a training", "erase": "an erasure", "import": "an import"}
_WANTED: dict[JobKind, str] = {
    "erase": "to unlearn from",
    "references": "to make reference models of",
    "plan": "to unlearn from",
}


@dataclass
class FleetReleaser:
    """The releaser of a fleet's own jobs: state folder, exported file, its variants, MLflow and its registry."""

    job: Coordinator
    store: Store
    tracker: Tracker
    recorder: TrackedJob

    # ------------------------------------------------------------------ the champion

    def audited_champion(self) -> tuple[ModelCard, AuditedModel] | None:
        """Return the model that the fleet runs, attacked at the sites of today; None if a new one has none to beat."""
        kind = list[Champion]
        known = self.job.journal.facts("champion", kind, self._champions)
        if not known:
            return None
        if self.job.is_behind:
            self.job.progress.say(
                f"The champion is of the epoch {known[0].epoch}, and sites know {self.job.epoch}: no site works on it, "
                "and the new model is compared with none."
            )
            return None
        try:
            model, card = load_model(self.store.folders.model(known[0].job))
        except ModelFileError as error:
            self._refuse_another_network(known[0].job, error)
            self.job.progress.say(f"{error} The new model begins with fresh weights, and is compared with none.")
            return None
        if not all(fits(reply, card) for reply in self.job.fleet.said):
            self.job.progress.say(
                "The champion has other classes or another input; the new model begins with fresh weights, and is "
                "compared with none."
            )
            return None
        return card, self.job.audits(card).audit(state_arrays(model), "Auditing the champion", "champion")

    def _refuse_another_network(self, job: str, error: ModelFileError) -> None:
        """Raise a :class:`JobError` if the champion is whole, and only its network cannot be built here.

        Whoever wants that begins with fresh weights: else a champion would be replaced that nothing was compared with.
        """
        card = card_of(self.store.folders.model(job))
        if card is not None and card.of_factory and self.job.settings.training.start == "champion":
            raise JobError(
                f"{error} Set model.architecture to the champion's, or begin anew with `dlfd-fleet job start train "
                "--fresh`."
            ) from error

    def _champions(self) -> list[Champion]:
        champion = agreed_champion(self.store, self.tracker, self.job.progress.say)
        return [champion] if champion else []

    def origin(self) -> Origin:
        """Return the model that the fleet runs: the registry's alias, or our own note when it does not answer.

        Raises
        ------
        JobError
            If there is none yet.
        """
        champion = self.job.journal.facts("champion", Champion, self._known_champion)
        model, card = load_model(self.store.folders.model(champion.job))
        arrays = state_arrays(model)
        self.recorder.tags({"dlfd.parent_version": version_of(card, arrays)})
        made = self.store.load(champion.job).models.get(card.kind)
        return Origin(card, arrays, Effort(made.seconds, made.bytes_sent) if made else Effort(0.0, 0))

    def why_not_exact(self, origin: Origin) -> str:
        """Say why training anew would not be exact; nothing where nothing known speaks against it."""
        return why_not_exact(self.store, origin.card, origin.arrays, self.job.settings.model.weights)

    def _known_champion(self) -> Champion:
        champion = agreed_champion(self.store, self.tracker, self.job.progress.say)
        if champion is None:
            wanted = _WANTED[self.job.record.kind]
            raise JobError(f'There is no champion model {wanted}; run a training job first (job = "train").')
        return champion

    # ------------------------------------------------------------------ releasing

    def prepare(self) -> None:
        """Refuse a key that cannot sign now, and not when the model is out."""
        signer_of(self.job.settings, self.store)

    def release_or_hold(
        self, card: ModelCard, arrays: Arrays, forgotten: tuple[str, ...] = (), *, hold: bool = False
    ) -> None:
        """Export, audit the file that ships, and move the alias if it holds what the model promised.

        A model that policy holds, or whose file it holds, is registered as the candidate. Where some sites alone have
        audited the file, the verdict stays that of the model, which all of them have, unless the file fails: on the
        same images it says what torch says, and on fewer images the attack shows less.
        """
        file = self.export(card, arrays)
        verdict = self.judge_file(card, arrays, file)
        if verdict is not None and verdict.outcome is Outcome.FAIL:
            self.job.advance("exported", verdict=verdict)
            return
        if verdict is not None and self._audited_by_all(card, self.job.record.proceedings.files[FP32].sites):
            self.job.advance("exported", verdict=verdict)
            hold = hold or not may_release(verdict, self.job.settings)
        if hold:
            self.hold(card, arrays)
            return
        self.export_variants(card, arrays, file)
        self.release(card, arrays, forgotten)

    def release_imported(self) -> None:
        """Export and release the model that an import has put into the job's folder."""
        model, card = load_model(self.store.folders.model(self.job.record.job))
        arrays = state_arrays(model)
        self.export(card, arrays)
        self.release(card, arrays)
        self.job.advance("settled", note="imported")

    def export(self, card: ModelCard, arrays: Arrays) -> Path:
        """Write the model and its ONNX file into the job's folder; one step of the job.

        Raises
        ------
        JobError
            If the job has exported another model before it was interrupted: that one may be out.
        """
        file = self.store.folders.model(self.job.record.job) / ONNX_FILE
        if self.job.journal.is_done("export") and digest(state_arrays(load_model(file.parent)[0])) != digest(arrays):
            raise JobError(
                f"Before {self.job.record.job} was interrupted it exported another model than it has now; cancel it "
                "and start another job."
            )
        self.job.journal.facts("export", int, lambda: self._export(card, arrays, file))
        self.job.advance("exported")
        return file

    def _export(self, card: ModelCard, arrays: Arrays, file: Path) -> int:
        model = build(card)
        load_arrays(model, arrays)
        save_model(model, card, file.parent)
        nothing = no_inputs(card)
        with self.job.progress.phase("Exporting to ONNX", 1) as advance:
            report = export_onnx(
                model,
                card,
                file,
                version=version_of(card, arrays),
                settings=self.job.settings.export,
                images=nothing,
                verdict=self.job.record.verdict.outcome.value if self.job.record.verdict else "",
            )
            advance()
        self.recorder.metrics({"onnx_random_max_abs_difference": report.parity.max_abs_difference}, 0)
        return report.size_bytes

    def export_variants(self, card: ModelCard, arrays: Arrays, source: Path) -> None:
        """Make the formats of ``export.formats`` beside the fp32 file, and keep those that are good.

        A file that is too far from torch, or that leaks again what the model has forgotten, is deleted and named; the
        model and its other files are released without it.

        Parameters
        ----------
        source
            The fp32 file, which may be released.
        """
        job, kept = self.job, list[Format]([FP32])
        for form in job.settings.export.formats:
            if form == FP32:
                continue
            try:
                verdict = self._export_variant(card, arrays, source, form)
            except ExportError as error:
                reason: str | None = str(error)
            else:
                if verdict is not None:
                    verdicts = job.record.file_verdicts | {form: verdict}
                    job.record = job.record.changed(file_verdicts=verdicts)
                reason = verdict.sentence() if verdict and not may_release(verdict, job.settings) else None
            if reason is None:
                kept.append(form)
            else:
                FORMATS.find(form).file(source).unlink(missing_ok=True)
                job.note(refused_files=job.record.proceedings.refused_files | {form: reason})
                job.progress.say(f"No {form} file is released: {reason}")
        job.advance("exported", formats=tuple(kept))

    def _export_variant(self, card: ModelCard, arrays: Arrays, source: Path, form: Format) -> Verdict | None:
        """Make one file, unless it was made before the job was interrupted, and attack it at the sites."""
        wanted = FORMATS.find(form)
        file = wanted.file(source)
        if not file.exists():
            ranges = self.job.audits(card).ranges(prepare(content_of(source))) if wanted.needs_ranges else None
            model = build(card)
            load_arrays(model, arrays)
            # The coordinator has no images: that a file is near to torch on those that matter shows at the sites.
            nothing = no_inputs(card)
            settings = self.job.settings.export
            export_variant(model, card, source, form=form, settings=settings, images=nothing, ranges=ranges)
        return self.judge_file(card, arrays, file, form)

    def judge_file(self, card: ModelCard, arrays: Arrays, file: Path, form: Format = FP32) -> Verdict | None:
        """Attack an exported file at the sites; it must be torch's model, and must have forgotten too.

        Where sites can tell by reference models, only some audit it, and it is compared with the original at the same
        sites. On few images a model may fail by chance, so a file that fails there is audited at all sites, and that
        decides.

        Raises
        ------
        ExportError
            If it is not as near to torch on the sites' images, or not as accurate, as its format allows.
        """
        name, step = ("onnx", "audit-file") if form == FP32 else (f"onnx_{form}", f"audit-file-{form}")
        content, audits, context = content_of(file), self.job.audits(card), self.job.context(card)
        some = context.auditing_file(exact=form == FP32)
        audited, parity = audits.audit_file(arrays, content, file.name, step, some)
        verdict = self._verdict_of_file(card, audited)
        failed = verdict is not None and verdict.outcome is Outcome.FAIL
        if failed and some is not None and not self._audited_by_all(card, len(audited.rows)):
            audited, parity = audits.audit_file(arrays, content, file.name, f"{step}-everywhere")
            verdict = self._verdict_of_file(card, audited)
        scores, parity = audited.scores, self._beside_torch(card, audited, parity, name)
        self.recorder.metrics({f"{name}_max_abs_difference": parity.max_abs_difference}, 0)
        self.recorder.metrics(
            {f"{name}_compared_images": parity.compared_images, f"{name}_agreement": parity.agreement or 0.0}, 0
        )
        self.recorder.metrics({f"{name}_size_bytes": file.stat().st_size}, 0)
        reason = parity.why_not(form, self.job.settings.export)
        if reason:
            raise ExportError(f"On the sites' images {file.name} {reason}; it is not released.")
        self.recorder.metrics({f"{name}.{metric}": value for metric, value in scores.metrics().items()}, 0)
        result = FileResult(
            name=file.name,
            sha256=sha256(content).hexdigest(),
            size_bytes=len(content),
            max_abs_difference=parity.max_abs_difference,
            compared_images=parity.compared_images,
            agreement=parity.agreement,
            scores=scores,
            sites=len(audited.rows),
            verdict=verdict,
        )
        self.job.note(files=self.job.record.proceedings.files | {form: result})
        return verdict

    def _audited_by_all(self, card: ModelCard, sites: int) -> bool:
        """Tell whether this many sites, which audited a file, are no mere share of those that audited its model."""
        model = self.job.record.models.get(card.kind)
        return model is None or not self.job.context(card).sites_can_tell or sites >= model.sites

    def _beside_torch(self, card: ModelCard, audited: AuditedModel, parity: Parity, name: str) -> Parity:
        """Add the accuracies of the file and of torch at the same sites, if they are of the same images.

        A site may have been away from one of the two audits.
        """
        torch_model, scores = self.job.models.get(card.kind), audited.scores
        if torch_model is None:
            return parity
        torch_scores = self.job.audits(card).beside(torch_model, audited)
        if torch_scores.unseen_images != scores.unseen_images:
            return parity
        own, torchs = scores.test_accuracy, torch_scores.test_accuracy
        if own is None or torchs is None:
            return parity
        self.recorder.metrics({f"{name}_accuracy": own.value, f"{name}_torch_accuracy": torchs.value}, 0)
        return replace(parity, accuracy=own.value, torch_accuracy=torchs.value)

    def _verdict_of_file(self, card: ModelCard, audited: AuditedModel) -> Verdict | None:
        """Judge a file beside the original, of which the answers of the same sites count."""
        original, scores, audits = self.job.models.get("original"), audited.scores, self.job.audits(card)
        if original is None or not scores.forget_images:
            return None
        before, settings = audits.beside(original, audited), self.job.settings.audit
        if card.kind == "retrained":
            verdict = self.job.judge_retrained(before, scores)
        else:
            retrained = self.job.models.get("retrained")
            reference = audits.beside(retrained, audited) if retrained else None
            verdict = judge(before, scores, settings, reference)
        if verdict.outcome is Outcome.FAIL:
            return verdict
        return judge_without_each(verdict, before, scores, original.own_test, audited.own_test, settings)

    def release(self, card: ModelCard, arrays: Arrays, forgotten: tuple[str, ...] = ()) -> None:
        """Make the model, which has forgotten these requests, the champion, here and in the registry."""
        # The record first: a job that says it is released and is not yet the champion becomes it when it is resumed.
        self.job.advance("released", released=True, epoch=card.epoch, forgotten=forgotten)
        verdict = self.job.record.verdict
        why = verdict.sentence() if verdict else f"{_WITHOUT_VERDICT[self.job.record.kind]} job"
        self.store.champions.move(
            Champion(job=self.job.record.job, epoch=card.epoch), f"job {self.job.record.job}", why
        )
        self.register(card, arrays, CHAMPION)
        if card.kind != "original":
            self.tracker.revoke_older_versions(
                self.job.record.job, card.epoch, purge=self.job.settings.release.purge_revoked
            )

    def hold(self, card: ModelCard, arrays: Arrays) -> None:
        """Register the model as the candidate: a person may look at it and promote it."""
        self.job.advance("exported", epoch=card.epoch)
        self.register(card, arrays, CANDIDATE)

    def register(self, card: ModelCard, arrays: Arrays, alias: str) -> None:
        """Log the model, register it with its lineage, and point an alias at it; the outbox waits for the server."""
        folder = self.store.folders.model(self.job.record.job)
        example = drawn_inputs(card.input, 2)
        verdict = self.job.record.verdict
        tags = {
            "dlfd.version": version_of(card, arrays),
            "dlfd.job": self.job.record.job,
            "dlfd.kind": card.kind,
            "dlfd.epoch": str(card.epoch),
            "dlfd.parent": card.parent or "",
            "dlfd.weights_sha256": digest(arrays),
            "dlfd.verdict": verdict.outcome.value if verdict else "",
            "dlfd.formats": ",".join(self.job.record.formats),
        }
        if (product := e_product(self.store, self.job.record)) is not None:
            tags["dlfd.e_product"] = f"{product:.4g}"
        files = [FORMATS.find(form).file(folder / ONNX_FILE) for form in self.job.record.formats if form != FP32]
        files += [folder / name for name in ("model.safetensors", "card.json")]
        self.tracker.log_model(
            self.job.record.job,
            folder / ONNX_FILE,
            extra_files={file.name: file for file in files},
            input_example=example,
            outputs=len(card.classes),
            tags=tags,
            alias=alias,
            description=describe(self.job.record, said_in_short(self.store, self.job.record)),
        )

    # ------------------------------------------------------------------ showing

    def show(self) -> str:
        """Draw the job and write its report; return in words what cannot be drawn.

        The sites have been told, so nothing is left that a job could be held for. What an operator can mend, such as a
        full disk, stops it as ever: it is resumed, and then it is drawn.
        """
        return self._unshown(self.draw) + self._unshown(self.report)

    def _unshown(self, show: Callable[[], None]) -> str:
        try:
            show()
        except FleetError:
            raise
        except Exception as error:
            words = visible(f"; its report cannot be drawn: {type(error).__name__}: {error}", _LONGEST_REASON)
            self.job.progress.say(f"{self.job.record.job}{words}")
            return words
        return ""

    def report(self) -> None:
        """Write the report and the certificate."""
        record_report(self.job, self.store, self.tracker)

    def draw(self) -> None:
        """Draw the table and the histograms, into the job's folder and into MLflow."""
        table = summarise(self.job.record, said_in_short(self.store, self.job.record))
        pictures = {"scores": score_table(table.title, table.columns, table.rows, table.footer, table.lead)}
        pictures |= job_pictures(self.job.models, self.recorder.readings, self.store.steps.phases(self.job.record.job))
        for name, png in pictures.items():
            with whole_file(self.store.folders.made(self.job.record.job) / f"{name}.png", JobError) as new:
                new.write_bytes(png)
            self.tracker.log_image(self.job.record.job, name, png)


def version_of(card: ModelCard, arrays: Mapping[str, torch.Tensor]) -> str:
    """Return a model's version: its erasure epoch and the start of its digest. It is known before any registry is."""
    return f"{card.epoch}-{digest(arrays)[:12]}"
