"""Audit a model or a file at the sites, pool the samples and score them; measure ranges for int8."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

import numpy as np
from torch import Tensor

from dlfd_fleet.audit import ReferenceSums, Role, SampleScores, Scores, Tally, measure, member_share
from dlfd_fleet.exceptions import ExportError, JobError, MessageError
from dlfd_fleet.export import Parity, Ranges, calibrated_tensors, merge_ranges
from dlfd_fleet.federation.protocol.messages import (
    AuditResult,
    AuditTask,
    CalibrateResult,
    CalibrateTask,
    FileAuditResult,
    FileAuditTask,
    UnseenResult,
    UnseenTask,
)
from dlfd_fleet.federation.protocol.packing import Arrays, file_arrays, samples_of
from dlfd_fleet.federation.records.journal import Answers
from dlfd_fleet.federation.rounds.agreement import together
from dlfd_fleet.federation.rounds.counts import contradiction, counted_rows, plausible_images
from dlfd_fleet.federation.rounds.job_context import JobContext
from dlfd_fleet.formats import FORMATS
from dlfd_fleet.ledger.references import UnseenAccuracy
from dlfd_fleet.progress import Advance

_Audit = TypeVar("_Audit", AuditResult, FileAuditResult)
CHOOSING = (Role.RETAIN, Role.FORGET, Role.VALIDATION)
EVIDENCE = (Role.RETAIN, Role.FORGET, Role.VALIDATION, Role.TEST)

_GATE_RETAIN = 64  # a site


@dataclass(frozen=True)
class AuditedModel:
    """A model with its evidence: samples of all images, and the scores."""

    arrays: Arrays
    samples: SampleScores
    scores: Scores
    own_test: Mapping[str, Tally] = field(default_factory=dict)
    """Accuracy on the test people whom each site alone holds, by site."""
    rows: Mapping[str, int] = field(default_factory=dict)
    """Number of samples of people whom each site alone holds, in order; the last samples are of people whom all
    hold."""
    retained: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    """By site: number of retain images, and the model's accuracy on them."""
    references: Mapping[str, ReferenceSums] = field(default_factory=dict)
    """By site: sums that compare it with reference models."""

    def at(self, sites: Collection[str]) -> SampleScores:
        """Return the samples of people whom these sites hold."""
        mine = np.repeat([site in sites for site in self.rows], list(self.rows.values()))
        return self.samples.rows(np.append(mine, np.ones(len(self.samples) - len(mine), np.bool_)).astype(np.bool_))


@dataclass(frozen=True)
class Audits:
    """The audits of a job; each is one step of its journal."""

    job: JobContext

    def audit(
        self, arrays: Arrays, title: str, step: str, at: frozenset[int] | None = None, *, plan: bool = False
    ) -> AuditedModel:
        """Audit a model at every site, and score it on people whom no gate has used; one step of the job.

        Parameters
        ----------
        at
            Nodes to ask. Default: all. These nodes do not keep the model.
        plan
            Whether people with waiting requests count as those to forget.
        """
        with self.job.progress.phase(title, len(self.job.fleet.wait_for_nodes() if at is None else at)) as advance:
            answers = self._answers(arrays, EVIDENCE, f"audit-{step}", advance, at=at, plan=plan)
        return self._audited(arrays, answers)

    def audit_file(
        self, arrays: Arrays, content: bytes, name: str, step: str = "audit-file", at: frozenset[int] | None = None
    ) -> tuple[AuditedModel, Parity]:
        """Audit an exported file at every site, and compare it with torch; one step of the job.

        Parameters
        ----------
        name
            Name of the file in messages.
        at
            The nodes to ask, if not all of them.
        """
        answers = self.job.journal.answers(step, lambda: self._collect_file(arrays, content, name, at), content)
        agreement = answers.agreeing / (answers.images * (self.job.card.labels or 1)) if answers.images else None
        parity = Parity(answers.max_abs_difference, answers.images, agreement, None, None)
        return self._audited(arrays, answers), parity

    def beside(self, model: AuditedModel, other: AuditedModel) -> Scores:
        """Return the scores of a model at only those sites that answered for another one.

        So two models are compared on people of the same sites.
        """
        if model.rows.keys() <= other.rows.keys():
            return model.scores
        sums = {site: said for site, said in model.references.items() if site in other.rows}
        return self._measured(model.at(other.rows), sums)

    def _audited(self, arrays: Arrays, answers: Answers) -> AuditedModel:
        samples, rows, first, own, labels = answers.samples, answers.rows, 0, dict[str, Tally](), self.job.card.labels
        retained = dict[str, tuple[int, float]]()
        for site, count in rows.items():
            mine = samples.rows(slice(first, first + count))
            test, retain = mine.of(Role.TEST), mine.of(Role.RETAIN)
            first += count
            if len(test):
                own[site] = len(test), float(test.share_right(labels).sum())
            if len(retain):
                retained[site] = len(retain), float(retain.share_right(labels).mean())
        sums = answers.references
        return AuditedModel(arrays, samples, self._measured(samples, sums), own, rows, retained, sums)

    def _measured(self, samples: SampleScores, sums: Mapping[str, ReferenceSums]) -> Scores:
        settings = self.job.settings
        labels = self.job.card.labels
        scores = measure(samples, resamples=settings.audit.resamples, seed=settings.seed, labels=labels)
        return scores.model_copy(update={"member_share": member_share(sums)})

    def _collect_file(self, arrays: Arrays, content: bytes, name: str, at: frozenset[int] | None) -> Answers:
        job = self.job
        task = FileAuditTask(job=job.name, card=job.card, roles=_names(EVIDENCE), references=bool(job.forgetting))
        with job.progress.phase(f"Attacking {name}", len(job.fleet.wait_for_nodes() if at is None else at)) as advance:
            heard, answers = self._agreeing(task, FileAuditResult, advance, at, model=arrays, file=file_arrays(content))
        results = [result for result, _ in heard.values()]
        return replace(
            answers,
            max_abs_difference=max(result.max_abs_difference for result in results),
            images=sum(result.images for result in results),
            agreeing=sum(result.agreeing for result in results),
        )

    def ranges(self, prepared: bytes) -> dict[str, tuple[float, float]]:
        """Measure the ranges of a prepared file's activations on retain images of the sites; one step of the job.

        With references, the forgetting sites and a share of the others measure, if together they have
        ``export.calibration_images`` retain images.
        """
        kind = dict[str, tuple[float, float]]
        return self.job.journal.facts_of(prepared, "calibrate", kind, lambda: self._calibrate_at_few(prepared))

    def _calibrate_at_few(self, prepared: bytes) -> dict[str, tuple[float, float]]:
        """Return the ranges of a share of the sites, if these have images enough and answer; of all sites if not."""
        job = self.job
        some, claims = job.sampled("calibrate") if job.sites_can_tell else frozenset(), job.fleet.claims()
        if sum(claims[node].weight for node in some) >= job.settings.export.calibration_images:
            try:
                return self._calibrate(prepared, some)
            except JobError as error:
                job.progress.say(f"{error} So all sites are asked.")
        return self._calibrate(prepared)

    def _calibrate(self, prepared: bytes, at: frozenset[int] | None = None) -> dict[str, tuple[float, float]]:
        job, fleet, tensors = self.job, self.job.fleet, calibrated_tensors(prepared)
        task = CalibrateTask(job=job.name, card=job.card, images=job.settings.export.calibration_images, seed=job.seed)
        nodes = [node for node in fleet.wait_for_nodes() if at is None or node in at]
        parts, answered = [], 0
        forms = ", ".join(form for form in job.settings.export.formats if FORMATS.find(form).needs_ranges)
        with job.progress.phase(f"Measuring ranges for {forms}", len(nodes)) as advance:
            records = task.to_records(file=file_arrays(prepared))
            for reply in fleet.exchange(task.TYPE, dict.fromkeys(nodes, records), str(job.round)):
                advance()
                try:
                    result = CalibrateResult.from_records(reply.records, reply.sender)
                    fleet.worked(reply.node, result.seconds)
                    if result.images:
                        parts.append(_checked(result.ranges, tensors, reply.sender))
                    answered += 1
                except MessageError as error:
                    fleet.refuse(reply.node, error)
        fleet.require_quorum(answered, f"answered {task.TYPE}", None if at is None else len(at & fleet.members))
        return merge_ranges(parts)

    def retained(self, arrays: Arrays, step: str, at: frozenset[int]) -> dict[str, tuple[int, float]]:
        """Return by site its retain images, and the share of them that a model is right about; one step.

        It is empty where too few sites answer.

        Parameters
        ----------
        at
            The nodes to ask; they keep the model.
        """
        kind = dict[str, tuple[int, float]]
        task = AuditTask(job=self.job.name, card=self.job.card, roles=_names((Role.RETAIN,)))

        def compute() -> dict[str, tuple[int, float]]:
            try:
                heard = self._ask_all(task, AuditResult, lambda: None, at, keep=True, model=arrays)
            except JobError as error:
                self.job.progress.say(f"What retained people lost is not known before the audit: {error}")
                return {}
            name, labels = self.job.fleet.name, self.job.card.labels
            return {
                name(node): (len(samples), float(samples.share_right(labels).mean()))
                for node, (_, samples) in heard.items()
                if len(samples)
            }

        return self.job.journal.facts_of(arrays, step, kind, compute)

    def unseen(self, arrays: Arrays, at: frozenset[int] | None = None) -> dict[str, UnseenAccuracy]:
        """Ask sites to compare reference models and a model on people never trained on; one step of the job.

        Parameters
        ----------
        at
            Nodes to ask. Default: all. Nodes that do not answer, or have no references, are left out.
        """
        job, fleet, drop = self.job, self.job.fleet, self.job.settings.references.max_accuracy_drop
        records = UnseenTask(job=job.name, card=job.card, max_drop=drop).to_records(model=arrays)

        def compute() -> dict[str, UnseenAccuracy]:
            told = dict[str, UnseenAccuracy]()
            tasks = {node: records for node in fleet.wait_for_nodes() if at is None or node in at}
            for reply in fleet.exchange(UnseenTask.TYPE, tasks, str(job.round), job.card):
                try:
                    result = UnseenResult.from_records(reply.records, reply.sender)
                except MessageError as error:
                    fleet.refuse(reply.node, error)
                    continue
                fleet.worked(reply.node, result.seconds)
                if result.unseen is not None:
                    told[reply.sender] = result.unseen
            return told

        return job.journal.facts_of(arrays, "compare-references", dict[str, UnseenAccuracy], compute)

    def gate_samples(self, arrays: Arrays, step: str) -> SampleScores:
        """Return a model's samples for a gate, with a sample of retain images at each site."""
        return self._answers(arrays, CHOOSING, step, lambda: None, _GATE_RETAIN).samples

    def _answers(
        self,
        arrays: Arrays,
        roles: tuple[Role, ...],
        step: str,
        advance: Advance,
        most_retain: int | None = None,
        at: frozenset[int] | None = None,
        *,
        plan: bool = False,
    ) -> Answers:
        job = self.job
        task = AuditTask(
            job=job.name,
            card=job.card,
            roles=_names(roles),
            most_retain=most_retain,
            references=Role.TEST in roles and bool(job.forgetting),
            plan=plan,
        )
        return job.journal.answers(
            step, lambda: self._agreeing(task, AuditResult, advance, at, keep=at is None, model=arrays)[1], arrays
        )

    def _agreeing(
        self,
        task: AuditTask | FileAuditTask,
        expected: type[_Audit],
        advance: Advance,
        at: frozenset[int] | None,
        *,
        keep: bool = True,
        **arrays: Mapping[str, Tensor],
    ) -> tuple[dict[int, tuple[_Audit, SampleScores]], Answers]:
        """Return the nodes' answers, each by itself and joined.

        Of all nodes where some are too few: to agree, or to hold unseen and retained people to compare with.
        """
        if at is not None:
            try:
                heard = self._ask_all(task, expected, advance, at, keep=keep, **arrays)
                answers = together(self.job.fleet, heard)
                if all(len(answers.samples.of(role)) for role in (Role.TEST, Role.RETAIN)):
                    return heard, answers
                why = "The sites that were asked hold nobody unseen, or nobody retained."
            except JobError as error:
                why = str(error)
            self.job.progress.say(f"{why} So all sites are asked.")
        heard = self._ask_all(task, expected, advance, None, keep=keep, **arrays)
        return heard, together(self.job.fleet, heard)

    def _ask_all(
        self,
        task: AuditTask | FileAuditTask,
        expected: type[_Audit],
        advance: Advance,
        at: frozenset[int] | None,
        *,
        keep: bool,
        **arrays: Mapping[str, Tensor],
    ) -> dict[int, tuple[_Audit, SampleScores]]:
        """Return every node's answer, or that of each of some."""
        card, fleet, claims, answers = (
            self.job.card,
            self.job.fleet,
            self.job.fleet.claims(),
            dict[int, tuple[_Audit, SampleScores]](),
        )
        records, roles = task.to_records(None, **arrays), [Role(name) for name in task.roles]
        most_retain = None if isinstance(task, FileAuditTask) else task.most_retain
        most_unseen = plausible_images(claims)
        tasks = {node: records for node in fleet.wait_for_nodes() if at is None or node in at}
        for reply in fleet.exchange(task.TYPE, tasks, str(self.job.round), self.job.card, keep=keep):
            advance()
            try:
                result = expected.from_records(reply.records, reply.sender)
                fleet.worked(reply.node, result.seconds)
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
        able = None if at is None else len(at & fleet.members)
        fleet.require_quorum(len(answers), f"answered {task.TYPE}", able)
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
    if result.references is not None:
        _check_sums(result.references, samples, result.shared, sender)


def _check_sums(sums: ReferenceSums, samples: SampleScores, shared: int, sender: str) -> None:
    """Refuse sums of more people or images than the samples have."""
    first = len(samples) - shared
    own, common = samples.rows(slice(first)), samples.rows(slice(first, None))
    for role, part in ((Role.FORGET, sums.forget), (Role.RETAIN, sums.retain)):
        rows = own.of(role)
        if part.images > len(rows) or part.people > len(np.unique(rows.person)):
            raise MessageError(f"{sender} sent sums over more people of the role '{role}' than it has samples of.")
    if sums.noise_people > len(np.unique(own.of(Role.FORGET, Role.RETAIN).person)):
        raise MessageError(f"{sender} sent noise of more people than it has samples of.")
    for rows, unseen in ((own, sums.unseen), (common, sums.shared)):
        test = rows.of(Role.TEST)
        if unseen.people > len(np.unique(test.person)) or unseen.images > len(test) + 0.5:
            raise MessageError(f"{sender} sent sums over more people never trained on than it has samples of.")


def _checked(ranges: Ranges, tensors: frozenset[str], sender: str) -> dict[str, tuple[float, float]]:
    if ranges.keys() != tensors:
        raise MessageError(f"{sender} sent ranges of other tensors than the file has.")
    try:
        return merge_ranges([ranges])
    except ExportError as error:
        raise MessageError(f"{sender}: {error}") from error


def _names(roles: tuple[Role, ...]) -> tuple[Literal["retain", "forget", "validation", "test"], ...]:
    return tuple(role.value for role in roles)
