"""The strategy: federated training, and rounds of unlearning that are gated and judged by attack.

It reads top to bottom in the order of a job: train; distance at the sites that were asked; merge; repair; audit; judge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from dlfd_fleet.audit import (
    Outcome,
    Reading,
    SampleScores,
    Verdict,
    gate_metrics,
    judge,
    judge_relearned,
    judge_without_each,
    read_gate,
)
from dlfd_fleet.exceptions import DataError, FleetError, JobError
from dlfd_fleet.federation.protocol.messages import DevicesReached, PendingQuery, PendingReply
from dlfd_fleet.federation.protocol.packing import Arrays
from dlfd_fleet.federation.records.journal import Merged
from dlfd_fleet.federation.release.release_rule import may_release
from dlfd_fleet.federation.rounds.aggregation import RunningMean
from dlfd_fleet.federation.rounds.audits import AuditedModel
from dlfd_fleet.federation.rounds.fleet import Fleet
from dlfd_fleet.federation.rounds.requests import (
    NOTHING_TO_UNLEARN,
    ask_pending,
    forgotten_without_update,
    settle,
    someone_to_unlearn,
)
from dlfd_fleet.federation.rounds.rounds import Effort, FederatedRounds
from dlfd_fleet.federation.rounds.site_keys import SiteKeys
from dlfd_fleet.models import ModelCard, digest
from dlfd_fleet.report.contents import GateReading
from dlfd_fleet.unlearning import UtilityFloor, checkpoint_rank

# Of checkpoint_rank: under any round's, and the least of those that are useful and pass the gate.
_WORST_RANK, _GOOD_ENOUGH = (False, -1.0, -1.0), (True, 0.0, 0.0)


@dataclass(frozen=True)
class Unlearned:
    """What an erasure's federated part came to, and what it took; ``requests`` are those that it has forgotten."""

    model: AuditedModel
    verdict: Verdict
    attempts: int
    effort: Effort
    requests: tuple[str, ...]
    relearned: tuple[AuditedModel, Effort] | None
    """The model after further ordinary training, if that was tried."""
    readings: tuple[GateReading, ...]
    """What the gate saw, in all attempts."""


@dataclass
class UnlearningResult(Result):
    """Flower's result, and how the erasure ended.

    Attributes
    ----------
    arrays
        The released model; the initial one if none was released.
    evaluate_metrics_clientapp
        The audit's scores: 0 of the initial model, 1 of the unlearned one.
    card
        What the arrays are, with the erasure epoch.
    verdict
        None if nobody who was trained on asks to be forgotten.
    """

    card: ModelCard = field(kw_only=True)
    verdict: Verdict | None = None


class FederatedUnlearning(FederatedRounds):
    """Trains, unlearns, merges, repairs and audits across the nodes of a grid.

    Examples
    --------
    In a ServerApp of one's own::

        strategy = FederatedUnlearning(card=card)
        result = strategy.start(grid, ArrayRecord.from_torch_state_dict(model.state_dict()), publish)
        print(result.verdict.sentence() if result.verdict else "Nobody asks to be forgotten.")
    """

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
                rate = training.learning_rate * cosine(number, training.rounds)
                final = number == training.rounds - 1
                arrays = self.fit_round(
                    fleet, arrays, pending, purpose, training.local_epochs, rate, advance, final=final
                )
        return arrays

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
        before, best_rank, attempt, readings = self.effort(fleet), _WORST_RANK, 0, list[GateReading]()
        while attempt < self.settings.erasure.max_attempts:
            attempt += 1
            rank, merged = self.attempt(fleet, pending, original, attempt, readings)
            candidate = self.audit(fleet, merged.arrays, "Auditing the unlearned model", f"unlearned-{attempt}")
            verdict, relearned = self._judge(original, candidate), None
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
                best = Unlearned(candidate, verdict, attempt, after - before, merged.requests, relearned, ())
            if passed:
                break
            self.progress.say(f"Attempt {attempt}: {verdict.sentence()}")
        return replace(best, readings=tuple(readings))

    def _judge(self, original: AuditedModel, candidate: AuditedModel) -> Verdict:
        audit, before, after = self.settings.audit, original.scores, candidate.scores
        verdict = judge(before, after, audit)
        if verdict.outcome is Outcome.FAIL:
            return verdict
        return judge_without_each(verdict, before, after, original.own_test, candidate.own_test, audit)

    def _relearn(
        self, fleet: Fleet, model: AuditedModel, pending: Mapping[int, PendingReply], attempt: int
    ) -> AuditedModel:
        """Train on as any later round would, on retain images only, and attack again: what was only hidden comes back.

        After the purge there is nobody left to attack with, so this is the last chance to see it.
        """
        training, rounds, arrays = self.settings.training, self.settings.erasure.relearning_rounds, model.arrays
        with self.progress.phase("Training on, to see what comes back", rounds * len(pending)) as advance:
            for _ in range(rounds):
                arrays = self.fit_round(
                    fleet, arrays, pending, "relearn", training.local_epochs, training.learning_rate, advance
                )
        return self.audit(fleet, arrays, "Attacking it again", f"relearned-{attempt}")

    def attempt(
        self,
        fleet: Fleet,
        pending: Mapping[int, PendingReply],
        original: AuditedModel,
        attempt: int,
        readings: list[GateReading],
    ) -> tuple[tuple[bool, float, float], Merged]:
        """Run rounds of distancing and repair from the original; return the best round's rank and model.

        The paper's dynamic strategy with a fleet's gate: distance while forgotten people look more like members than
        validation people do, then train on clean images only, with a cosine-decayed step. Rounds that only repair are
        averaged (stochastic weight averaging, Izmailov et al. 2018), and the next goes on from their mean: single
        rounds of small fleets differ by chance, and what the gate has seen the sites hold already. It stops when a
        round brings nothing more to a model that is forgetful and useful enough. Where no site that was asked has
        anybody else to train on, there is nothing but repair: the audit says whether that has forgotten them.
        """
        erasure, unlearning = self.settings.erasure, self.settings.unlearning
        reading = self._read(fleet, original.samples)
        readings.append(_noted(reading, attempt, 0))
        floor = UtilityFloor.under(reading, unlearning.max_utility_drop)
        # Over few people the attack is noise to a tenth; like the verdict, the gate asks that its lead is halved.
        gate = max(unlearning.gate, (reading.attack_auc - 0.5) / 2.0)
        arrays, best, requests = original.arrays, Merged(original.arrays), forgotten_without_update(pending)
        able = any(reply.can_unlearn for reply in pending.values())
        best_rank, averaged = _WORST_RANK, RunningMean()
        total = erasure.rounds * sum(reply.can_unlearn + reply.can_train for reply in pending.values())
        with self.progress.phase(f"Unlearning, attempt {attempt}", total) as advance:
            for number in range(erasure.rounds):
                # Whatever a gate over few people reads, nobody is forgotten without a round of DLFD.
                if able and (number == 0 or reading.attack_auc > 0.5 + gate):
                    distanced = self.distancing_round(fleet, arrays, pending, attempt, advance)
                    arrays, requests = distanced.arrays, requests.union(distanced.requests)
                    averaged = RunningMean()
                rate = erasure.learning_rate * cosine(number, erasure.rounds)
                repaired = self.fit_round(fleet, arrays, pending, "repair", erasure.repair_epochs, rate, advance)
                averaged.add(repaired, 1.0)
                arrays = repaired if averaged.count == 1 else self.as_sent(fleet, averaged.value(), arrays)
                samples = self.look(fleet, arrays, f"gate-{self._round}")
                reading = self._read(fleet, samples)
                self.record(gate_metrics(samples, reading) | {"attempt": attempt}, self._round)
                readings.append(_noted(reading, attempt, self._round))
                rank = checkpoint_rank(reading, floor, gate)
                if rank > best_rank:
                    best_rank, best = rank, Merged(arrays, tuple(sorted(requests)))
                elif best_rank >= _GOOD_ENOUGH:
                    break
        return best_rank, best

    @staticmethod
    def _read(fleet: Fleet, samples: SampleScores) -> Reading:
        try:
            return read_gate(samples)
        except DataError as error:
            absent = f" Sites that did not answer: {fleet.why_absent()}." if fleet.absent else ""
            raise JobError(f"{error}{absent} The requests wait for the next job.") from error

    # ------------------------------------------------------------------ in an app of one's own

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        publish: Callable[[ArrayRecord, ModelCard, Verdict], None],
        timeout: float = 3600,
    ) -> UnlearningResult:
        """Forget everybody who asks at the nodes of a grid: the erasure of :mod:`server.app` without files and MLflow.

        Parameters
        ----------
        grid
            Flower's grid; its nodes run :func:`~dlfd_fleet.federation.site.handlers.add_unlearning`.
        initial_arrays
            State dict of the model that remembers them, as :attr:`card` describes it.
        publish
            Called with a model that may be released, its card and the verdict, BEFORE the sites purge the images of
            the forgotten: it must have kept the model when it returns. If it raises, nothing is purged.
        timeout
            Longest wait for the replies of one round, seconds.

        Raises
        ------
        JobError
            If no site answers, or too few of them do. As after any other error, the requests wait for the next start.
        """
        waits = self.settings.fleet
        keys = SiteKeys(bound=waits.registered_keys)
        fleet = Fleet(
            grid, timeout, waits.quorum, waits.return_seconds, late_seconds=waits.late_seconds, site_keys=keys
        )
        fleet.largest_weight_ratio = waits.largest_weight_ratio
        self.journal.traffic = fleet
        fleet.wait_for_nodes(self.settings.fleet.least_sites, self.settings.fleet.connect_seconds)
        try:
            return self._erase(fleet, initial_arrays, publish)
        except Exception as error:
            self._give_back(fleet, f"the job failed: {type(error).__name__}")
            raise

    def _erase(
        self,
        fleet: Fleet,
        initial_arrays: ArrayRecord,
        publish: Callable[[ArrayRecord, ModelCard, Verdict], None],
    ) -> UnlearningResult:
        pending = ask_pending(
            fleet,
            PendingQuery(job=self.job, take=True, epoch=self.card.epoch, devices=DevicesReached()),
            self.settings.erasure.largest_forget_share,
            self.card,
        )
        for node, claim in fleet.claims.items():
            if claim.doubt:
                self.progress.say(f"{fleet.name(node)} {claim.doubt}.")
        asked = [request for reply in pending.values() for request in reply.requests]
        if not someone_to_unlearn(pending):
            if asked:
                reason, epoch = NOTHING_TO_UNLEARN, self.card.epoch
                settle(fleet, self.job, self.progress, "released", reason, epoch, asked, DevicesReached())
            return UnlearningResult(arrays=initial_arrays, card=self.card)
        base = dict(initial_arrays.to_torch_state_dict())
        original = self.audit(fleet, base, "Attacking the original model", "original")
        unlearned = self.unlearn(fleet, pending, original)
        result = UnlearningResult(arrays=initial_arrays, card=self.card, verdict=unlearned.verdict)
        for number, model in enumerate((original, unlearned.model)):
            result.evaluate_metrics_clientapp[number] = MetricRecord(dict(model.scores.metrics()))
        if not may_release(unlearned.verdict, self.settings):
            self._give_back(fleet, unlearned.verdict.sentence())
            return result
        result.card = self.card.model_copy(
            update={"kind": "unlearned", "epoch": self.card.epoch + 1, "parent": digest(base), "job": self.job}
        )
        result.arrays = ArrayRecord.from_torch_state_dict(unlearned.model.arrays)
        publish(result.arrays, result.card, unlearned.verdict)
        reason, epoch = unlearned.verdict.sentence(), result.card.epoch
        settle(fleet, self.job, self.progress, "released", reason, epoch, unlearned.requests, DevicesReached())
        return result

    def _give_back(self, fleet: Fleet, reason: str) -> None:
        """Let the requests wait for the next job; a site that cannot be told gives them back when that one asks."""
        if not fleet.asked:
            return
        try:
            settle(fleet, self.job, self.progress, "returned", reason, self.card.epoch, ())
        except FleetError as error:
            self.progress.say(f"The sites could not be told that {self.job} has ended: {error}")


def _noted(reading: Reading, attempt: int, number: int) -> GateReading:
    return GateReading(
        attempt=attempt,
        round=number,
        utility=reading.utility,
        utility_half_width=reading.utility_half_width,
        retain_accuracy=reading.retain_accuracy,
        attack_auc=reading.attack_auc,
    )


def cosine(number: int, total: int) -> float:
    """Return the share of the learning rate in round ``number`` of ``total`` (Loshchilov & Hutter 2017)."""
    return 0.5 * (1.0 + math.cos(math.pi * number / total))
