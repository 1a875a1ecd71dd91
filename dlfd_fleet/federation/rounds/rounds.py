"""One round of each kind: what goes out to the sites, what may come back, and how it becomes one model or one audit."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

from dlfd_fleet.exceptions import JobError, MessageError
from dlfd_fleet.federation.protocol.differences import difference_of, model_of
from dlfd_fleet.federation.protocol.messages import (
    FitResult,
    FitTask,
    PendingReply,
    UnlearnResult,
    UnlearnTask,
)
from dlfd_fleet.federation.protocol.packing import (
    COORDINATOR,
    MODEL,
    Arrays,
    arrays_of,
)
from dlfd_fleet.federation.records.journal import Merged
from dlfd_fleet.federation.rounds.aggregation import (
    RunningMean,
    UpdateNorm,
    check_epoch,
    check_requests,
    check_update,
    check_weight,
    odd_updates,
)
from dlfd_fleet.federation.rounds.audits import FederatedAudits
from dlfd_fleet.federation.rounds.fleet import Fleet, Reply
from dlfd_fleet.federation.rounds.requests import class_weights
from dlfd_fleet.progress import Advance

Purpose = Literal["train", "repair", "relearn", "retrain"]
_Update = TypeVar("_Update", FitResult, UnlearnResult)


@dataclass(frozen=True)
class Effort:
    """Seconds, and array bytes in both directions."""

    seconds: float
    sent_bytes: int

    def __sub__(self, before: Effort) -> Effort:
        return Effort(self.seconds - before.seconds, self.sent_bytes - before.sent_bytes)


class FederatedRounds(FederatedAudits):
    """The rounds of updates that jobs are made of, and their audits; each is one step of the job's journal."""

    unlearn_task: ClassVar[type[UnlearnTask]] = UnlearnTask

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
            task = self._fit_task(fleet, pending, purpose, epochs, rate, final=final)
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
        most = {node: pending[node].retain_images for node in fleet.wait_for_nodes() if pending[node].can_train}
        if not most:
            raise JobError(f"No site has two images or more to train on: {fleet.why_absent()}.")
        counted = {node: claim.weight for node, claim in fleet.claims.items()}
        mean, results = self._merge(fleet, most, task, FitResult, arrays, advance, counted=counted)
        able = sum(reply.can_train for node, reply in pending.items() if node in fleet.members)
        fleet.require_quorum(mean.count, f"trained in round {self._round}", able)
        losses = [result.loss for result in results]
        metrics = {f"{task.purpose}_sites": mean.count, f"{task.purpose}_loss": sum(losses) / len(losses)}
        self.record(metrics, self._round)
        return Merged(self.as_sent(fleet, mean.value(), arrays))

    def _fit_task(
        self,
        fleet: Fleet,
        pending: Mapping[int, PendingReply],
        purpose: Purpose,
        epochs: int,
        rate: float,
        *,
        final: bool = True,
    ) -> FitTask:
        return FitTask(
            job=self.job,
            purpose=purpose,
            round=self._round,
            card=self.card,
            training=self.settings.training,
            augmentation=(self.settings.erasure if purpose == "repair" else self.settings.training).augmentation,
            class_weights=_class_weights(fleet, pending),
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
        asked: Mapping[int, Collection[str]] | None = None,
        counted: Mapping[int, int] | None = None,
    ) -> tuple[RunningMean, list[_Update]]:
        """Return the mean of the nodes' updated models, and what they say of them.

        Replies are folded in as they come, so an update that is out of line with the others' shows only when all are
        in; then the round is done again without its site. That costs time only where somebody misbehaves.

        Parameters
        ----------
        most
            The nodes that are asked, and the images that each one has said it holds: its weight is at most that.
        asked
            The requests that each node has counted when the job began: it can have unlearned no others.
        counted
            How many images they count by, where that is not what they say.
        """
        nodes, refused = set(most), set[int]()
        while True:
            mean, results, norms = RunningMean(), [], dict[int, float]()
            tasks = dict.fromkeys(sorted(nodes), task.to_records(model=arrays))
            for reply in fleet.exchange(task.TYPE, tasks, str(self._round)):
                advance()
                try:
                    result, model, norm = self._checked(reply, task, expected, arrays, most[reply.node])
                    if isinstance(result, UnlearnResult):
                        check_requests(result.requests, (asked or {}).get(reply.node, ()), reply.sender)
                except MessageError as error:
                    fleet.refuse(reply.node, error)
                    refused.add(reply.node)
                    continue
                norms[reply.node] = norm.whole
                mean.add(model, min(result.weight, (counted or most).get(reply.node, result.weight)))
                results.append(result)
                metrics = result.metrics() | {"update_norm": norm.whole, "weights_norm": norm.trained}
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

    def _checked(
        self, reply: Reply, task: FitTask | UnlearnTask, expected: type[_Update], arrays: Arrays, most: int
    ) -> tuple[_Update, Arrays, UpdateNorm]:
        """Return what a site says of its update, its model and the update's norms; refuse what cannot count."""
        result = expected.from_records(reply.records, reply.sender)
        update = arrays_of(reply.records, MODEL, reply.sender)
        model = model_of(update, arrays, task.precision, reply.sender)
        check_epoch(result.epoch, self.card.epoch, reply.sender)
        check_weight(result.weight, most, reply.sender)
        largest = self.settings.erasure.largest_update if isinstance(task, UnlearnTask) else None
        return result, model, check_update(model, arrays, reply.sender, largest)

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
            class_weights=_class_weights(fleet, pending),
            precision=self.settings.fleet.update_precision,
            seed=self._seed(),
        )
        most = {node: pending[node].forget_images for node in fleet.wait_for_nodes() if pending[node].can_unlearn}
        asked = {node: pending[node].requests for node in most}
        mean, results = self._merge(fleet, most, task, UnlearnResult, arrays, advance, asked)
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


def _class_weights(fleet: Fleet, pending: Mapping[int, PendingReply]) -> tuple[float, ...]:
    """Return the weights of the classes over the sites that still take part, by what they count by."""
    taking_part = {node: reply for node, reply in pending.items() if node in fleet.members}
    return class_weights(taking_part or pending, fleet.claims)
