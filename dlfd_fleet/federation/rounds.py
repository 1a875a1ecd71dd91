"""One round of each kind: what goes out to the sites, what may come back, and how it becomes one model or one audit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import ClassVar, Literal, Protocol, TypeVar

from rich.console import Console
from torch import Tensor

from dlfd_fleet.audit import Role, SampleScores, Scores, Tally, measure
from dlfd_fleet.exceptions import ExportError, JobError, MessageError
from dlfd_fleet.export import Parity, Ranges, calibrated_tensors, merge_ranges
from dlfd_fleet.federation.aggregation import (
    RunningMean,
    check_epoch,
    check_update,
    check_weight,
    odd_updates,
)
from dlfd_fleet.federation.agreement import together
from dlfd_fleet.federation.differences import difference_of, model_of
from dlfd_fleet.federation.fleet import Fleet
from dlfd_fleet.federation.journal import Answers, Journal, Merged
from dlfd_fleet.federation.messages import (
    COORDINATOR,
    MODEL,
    Arrays,
    AuditResult,
    AuditTask,
    CalibrateResult,
    CalibrateTask,
    FileAuditResult,
    FileAuditTask,
    FitResult,
    FitTask,
    PendingReply,
    UnlearnResult,
    UnlearnTask,
    arrays_of,
    file_arrays,
    samples_of,
)
from dlfd_fleet.federation.requests import class_weights
from dlfd_fleet.models import ModelCard
from dlfd_fleet.progress import Advance, ConsoleProgress, ProgressDisplay
from dlfd_fleet.settings import Settings

Purpose = Literal["train", "repair", "relearn", "retrain"]
_Update = TypeVar("_Update", FitResult, UnlearnResult)
_Audit = TypeVar("_Audit", AuditResult, FileAuditResult)
CHOOSING = (Role.RETAIN, Role.FORGET, Role.VALIDATION)
EVIDENCE = (Role.RETAIN, Role.FORGET, Role.VALIDATION, Role.TEST)

_GATE_RETAIN = 64  # a site


class Recorder(Protocol):
    """Takes metrics as they come: names, values, the round, and the site's pseudonym."""

    def __call__(self, metrics: Mapping[str, float], step: int, site: str | None = None) -> None:
        """Record the metrics of one step."""


@dataclass(frozen=True)
class AuditedModel:
    """A model with its evidence: what it says of each image, and the scores made of that."""

    arrays: Arrays
    samples: SampleScores
    scores: Scores
    own_test: Mapping[str, Tally] = field(default_factory=dict)
    """What sites say of the test people whom each of them alone holds."""


@dataclass(frozen=True)
class Effort:
    """Seconds, and array bytes in both directions."""

    seconds: float
    sent_bytes: int

    def __sub__(self, before: Effort) -> Effort:
        return Effort(self.seconds - before.seconds, self.sent_bytes - before.sent_bytes)


def _unrecorded(metrics: Mapping[str, float], step: int, site: str | None = None) -> None:
    """Drop the metrics: nobody has asked for them."""


@dataclass(kw_only=True)
class FederatedRounds:
    """The rounds that jobs are made of; each is one step of the job's journal.

    Attributes
    ----------
    card
        The model that travels.
    settings
        The whole tree.
    job
        Name of the job, sent with every task.
    journal
        The job's finished steps: each round and each audit is one. Nothing is kept when omitted.
    progress, record
        Where progress and metrics go.
    """

    card: ModelCard
    settings: Settings = field(default_factory=Settings)
    job: str = field(default_factory=lambda: f"unlearn-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}")
    journal: Journal = field(default_factory=Journal)
    progress: ProgressDisplay = field(default_factory=lambda: ConsoleProgress(Console()))
    record: Recorder = _unrecorded
    unlearn_task: ClassVar[type[UnlearnTask]] = UnlearnTask
    _round: int = field(default=0, init=False)

    @property
    def rounds_done(self) -> int:
        """How many rounds of updates there were."""
        return self._round

    # ------------------------------------------------------------------ updates

    def fit_round(
        self,
        fleet: Fleet,
        arrays: Arrays,
        pending: Mapping[int, PendingReply],
        purpose: Purpose,
        epochs: int,
        rate: float,
        advance: Advance,
        *,
        final: bool = True,
    ) -> Arrays:
        """Return the mean of all sites' models after plain training on their retain images; one step of the job.

        One that is not ``final`` is good for nothing but another such round.
        """
        self._round += 1

        def compute() -> Merged:
            task = self._fit_task(pending, purpose, epochs, rate, final=final)
            return self._fit(fleet, arrays, pending, task, advance)

        return self.journal.merged(f"{purpose}-{self._round}", compute).arrays

    def _fit(
        self,
        fleet: Fleet,
        arrays: Arrays,
        pending: Mapping[int, PendingReply],
        task: FitTask,
        advance: Advance,
    ) -> Merged:
        most = {node: pending[node].retain_images for node in fleet.wait_for_nodes()}
        mean, results = self._merge(fleet, most, task, FitResult, arrays, advance)
        fleet.require_quorum(mean.count, f"trained in round {self._round}")
        losses = [result.loss for result in results]
        metrics = {f"{task.purpose}_sites": mean.count, f"{task.purpose}_loss": sum(losses) / len(losses)}
        self.record(metrics, self._round)
        return Merged(self.as_sent(fleet, mean.value(), arrays))

    def _fit_task(
        self, pending: Mapping[int, PendingReply], purpose: Purpose, epochs: int, rate: float, *, final: bool = True
    ) -> FitTask:
        return FitTask(
            job=self.job,
            purpose=purpose,
            round=self._round,
            card=self.card,
            training=self.settings.training,
            augmentation=(self.settings.erasure if purpose == "repair" else self.settings.training).augmentation,
            class_weights=class_weights(pending),
            epochs=epochs,
            learning_rate=rate,
            final=final,
            precision=self.settings.fleet.update_precision,
            seed=self._seed(),
        )

    def _merge(
        self,
        fleet: Fleet,
        most: Mapping[int, int],
        task: FitTask | UnlearnTask,
        expected: type[_Update],
        arrays: Arrays,
        advance: Advance,
    ) -> tuple[RunningMean, list[_Update]]:
        """Return the mean of the nodes' updated models, and what they say of them.

        Replies are folded in as they come, so an update that is out of line with the others' shows only when all are
        in; then the round is done again without its site. That costs time only where somebody misbehaves.

        Parameters
        ----------
        most
            The nodes that are asked, and the images that each one has said it holds: its weight is at most that.
        """
        nodes, refused, largest = (
            set(most),
            set[int](),
            self.settings.erasure.largest_update if isinstance(task, UnlearnTask) else None,
        )
        while True:
            mean, results, norms = RunningMean(), [], {}
            tasks = dict.fromkeys(sorted(nodes), task.to_records(model=arrays))
            for reply in fleet.exchange(task.TYPE, tasks, str(self._round)):
                advance()
                try:
                    result = expected.from_records(reply.records, reply.sender)
                    update = arrays_of(reply.records, MODEL, reply.sender)
                    model = model_of(update, arrays, task.precision, reply.sender)
                    check_epoch(result.epoch, self.card.epoch, reply.sender)
                    check_weight(result.weight, most[reply.node], reply.sender)
                    norms[reply.node] = check_update(model, arrays, reply.sender, largest)
                except MessageError as error:
                    fleet.refuse(reply.node, error)
                    refused.add(reply.node)
                    continue
                mean.add(model, result.weight)
                results.append(result)
                metrics = result.metrics() | {"update_norm": norms[reply.node]}
                name = task.purpose if isinstance(task, FitTask) else "distancing"
                self.record({f"{name}_{key}": value for key, value in metrics.items()}, self._round, reply.sender)
            odd = odd_updates(norms, self.settings.fleet.update_ratio)
            refused |= odd.keys()
            if not odd:
                self.record({"refused_updates": len(refused)}, self._round)
                return mean, results
            for node, ratio in odd.items():
                fleet.expel(node, f"sent an update {ratio:.1f} times as large as the median of the others'")
            nodes -= set(odd)

    def distancing_round(
        self,
        fleet: Fleet,
        arrays: Arrays,
        pending: Mapping[int, PendingReply],
        attempt: int,
        advance: Advance,
    ) -> Merged:
        """Return the mean of the forgetting sites' models after DLFD; one step of the job."""
        self._round += 1

        def compute() -> Merged:
            return self._distance(fleet, arrays, pending, attempt, advance)

        return self.journal.merged(f"distancing-{self._round}", compute)

    def _distance(
        self,
        fleet: Fleet,
        arrays: Arrays,
        pending: Mapping[int, PendingReply],
        attempt: int,
        advance: Advance,
    ) -> Merged:
        """Merge what the forgetting sites unlearn, weighted by the images that each forgets.

        Only they are merged: an average over all sites would dilute what few of them unlearn.
        """
        erasure = self.settings.erasure
        epochs = erasure.distancing_epochs * 1.5 ** (attempt - 1)
        changes = {
            "epochs": epochs,
            "batch_size": erasure.batch_size,
            "learning_rate": erasure.learning_rate,
            "steps": erasure.noise_steps,
            "step_size": erasure.noise_step_size,
        }
        task = self.unlearn_task(
            job=self.job,
            round=self._round,
            card=self.card,
            augmentation=erasure.augmentation,
            unlearning=self.settings.unlearning.model_copy(update=changes),
            class_weights=class_weights(pending),
            precision=self.settings.fleet.update_precision,
            seed=self._seed(),
        )
        most = {node: pending[node].forget_images for node in fleet.wait_for_nodes() if pending[node].requests}
        mean, results = self._merge(fleet, most, task, UnlearnResult, arrays, advance)
        if not mean.count:
            raise JobError(f"No site could unlearn: {fleet.why_absent()}; the requests wait for the next job.")
        requests = {request for result in results for request in result.requests}
        return Merged(self.as_sent(fleet, mean.value(), arrays), tuple(sorted(requests)))

    def as_sent(self, fleet: Fleet, model: Arrays, base: Arrays) -> Arrays:
        """Return a model as nodes will have it that hold ``base``, and let them be sent no more than the difference."""
        precision = self.settings.fleet.update_precision
        if precision == "float32":
            return model
        difference = difference_of(model, base, precision)
        sent = model_of(difference, base, precision, COORDINATOR)
        fleet.held.offer(sent, base, difference, precision)
        return sent

    def effort(self, fleet: Fleet) -> Effort:
        """Return what the job took so far, in this process and in those before it."""
        return Effort(self.journal.seconds, fleet.sent_bytes + fleet.received_bytes)

    def _seed(self) -> int:
        """Return the seed of the current round; each site makes its own of it."""
        return self.settings.seed * 1000 + self._round

    def audit(self, fleet: Fleet, arrays: Arrays, title: str, step: str) -> AuditedModel:
        """Attack a model at every site, and score it on the people that no gate has used; one step of the job."""
        with self.progress.phase(title, len(fleet.wait_for_nodes())) as advance:
            answers = self._answers(fleet, arrays, EVIDENCE, f"audit-{step}", advance)
        scores = measure(answers.samples, resamples=self.settings.audit.resamples, seed=self.settings.seed)
        return AuditedModel(arrays, answers.samples, scores, answers.own_test)

    def audit_file(
        self, fleet: Fleet, arrays: Arrays, content: bytes, step: str = "audit-file"
    ) -> tuple[Scores, Parity]:
        """Attack an exported file at every site; return scores and how near it is to torch; one step of the job."""
        answers = self.journal.answers(step, lambda: self._collect_file(fleet, arrays, content))
        scores = measure(answers.samples, resamples=self.settings.audit.resamples, seed=self.settings.seed)
        agreement = answers.agreeing / answers.images if answers.images else None
        return scores, Parity(answers.max_abs_difference, answers.images, agreement, None, None)

    def _collect_file(self, fleet: Fleet, arrays: Arrays, content: bytes) -> Answers:
        task = FileAuditTask(job=self.job, card=self.card, roles=_names(EVIDENCE))
        with self.progress.phase("Auditing the ONNX file", len(fleet.wait_for_nodes())) as advance:
            heard = self._ask_all(fleet, task, FileAuditResult, advance, model=arrays, file=file_arrays(content))
        results = [result for result, _ in heard.values()]
        return Answers(
            together(fleet, heard).samples,
            max(result.max_abs_difference for result in results),
            sum(result.images for result in results),
            sum(result.agreeing for result in results),
        )

    def ranges(self, fleet: Fleet, prepared: bytes) -> dict[str, tuple[float, float]]:
        """Return the ranges of a prepared file's activations over every site's retain images; one step of the job."""
        kind = dict[str, tuple[float, float]]
        return self.journal.facts("calibrate", kind, lambda: self._calibrate(fleet, prepared))

    def _calibrate(self, fleet: Fleet, prepared: bytes) -> dict[str, tuple[float, float]]:
        images = self.settings.export.calibration_images
        task = CalibrateTask(job=self.job, card=self.card, images=images, seed=self._seed())
        nodes, tensors, parts = list(fleet.wait_for_nodes()), calibrated_tensors(prepared), []
        with self.progress.phase("Measuring ranges for int8", len(nodes)) as advance:
            records = task.to_records(file=file_arrays(prepared))
            for reply in fleet.exchange(task.TYPE, dict.fromkeys(nodes, records), str(self._round)):
                advance()
                try:
                    result = CalibrateResult.from_records(reply.records, reply.sender)
                    parts.append(_checked(result.ranges, tensors, reply.sender))
                except MessageError as error:
                    fleet.refuse(reply.node, error)
        fleet.require_quorum(len(parts), f"answered {task.TYPE}")
        return merge_ranges(parts)

    def look(self, fleet: Fleet, arrays: Arrays, step: str) -> SampleScores:
        """Return what a model says of the images that a gate may look at, of retain images only some at each site."""
        return self._answers(fleet, arrays, CHOOSING, step, lambda: None, _GATE_RETAIN).samples

    def _answers(
        self,
        fleet: Fleet,
        arrays: Arrays,
        roles: tuple[Role, ...],
        step: str,
        advance: Advance,
        most_retain: int | None = None,
    ) -> Answers:
        task = AuditTask(job=self.job, card=self.card, roles=_names(roles), most_retain=most_retain)
        return self.journal.answers(
            step, lambda: together(fleet, self._ask_all(fleet, task, AuditResult, advance, model=arrays))
        )

    def _ask_all(
        self,
        fleet: Fleet,
        task: AuditTask | FileAuditTask,
        expected: type[_Audit],
        advance: Advance,
        **arrays: Mapping[str, Tensor],
    ) -> dict[int, tuple[_Audit, SampleScores]]:
        """Return every node's answer."""
        answers = dict[int, tuple[_Audit, SampleScores]]()
        records = task.to_records(None, **arrays)
        for reply in fleet.exchange(task.TYPE, dict.fromkeys(fleet.wait_for_nodes(), records), str(self._round)):
            advance()
            try:
                result = expected.from_records(reply.records, reply.sender)
                answers[reply.node] = result, samples_of(reply.records, reply.sender)
            except MessageError as error:
                fleet.refuse(reply.node, error)
        fleet.require_quorum(len(answers), f"answered {task.TYPE}")
        return answers


def _checked(ranges: Ranges, tensors: frozenset[str], sender: str) -> dict[str, tuple[float, float]]:
    if ranges.keys() != tensors:
        raise MessageError(f"{sender} sent ranges of other tensors than the file has.")
    try:
        return merge_ranges([ranges])
    except ExportError as error:
        raise MessageError(f"{sender}: {error}") from error


def _names(roles: tuple[Role, ...]) -> tuple[Literal["retain", "forget", "validation", "test"], ...]:
    return tuple(role.value for role in roles)
