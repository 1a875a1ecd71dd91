"""The strategy: federated training, and rounds of unlearning that are gated and judged by attack.

It reads top to bottom in the order of a job: train; distance at the sites that were asked; merge; repair; audit; judge.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar

from torch import Tensor

from dlfd_fleet.audit import Outcome, Role, SampleScores, Scores, Verdict, judge, judge_relearned, measure, read_gate
from dlfd_fleet.exceptions import JobError, MessageError
from dlfd_fleet.federation.aggregation import RunningMean, check_epoch, check_update, check_weight, odd_updates
from dlfd_fleet.federation.fleet import Fleet
from dlfd_fleet.federation.journal import Answers, Journal, Merged
from dlfd_fleet.federation.messages import (
    MODEL,
    Arrays,
    AuditResult,
    AuditTask,
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
from dlfd_fleet.progress import Advance, ProgressDisplay
from dlfd_fleet.settings import Settings
from dlfd_fleet.unlearning import checkpoint_rank

Purpose = Literal["train", "repair", "relearn", "retrain"]
_Update = TypeVar("_Update", FitResult, UnlearnResult)
_Audit = TypeVar("_Audit", AuditResult, FileAuditResult)
EVIDENCE = (Role.RETAIN, Role.FORGET, Role.VALIDATION, Role.TEST)
CHOOSING = (Role.FORGET, Role.VALIDATION)
# Of checkpoint_rank: under any round's, and the least of those that are useful and pass the gate.
_PATIENCE = 2
_WORST_RANK, _GOOD_ENOUGH = (False, -1.0, -1.0), (True, 0.0, 0.0)


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


@dataclass(frozen=True)
class Effort:
    """Seconds, and array bytes in both directions."""

    seconds: float
    sent_bytes: int

    def __sub__(self, before: Effort) -> Effort:
        return Effort(self.seconds - before.seconds, self.sent_bytes - before.sent_bytes)


@dataclass(frozen=True)
class Unlearned:
    """What an erasure's federated part came to, and what it took; ``requests`` are those whose updates are in it."""

    model: AuditedModel
    verdict: Verdict
    attempts: int
    effort: Effort
    requests: tuple[str, ...]
    relearned: tuple[AuditedModel, Effort] | None
    """The model after further ordinary training, if that was tried."""


@dataclass
class FederatedUnlearning:
    """Trains, unlearns, merges, repairs and audits across the nodes of a grid.

    Attributes
    ----------
    settings
        The whole tree.
    card
        The model that travels.
    job
        Name of the job, sent with every task.
    journal
        The job's finished steps: each round and each audit is one.
    progress, record
        Where progress and metrics go.
    """

    settings: Settings
    card: ModelCard
    job: str
    journal: Journal
    progress: ProgressDisplay
    record: Recorder
    _round: int = field(default=0, init=False)

    # ------------------------------------------------------------------ training

    def train(
        self,
        fleet: Fleet,
        arrays: Arrays,
        pending: Mapping[int, PendingReply],
        purpose: Literal["train", "retrain"] = "train",
    ) -> Arrays:
        """Run federated averaging (McMahan et al. 2017), weighted by examples, with a cosine-decayed step."""
        training = self.settings.training
        title = "Training the original model" if purpose == "train" else "Retraining without the forgotten people"
        with self.progress.phase(title, training.rounds * len(pending)) as advance:
            for number in range(training.rounds):
                rate = training.learning_rate * _cosine(number, training.rounds)
                arrays = self._fit_round(fleet, arrays, pending, purpose, training.local_epochs, rate, advance)
        return arrays

    def _fit_round(
        self,
        fleet: Fleet,
        arrays: Arrays,
        pending: Mapping[int, PendingReply],
        purpose: Purpose,
        epochs: int,
        rate: float,
        advance: Advance,
    ) -> Arrays:
        """Return the mean of all sites' models after plain training on their retain images; one step of the job."""
        self._round += 1

        def compute() -> Merged:
            return self._fit(fleet, arrays, pending, purpose, epochs, rate, advance)

        return self.journal.merged(f"{purpose}-{self._round}", compute).arrays

    def _fit(
        self,
        fleet: Fleet,
        arrays: Arrays,
        pending: Mapping[int, PendingReply],
        purpose: Purpose,
        epochs: int,
        rate: float,
        advance: Advance,
    ) -> Merged:
        task = FitTask(
            job=self.job,
            purpose=purpose,
            round=self._round,
            card=self.card,
            training=self.settings.training,
            augmentation=(self.settings.erasure if purpose == "repair" else self.settings.training).augmentation,
            class_weights=class_weights(pending),
            epochs=epochs,
            learning_rate=rate,
            seed=self._seed(),
        )
        most = {node: pending[node].retain_images for node in fleet.wait_for_nodes()}
        mean, results = self._merge(fleet, most, task, FitResult, arrays, advance)
        fleet.require_quorum(mean.count, f"trained in round {self._round}")
        losses = [result.loss for result in results]
        self.record({f"{purpose}_sites": mean.count, f"{purpose}_loss": sum(losses) / len(losses)}, self._round)
        return Merged(mean.value())

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
        nodes, largest = set(most), self.settings.erasure.largest_update if isinstance(task, UnlearnTask) else None
        while True:
            mean, results, norms = RunningMean(), [], {}
            tasks = dict.fromkeys(sorted(nodes), task.to_records(model=arrays))
            for reply in fleet.exchange(task.TYPE, tasks, self._group()):
                advance()
                try:
                    result = expected.from_records(reply.records, reply.sender)
                    model = arrays_of(reply.records, MODEL, reply.sender)
                    check_epoch(result.epoch, self.card.epoch, reply.sender)
                    check_weight(result.weight, most[reply.node], reply.sender)
                    norms[reply.node] = check_update(model, arrays, reply.sender, largest)
                except MessageError as error:
                    fleet.refuse(reply, error)
                    continue
                mean.add(model, result.weight)
                results.append(result)
                metrics = result.metrics() | {"update_norm": norms[reply.node]}
                name = task.purpose if isinstance(task, FitTask) else "distancing"
                self.record({f"{name}_{key}": value for key, value in metrics.items()}, self._round, reply.sender)
            odd = odd_updates(norms, self.settings.fleet.update_ratio)
            if not odd:
                return mean, results
            for node, ratio in odd.items():
                fleet.expel(node, f"sent an update {ratio:.1f} times as large as the median of the others'")
            nodes -= set(odd)

    # ------------------------------------------------------------------ unlearning

    def unlearn(self, fleet: Fleet, pending: Mapping[int, PendingReply], original: AuditedModel) -> Unlearned:
        """Unlearn until the verdict is no longer FAIL, at most ``erasure.max_attempts`` times, each stronger.

        Parameters
        ----------
        pending
            What the nodes answered to :func:`ask_pending`.
        original
            The model to unlearn from, audited.
        """
        before, best_rank, attempt = self.effort(fleet), _WORST_RANK, 0
        while attempt < self.settings.erasure.max_attempts:
            attempt += 1
            rank, merged = self._attempt(fleet, pending, original, attempt)
            candidate = self.audit(fleet, merged.arrays, "Auditing the unlearned model", f"unlearned-{attempt}")
            verdict, relearned = judge(original.scores, candidate.scores, self.settings.audit), None
            self.record(candidate.scores.metrics() | {"attempt": attempt}, self._round)
            after = self.effort(fleet)
            if verdict.outcome is not Outcome.FAIL and self.settings.erasure.relearning_rounds:
                again = self._relearn(fleet, candidate, pending, attempt)
                relearned = again, self.effort(fleet) - after
                verdict = judge_relearned(verdict, original.scores, again.scores, self.settings.audit)
            passed = verdict.outcome is not Outcome.FAIL
            # Of failed attempts the gate's favourite is shown: a stronger one can be the worse.
            if passed or rank > best_rank:
                best_rank = rank
                best = Unlearned(candidate, verdict, attempt, after - before, merged.requests, relearned)
            if passed:
                break
            self.progress.say(f"Attempt {attempt}: {verdict.sentence()}")
        return best

    def _relearn(
        self, fleet: Fleet, model: AuditedModel, pending: Mapping[int, PendingReply], attempt: int
    ) -> AuditedModel:
        """Train on as any later round would, on retain images only, and attack again: what was only hidden comes back.

        After the purge there is nobody left to attack with, so this is the last chance to see it.
        """
        training, rounds, arrays = self.settings.training, self.settings.erasure.relearning_rounds, model.arrays
        with self.progress.phase("Training on, to see what comes back", rounds * len(pending)) as advance:
            for _ in range(rounds):
                arrays = self._fit_round(
                    fleet, arrays, pending, "relearn", training.local_epochs, training.learning_rate, advance
                )
        return self.audit(fleet, arrays, "Attacking it again", f"relearned-{attempt}")

    def _attempt(
        self, fleet: Fleet, pending: Mapping[int, PendingReply], original: AuditedModel, attempt: int
    ) -> tuple[tuple[bool, float, float], Merged]:
        """Run rounds of distancing and repair from the original; return the best round's rank and model.

        The paper's dynamic strategy with a fleet's gate: distance while forgotten people look more like members than
        validation people do, then train on clean images only. Rounds that only repair are averaged (stochastic weight
        averaging, Izmailov et al. 2018): single rounds of small fleets differ by chance. It stops when two rounds in
        succession bring nothing more to a model that is forgetful and useful enough.
        """
        erasure, unlearning = self.settings.erasure, self.settings.unlearning
        reading = read_gate(original.samples)
        least_utility = reading.utility - unlearning.max_utility_drop
        # Over few people the attack is noise to a tenth; like the verdict, the gate asks that its lead is halved.
        gate = max(unlearning.gate, (reading.attack_auc - 0.5) / 2.0)
        arrays, best, requests = original.arrays, Merged(original.arrays), frozenset[str]()
        best_rank, averaged, idle = _WORST_RANK, RunningMean(), 0
        total = erasure.rounds * (sum(1 for reply in pending.values() if reply.requests) + len(pending))
        with self.progress.phase(f"Unlearning, attempt {attempt}", total) as advance:
            for number in range(erasure.rounds):
                # Whatever a gate over few people reads, nobody is forgotten without a round of DLFD.
                if number == 0 or reading.attack_auc > 0.5 + gate:
                    distanced = self._distancing_round(fleet, arrays, pending, attempt, advance)
                    arrays, requests = distanced.arrays, requests.union(distanced.requests)
                    averaged = RunningMean()
                arrays = self._fit_round(
                    fleet, arrays, pending, "repair", erasure.repair_epochs, erasure.learning_rate, advance
                )
                averaged.add(arrays, 1.0)
                candidate = averaged.value()
                reading = read_gate(self._audit_samples(fleet, candidate, CHOOSING, f"gate-{self._round}"))
                self.record({"gate_utility": reading.utility, "gate_mia_auc": reading.attack_auc}, self._round)
                rank = checkpoint_rank(reading, least_utility, gate)
                if rank > best_rank:
                    best_rank, best, idle = rank, Merged(candidate, tuple(sorted(requests))), 0
                    continue
                idle += 1
                if idle == _PATIENCE and best_rank >= _GOOD_ENOUGH:
                    break
        return best_rank, best

    def _distancing_round(
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
        task = UnlearnTask(
            job=self.job,
            round=self._round,
            card=self.card,
            augmentation=erasure.augmentation,
            unlearning=self.settings.unlearning.model_copy(update=changes),
            class_weights=class_weights(pending),
            seed=self._seed(),
        )
        most = {node: pending[node].forget_images for node in fleet.wait_for_nodes() if pending[node].requests}
        mean, results = self._merge(fleet, most, task, UnlearnResult, arrays, advance)
        if not mean.count:
            raise JobError(f"No site could unlearn: {fleet.why_absent()}; the requests wait for the next job.")
        requests = {request for result in results for request in result.requests}
        return Merged(mean.value(), tuple(sorted(requests)))

    def effort(self, fleet: Fleet) -> Effort:
        """Return what the job took so far, in this process and in those before it."""
        return Effort(self.journal.seconds, fleet.sent_bytes + fleet.received_bytes)

    def _seed(self) -> int:
        """Return the seed of the current round; each site makes its own of it."""
        return self.settings.seed * 1000 + self._round

    # ------------------------------------------------------------------ audit

    def audit(self, fleet: Fleet, arrays: Arrays, title: str, step: str) -> AuditedModel:
        """Attack a model at every site, and score it on the people that no gate has used; one step of the job."""
        with self.progress.phase(title, len(fleet.wait_for_nodes())) as advance:
            samples = self._audit_samples(fleet, arrays, EVIDENCE, f"audit-{step}", advance)
        scores = measure(samples, resamples=self.settings.audit.resamples, seed=self.settings.seed)
        return AuditedModel(arrays, samples, scores)

    def audit_file(self, fleet: Fleet, arrays: Arrays, content: bytes) -> tuple[Scores, float, int]:
        """Attack the exported file at every site; return its scores, its distance from torch, and images compared."""
        answers = self.journal.answers("audit-file", lambda: self._collect_file(fleet, arrays, content))
        scores = measure(answers.samples, resamples=self.settings.audit.resamples, seed=self.settings.seed)
        return scores, answers.max_abs_difference, answers.images

    def _collect_file(self, fleet: Fleet, arrays: Arrays, content: bytes) -> Answers:
        task = FileAuditTask(job=self.job, card=self.card, roles=_names(EVIDENCE), shared=False)
        with self.progress.phase("Auditing the ONNX file", len(fleet.wait_for_nodes())) as advance:
            answers = self._ask_all(fleet, task, FileAuditResult, advance, model=arrays, file=file_arrays(content))
        return Answers(
            SampleScores.concatenate([samples for _, samples in answers]),
            max(result.max_abs_difference for result, _ in answers),
            sum(result.images for result, _ in answers),
        )

    def _audit_samples(
        self, fleet: Fleet, arrays: Arrays, roles: tuple[Role, ...], step: str, advance: Advance = lambda: None
    ) -> SampleScores:
        """Return what a model says of the fleet's images; people whom every site holds count once."""
        return self.journal.answers(step, lambda: self._collect(fleet, arrays, roles, advance)).samples

    def _collect(self, fleet: Fleet, arrays: Arrays, roles: tuple[Role, ...], advance: Advance) -> Answers:
        task = AuditTask(job=self.job, card=self.card, roles=_names(roles), shared=False)
        answers = self._ask_all(fleet, task, AuditResult, advance, model=arrays)
        return Answers(SampleScores.concatenate([samples for _, samples in answers]))

    def _ask_all(
        self,
        fleet: Fleet,
        task: AuditTask | FileAuditTask,
        expected: type[_Audit],
        advance: Advance,
        **arrays: Mapping[str, Tensor],
    ) -> list[tuple[_Audit, SampleScores]]:
        """Return every site's answer; one of them, and another if that one fails, answers for the shared people too."""
        plain, sharing = (
            task.to_records(None, **arrays),
            task.model_copy(update={"shared": True}).to_records(None, **arrays),
        )
        sharers = list(fleet.wait_for_nodes())
        tasks, answers = dict.fromkeys(sharers, plain), dict[int, tuple[_Audit, SampleScores]]()
        while sharers:
            tasks[sharers[0]] = sharing
            heard = set()
            for reply in fleet.exchange(task.TYPE, tasks, self._group()):
                advance()
                try:
                    result = expected.from_records(reply.records, reply.sender)
                    answers[reply.node] = result, samples_of(reply.records, reply.sender)
                    heard.add(reply.node)
                except MessageError as error:
                    fleet.refuse(reply, error)
            if sharers[0] in heard:
                break
            sharers, tasks = [node for node in sharers[1:] if node in answers], {}
        fleet.require_quorum(len(answers), f"answered {task.TYPE}")
        return [answers[node] for node in sorted(answers)]

    def _group(self) -> str:
        """Return Flower's group id of the current round."""
        return str(self._round)


def _names(roles: tuple[Role, ...]) -> tuple[Literal["retain", "forget", "validation", "test"], ...]:
    return tuple(role.value for role in roles)


def _cosine(number: int, total: int) -> float:
    """Return the share of the learning rate in round ``number`` of ``total`` (Loshchilov & Hutter 2017)."""
    return 0.5 * (1.0 + math.cos(math.pi * number / total))
