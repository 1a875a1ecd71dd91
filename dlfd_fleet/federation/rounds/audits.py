"""What a model says of the sites' images, pooled and scored: for a gate, for evidence, ranges of activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from torch import Tensor

from dlfd_fleet.audit import Role, SampleScores, Scores, Tally, measure
from dlfd_fleet.exceptions import ExportError, MessageError
from dlfd_fleet.export import Parity, Ranges, calibrated_tensors, merge_ranges
from dlfd_fleet.federation.protocol.messages import (
    AuditResult,
    AuditTask,
    CalibrateResult,
    CalibrateTask,
    FileAuditResult,
    FileAuditTask,
)
from dlfd_fleet.federation.protocol.packing import Arrays, file_arrays, samples_of
from dlfd_fleet.federation.records.journal import Answers
from dlfd_fleet.federation.rounds.agreement import together
from dlfd_fleet.federation.rounds.counts import contradiction, counted_rows, plausible_images
from dlfd_fleet.federation.rounds.job_context import JobContext
from dlfd_fleet.formats import FORMATS
from dlfd_fleet.progress import Advance

_Audit = TypeVar("_Audit", AuditResult, FileAuditResult)
CHOOSING = (Role.RETAIN, Role.FORGET, Role.VALIDATION)
EVIDENCE = (Role.RETAIN, Role.FORGET, Role.VALIDATION, Role.TEST)

_GATE_RETAIN = 64  # a site


@dataclass(frozen=True)
class AuditedModel:
    """A model with its evidence: what it says of each image, and the scores made of that."""

    arrays: Arrays
    samples: SampleScores
    scores: Scores
    own_test: Mapping[str, Tally] = field(default_factory=dict)
    """What sites say of the test people whom each of them alone holds."""


@dataclass(frozen=True)
class Audits:
    """The audits that jobs are made of; each is one step of the job's journal."""

    job: JobContext

    def audit(self, arrays: Arrays, title: str, step: str) -> AuditedModel:
        """Attack a model at every site, and score it on the people that no gate has used; one step of the job."""
        with self.job.progress.phase(title, len(self.job.fleet.wait_for_nodes())) as advance:
            answers = self._answers(arrays, EVIDENCE, f"audit-{step}", advance)
        return AuditedModel(arrays, answers.samples, self._measured(answers.samples), answers.own_test)

    def audit_file(self, arrays: Arrays, content: bytes, name: str, step: str = "audit-file") -> tuple[Scores, Parity]:
        """Attack an exported file at every site; return scores and how near it is to torch; one step of the job.

        Parameters
        ----------
        name
            What people call the file.
        """
        answers = self.job.journal.answers(step, lambda: self._collect_file(arrays, content, name))
        agreement = answers.agreeing / (answers.images * (self.job.card.labels or 1)) if answers.images else None
        parity = Parity(answers.max_abs_difference, answers.images, agreement, None, None)
        return self._measured(answers.samples), parity

    def _measured(self, samples: SampleScores) -> Scores:
        settings = self.job.settings
        labels = self.job.card.labels
        return measure(samples, resamples=settings.audit.resamples, seed=settings.seed, labels=labels)

    def _collect_file(self, arrays: Arrays, content: bytes, name: str) -> Answers:
        job = self.job
        task = FileAuditTask(job=job.name, card=job.card, roles=_names(EVIDENCE))
        with job.progress.phase(f"Attacking {name}", len(job.fleet.wait_for_nodes())) as advance:
            heard = self._ask_all(task, FileAuditResult, advance, model=arrays, file=file_arrays(content))
        results = [result for result, _ in heard.values()]
        return Answers(
            together(job.fleet, heard, job.card.labels).samples,
            max(result.max_abs_difference for result in results),
            sum(result.images for result in results),
            sum(result.agreeing for result in results),
        )

    def ranges(self, prepared: bytes) -> dict[str, tuple[float, float]]:
        """Return the ranges of a prepared file's activations over every site's retain images; one step of the job."""
        kind = dict[str, tuple[float, float]]
        return self.job.journal.facts("calibrate", kind, lambda: self._calibrate(prepared))

    def _calibrate(self, prepared: bytes) -> dict[str, tuple[float, float]]:
        job, fleet, tensors = self.job, self.job.fleet, calibrated_tensors(prepared)
        task = CalibrateTask(job=job.name, card=job.card, images=job.settings.export.calibration_images, seed=job.seed)
        nodes, parts, answered = list(fleet.wait_for_nodes()), [], 0
        forms = ", ".join(form for form in job.settings.export.formats if FORMATS.find(form).needs_ranges)
        with job.progress.phase(f"Measuring ranges for {forms}", len(nodes)) as advance:
            records = task.to_records(file=file_arrays(prepared))
            for reply in fleet.exchange(task.TYPE, dict.fromkeys(nodes, records), str(job.round)):
                advance()
                try:
                    result = CalibrateResult.from_records(reply.records, reply.sender)
                    if result.images:
                        parts.append(_checked(result.ranges, tensors, reply.sender))
                    answered += 1
                except MessageError as error:
                    fleet.refuse(reply.node, error)
        fleet.require_quorum(answered, f"answered {task.TYPE}")
        return merge_ranges(parts)

    def gate_samples(self, arrays: Arrays, step: str) -> SampleScores:
        """Return what a model says of the images that a gate may read, of retain images only some at each site."""
        return self._answers(arrays, CHOOSING, step, lambda: None, _GATE_RETAIN).samples

    def _answers(
        self, arrays: Arrays, roles: tuple[Role, ...], step: str, advance: Advance, most_retain: int | None = None
    ) -> Answers:
        job = self.job
        task = AuditTask(job=job.name, card=job.card, roles=_names(roles), most_retain=most_retain)
        return job.journal.answers(
            step,
            lambda: together(job.fleet, self._ask_all(task, AuditResult, advance, model=arrays), job.card.labels),
        )

    def _ask_all(
        self,
        task: AuditTask | FileAuditTask,
        expected: type[_Audit],
        advance: Advance,
        **arrays: Mapping[str, Tensor],
    ) -> dict[int, tuple[_Audit, SampleScores]]:
        """Return every node's answer."""
        card, fleet, claims, answers = (
            self.job.card,
            self.job.fleet,
            self.job.fleet.claims(),
            dict[int, tuple[_Audit, SampleScores]](),
        )
        records, roles = task.to_records(None, **arrays), [Role(name) for name in task.roles]
        most_retain = None if isinstance(task, FileAuditTask) else task.most_retain
        most_unseen = plausible_images(claims)
        tasks = dict.fromkeys(fleet.wait_for_nodes(), records)
        for reply in fleet.exchange(task.TYPE, tasks, str(self.job.round), self.job.card):
            advance()
            try:
                result = expected.from_records(reply.records, reply.sender)
                samples = samples_of(reply.records, len(card.classes), reply.sender, multi_label=card.multi_label)
                check_counts(result, samples, reply.sender, card.labels)
                if (claim := claims.get(reply.node)) is not None:
                    said = contradiction(claim, samples, roles, most_retain, most_unseen)
                    if said is not None:
                        fleet.expel(reply.node, said)
                        continue
                    samples = counted_rows(claim, samples)
                answers[reply.node] = result, samples
            except MessageError as error:
                fleet.refuse(reply.node, error)
        fleet.require_quorum(len(answers), f"answered {task.TYPE}")
        return answers


def check_counts(
    result: AuditResult | FileAuditResult, samples: SampleScores, sender: str, labels: int | None = None
) -> None:
    """Refuse an answer whose counts are not those of its samples: they would decide for more images than it has."""
    images = len(samples)
    of_file = isinstance(result, FileAuditResult) and (
        result.images != images or result.agreeing > images * (labels or 1)
    )
    if result.shared > images or of_file:
        raise MessageError(f"{sender} sent {len(samples)} samples, and counts of others than these.")
    if len(samples.rows(slice(len(samples) - result.shared, None)).of(Role.RETAIN, Role.FORGET)):
        raise MessageError(f"{sender} says that every site holds people whom it trains on, or who asked it.")


def _checked(ranges: Ranges, tensors: frozenset[str], sender: str) -> dict[str, tuple[float, float]]:
    if ranges.keys() != tensors:
        raise MessageError(f"{sender} sent ranges of other tensors than the file has.")
    try:
        return merge_ranges([ranges])
    except ExportError as error:
        raise MessageError(f"{sender}: {error}") from error


def _names(roles: tuple[Role, ...]) -> tuple[Literal["retain", "forget", "validation", "test"], ...]:
    return tuple(role.value for role in roles)
