"""The strategy: federated training, and rounds of unlearning that are gated and judged by attack.

It reads top to bottom in the order of a job: train; distance at the sites that were asked; merge; repair; audit; judge.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, Protocol

from dlfd_fleet.audit import Outcome, Role, SampleScores, Scores, Verdict, judge, measure, read_gate
from dlfd_fleet.exceptions import JobError, MessageError
from dlfd_fleet.federation.aggregation import RunningMean, check_update
from dlfd_fleet.federation.fleet import Fleet
from dlfd_fleet.federation.messages import (
    MODEL,
    Arrays,
    AuditResult,
    AuditTask,
    FileAuditResult,
    FileAuditTask,
    FitResult,
    FitTask,
    PendingQuery,
    PendingReply,
    SettleResult,
    SettleTask,
    UnlearnResult,
    UnlearnTask,
    arrays_of,
    file_arrays,
    samples_of,
)
from dlfd_fleet.models import ModelCard
from dlfd_fleet.progress import Advance, ProgressDisplay
from dlfd_fleet.settings import Settings
from dlfd_fleet.unlearning import checkpoint_rank

EVIDENCE = (Role.RETAIN, Role.FORGET, Role.VALIDATION, Role.TEST)
CHOOSING = (Role.FORGET, Role.VALIDATION)
# Of checkpoint_rank: under any round's, and the least of those that are useful and pass the gate.
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
class Unlearned:
    """What an erasure's federated part came to."""

    model: AuditedModel
    verdict: Verdict
    attempts: int
    seconds: float


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
    progress, record
        Where progress and metrics go.
    """

    settings: Settings
    card: ModelCard
    job: str
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
        training, weights = self.settings.training, class_weights(pending)
        title = "Training the original model" if purpose == "train" else "Retraining without the forgotten people"
        with self.progress.phase(title, training.rounds * len(pending)) as advance:
            for number in range(training.rounds):
                rate = training.learning_rate * _cosine(number, training.rounds)
                arrays = self._fit_round(fleet, arrays, weights, purpose, training.local_epochs, rate, advance)
        return arrays

    def _fit_round(
        self,
        fleet: Fleet,
        arrays: Arrays,
        weights: tuple[float, ...],
        purpose: Literal["train", "repair", "retrain"],
        epochs: int,
        rate: float,
        advance: Advance,
    ) -> Arrays:
        """Return the mean of all sites' models after plain training on their retain images."""
        self._round += 1
        task = FitTask(
            job=self.job,
            purpose=purpose,
            round=self._round,
            card=self.card,
            training=self.settings.training,
            augmentation=(self.settings.erasure if purpose == "repair" else self.settings.training).augmentation,
            class_weights=weights,
            epochs=epochs,
            learning_rate=rate,
            seed=self._seed(),
        )
        mean, tasks = RunningMean(), dict.fromkeys(fleet.wait_for_nodes(), task.to_records(model=arrays))
        for reply in fleet.exchange(FitTask.TYPE, tasks, self._group()):
            advance()
            try:
                result = FitResult.from_records(reply.records, reply.sender)
                model = arrays_of(reply.records, MODEL, reply.sender)
                check_update(model, arrays, reply.sender)
            except MessageError as error:
                fleet.refuse(reply, error)
                continue
            mean.add(model, result.examples)
            self.record({f"{purpose}_loss": result.loss, "fit_seconds": result.seconds}, self._round, reply.sender)
        if not mean.count:
            raise JobError(f"No site could train in round {self._round}: {fleet.why_absent()}.")
        self.record({f"{purpose}_sites": mean.count}, self._round)
        return mean.value()

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
        started, best_rank, attempt = time.perf_counter(), _WORST_RANK, 0
        while attempt < self.settings.erasure.max_attempts:
            attempt += 1
            rank, arrays = self._attempt(fleet, pending, original, attempt)
            candidate = self.audit(fleet, arrays, "Auditing the unlearned model")
            verdict = judge(original.scores, candidate.scores, self.settings.audit)
            self.record(candidate.scores.metrics() | {"attempt": attempt}, self._round)
            passed = verdict.outcome is not Outcome.FAIL
            # Of failed attempts the gate's favourite is shown: a stronger one can be the worse.
            if passed or rank > best_rank:
                best_rank, best, best_verdict = rank, candidate, verdict
            if passed:
                break
            self.progress.say(f"Attempt {attempt}: {verdict.sentence()}")
        return Unlearned(best, best_verdict, attempt, time.perf_counter() - started)

    def _attempt(
        self, fleet: Fleet, pending: Mapping[int, PendingReply], original: AuditedModel, attempt: int
    ) -> tuple[tuple[bool, float, float], Arrays]:
        """Run rounds of distancing and repair from the original; return the best round's rank and model.

        The paper's dynamic strategy with a fleet's gate: distance while forgotten people look more like members than
        validation people do, then train on clean images only. Rounds that only repair are averaged (stochastic weight
        averaging, Izmailov et al. 2018): single rounds of small fleets differ by chance. It stops when a round brings
        nothing more to a model that is forgetful and useful enough.
        """
        erasure, unlearning, weights = self.settings.erasure, self.settings.unlearning, class_weights(pending)
        nodes = [node for node, reply in pending.items() if reply.requests]
        reading = read_gate(original.samples)
        least_utility = reading.utility - unlearning.max_utility_drop
        arrays = best = original.arrays
        best_rank, averaged = _WORST_RANK, RunningMean()
        total = erasure.rounds * (len(nodes) + len(pending))
        with self.progress.phase(f"Unlearning, attempt {attempt}", total) as advance:
            for number in range(erasure.rounds):
                # Whatever a gate over few people reads, nobody is forgotten without a round of DLFD.
                if number == 0 or reading.attack_auc > 0.5 + unlearning.gate:
                    arrays = self._distancing_round(fleet, nodes, arrays, weights, attempt, advance)
                    averaged = RunningMean()
                arrays = self._fit_round(
                    fleet, arrays, weights, "repair", erasure.repair_epochs, erasure.learning_rate, advance
                )
                averaged.add(arrays, 1.0)
                candidate = averaged.value()
                reading = read_gate(self._audit_samples(fleet, candidate, CHOOSING))
                self.record({"gate_utility": reading.utility, "gate_mia_auc": reading.attack_auc}, self._round)
                rank = checkpoint_rank(reading, least_utility, unlearning.gate)
                if rank > best_rank:
                    best_rank, best = rank, candidate
                elif best_rank >= _GOOD_ENOUGH:
                    break
        return best_rank, best

    def _distancing_round(
        self,
        fleet: Fleet,
        nodes: list[int],
        arrays: Arrays,
        weights: tuple[float, ...],
        attempt: int,
        advance: Advance,
    ) -> Arrays:
        """Return the mean of the forgetting sites' models after DLFD, weighted by the images that each forgets.

        Only they are merged: an average over all sites would dilute what few of them unlearn.
        """
        self._round += 1
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
            class_weights=weights,
            seed=self._seed(),
        )
        mean, tasks = RunningMean(), dict.fromkeys(nodes, task.to_records(model=arrays))
        for reply in fleet.exchange(UnlearnTask.TYPE, tasks, self._group()):
            advance()
            try:
                result = UnlearnResult.from_records(reply.records, reply.sender)
                model = arrays_of(reply.records, MODEL, reply.sender)
                check_update(model, arrays, reply.sender, erasure.largest_update)
            except MessageError as error:
                fleet.refuse(reply, error)
                continue
            mean.add(model, result.forget_examples)
            self.record(result.model_dump(exclude={"requests"}), self._round, reply.sender)
        if not mean.count:
            raise JobError(f"No site could unlearn: {fleet.why_absent()}; the requests wait for the next job.")
        return mean.value()

    def _seed(self) -> int:
        """Return the seed of the current round; each site makes its own of it."""
        return self.settings.seed * 1000 + self._round

    # ------------------------------------------------------------------ audit

    def audit(self, fleet: Fleet, arrays: Arrays, title: str) -> AuditedModel:
        """Attack a model at every site, and score it on the people that no gate has used."""
        with self.progress.phase(title, len(fleet.wait_for_nodes())) as advance:
            samples = self._audit_samples(fleet, arrays, EVIDENCE, advance)
        scores = measure(samples, resamples=self.settings.audit.resamples, seed=self.settings.seed)
        return AuditedModel(arrays, samples, scores)

    def audit_file(self, fleet: Fleet, arrays: Arrays, content: bytes) -> tuple[Scores, float, int]:
        """Attack the exported file at every site; return its scores, its distance from torch, and images compared."""
        nodes, parts, distances, images = fleet.wait_for_nodes(), [], [0.0], 0
        tasks = {}
        for index, node in enumerate(nodes):
            task = FileAuditTask(job=self.job, card=self.card, roles=_names(EVIDENCE), shared=index == 0)
            tasks[node] = task.to_records(model=arrays, file=file_arrays(content))
        with self.progress.phase("Auditing the ONNX file", len(nodes)) as advance:
            for reply in fleet.exchange(FileAuditTask.TYPE, tasks, self._group()):
                advance()
                try:
                    result = FileAuditResult.from_records(reply.records, reply.sender)
                    parts.append(samples_of(reply.records, reply.sender))
                except MessageError as error:
                    fleet.refuse(reply, error)
                    continue
                distances.append(result.max_abs_difference)
                images += result.images
        samples = SampleScores.concatenate(parts)
        scores = measure(samples, resamples=self.settings.audit.resamples, seed=self.settings.seed)
        return scores, max(distances), images

    def _audit_samples(
        self, fleet: Fleet, arrays: Arrays, roles: tuple[Role, ...], advance: Advance = lambda: None
    ) -> SampleScores:
        """Return what a model says of the fleet's images; people whom every site holds count once."""
        tasks = {}
        for index, node in enumerate(fleet.wait_for_nodes()):
            task = AuditTask(job=self.job, card=self.card, roles=_names(roles), shared=index == 0)
            tasks[node] = task.to_records(model=arrays)
        parts = []
        for reply in fleet.exchange(AuditTask.TYPE, tasks, self._group()):
            advance()
            try:
                AuditResult.from_records(reply.records, reply.sender)
                parts.append(samples_of(reply.records, reply.sender))
            except MessageError as error:
                fleet.refuse(reply, error)
        return SampleScores.concatenate(parts)

    # ------------------------------------------------------------------ the end

    def settle(
        self,
        fleet: Fleet,
        outcome: Literal["released", "returned", "failed"],
        reason: str,
        epoch: int,
        purge: bool,
    ) -> int:
        """Tell every site how the job ended; return the number of images that they purged."""
        task = SettleTask(job=self.job, outcome=outcome, reason=reason, epoch=epoch, purge=purge)
        nodes, purged = fleet.wait_for_nodes(), 0
        with self.progress.phase("Settling the requests at the sites", len(nodes)) as advance:
            for reply in fleet.exchange(SettleTask.TYPE, dict.fromkeys(nodes, task.to_records()), self._group()):
                advance()
                try:
                    purged += SettleResult.from_records(reply.records, reply.sender).purged_images
                except MessageError as error:
                    fleet.refuse(reply, error)
        return purged

    def _group(self) -> str:
        """Return Flower's group id of the current round."""
        return str(self._round)


def ask_pending(fleet: Fleet, job: str, largest_share: float = 1.0) -> dict[int, PendingReply]:
    """Ask every node what it holds and who asks to be forgotten; counts and keyed pseudonyms only.

    Where sites share a secret they are asked twice: the second time with the pseudonyms of everybody who asked, so that
    other sites that have the person forget too.

    Parameters
    ----------
    largest_share
        Largest share of the fleet's training images that one site may ask to forget in a job; one that asks for more
        takes no part.

    Raises
    ------
    JobError
        If no node answers.
    """
    replies = _query(fleet, PendingQuery(job=job))
    asked: dict[str, datetime] = {}
    for reply in replies.values():
        for person, deadline in reply.people.items():
            asked[person] = min(deadline, asked.get(person, deadline))
    if asked and len(replies) > 1:
        replies = _query(fleet, PendingQuery(job=job, asked=asked))
    total = sum(reply.retain_images + reply.forget_images for reply in replies.values())
    for node in [node for node, reply in replies.items() if reply.forget_images > largest_share * total]:
        share = replies.pop(node).forget_images / total
        fleet.exclude(node, f"asks to forget {share:.0%} of the fleet's images, above {largest_share:.0%}")
    if not replies:
        raise JobError(f"No site takes part: {fleet.why_absent()}.")
    fleet.members = frozenset(replies)
    return replies


def _query(fleet: Fleet, query: PendingQuery) -> dict[int, PendingReply]:
    """Return the replies of the nodes that answered; only they take part from now on."""
    replies = {}
    for reply in fleet.exchange(query.TYPE, dict.fromkeys(fleet.wait_for_nodes(), query.to_records()), "0"):
        try:
            replies[reply.node] = PendingReply.from_records(reply.records, reply.sender)
        except MessageError as error:
            fleet.refuse(reply, error)
    if not replies:
        raise JobError(f"No site answered: {fleet.why_absent()}.")
    fleet.members = frozenset(replies)
    return replies


def _names(roles: tuple[Role, ...]) -> tuple[Literal["retain", "forget", "validation", "test"], ...]:
    return tuple(role.value for role in roles)


def class_weights(pending: Mapping[int, PendingReply]) -> tuple[float, ...]:
    """Return a weight for each class, inverse to its share of the images that the fleet trains on; 1 on average."""
    counts = [max(1, sum(column)) for column in zip(*(reply.class_images for reply in pending.values()), strict=True)]
    return tuple(sum(counts) / (len(counts) * count) for count in counts)


def _cosine(number: int, total: int) -> float:
    """Return the share of the learning rate in round ``number`` of ``total`` (Loshchilov & Hutter 2017)."""
    return 0.5 * (1.0 + math.cos(math.pi * number / total))
