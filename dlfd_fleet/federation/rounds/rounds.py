"""Run one round of each kind: send tasks, check updates, and merge them into one model."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Literal, TypeVar

from dlfd_fleet.exceptions import JobError, MessageError
from dlfd_fleet.federation.protocol.differences import difference_of, model_of, without_frozen
from dlfd_fleet.federation.protocol.messages import Aim, FitResult, FitTask, Reference, UnlearnResult, UnlearnTask
from dlfd_fleet.federation.protocol.packing import COORDINATOR, MODEL, Arrays, arrays_of
from dlfd_fleet.federation.records.journal import Merged
from dlfd_fleet.federation.rounds.aggregation import (
    RunningMean,
    UpdateNorm,
    check_epoch,
    check_requests,
    check_update,
    check_weight,
    odd_updates,
    shortened,
)
from dlfd_fleet.federation.rounds.fleet import Reply
from dlfd_fleet.federation.rounds.job_context import JobContext, SiteUpdate
from dlfd_fleet.federation.rounds.requests import class_weights
from dlfd_fleet.progress import Advance
from dlfd_fleet.settings import AugmentationSettings, Precision, UnlearningSettings

Purpose = Literal["train", "repair", "relearn", "retrain", "reference"]
_Update = TypeVar("_Update", FitResult, UnlearnResult)
STRONGER = 1.5
"""Passes of an attempt, as a multiple of the attempt before."""
_DRIFT = 1.5
"""By how much updates of the others may be smaller than in the round before."""
_TITLES = {"train": "Training the original model", "retrain": "Retraining without the forgotten people"}


@dataclass(frozen=True)
class Forgetting:
    """The input of a round that forgets.

    Attributes
    ----------
    arrays
        The model to unlearn from.
    attempt
        Number of the attempt, from 1; a later one forgets more.
    aim
        What sites aim at, and whether a site within its gate leaves the model unchanged.
    advance
        Called for each reply.
    augmentation
        Of the images that sites train on. Default: ``erasure.augmentation``.
    """

    arrays: Arrays
    attempt: int
    aim: Aim
    advance: Advance
    augmentation: AugmentationSettings | None = None


@dataclass(frozen=True)
class Rounds:
    """The rounds of updates of a job; each is one step of its journal."""

    job: JobContext

    # ------------------------------------------------------------------ training

    def train(
        self,
        arrays: Arrays,
        purpose: Literal["train", "retrain", "reference"] = "train",
        reference: Reference | None = None,
        after: Callable[[Arrays], None] = lambda _: None,
        held: Arrays | None = None,
        rounds: int | None = None,
    ) -> Arrays:
        """Run federated averaging (McMahan et al. 2017), weighted by examples, with a cosine-decayed step.

        Parameters
        ----------
        reference
            The reference model to train, if any; each site trains it on half of its people.
        after
            Called with the model after each round.
        held
            For a reference model: the model that nodes hold. They are sent differences from it.
        rounds
            How many, if not ``training.rounds``.
        """
        training = self.job.settings.training
        total = rounds or training.rounds
        which = f"{reference.number + 1} of {reference.models}" if reference else ""
        title = _TITLES.get(purpose, f"Training reference model {which}")
        with self.job.progress.phase(title, total * len(self.job.fleet.admitted)) as advance:
            for number in range(total):
                rate = training.learning_rate * cosine(number, total)
                final = number == total - 1
                arrays = self.fit_round(
                    arrays, purpose, training.local_epochs, rate, advance, final=final, reference=reference, held=held
                )
                after(arrays)
        return arrays

    def fit_round(
        self,
        arrays: Arrays,
        purpose: Purpose,
        epochs: int,
        rate: float,
        advance: Advance,
        *,
        final: bool = True,
        reference: Reference | None = None,
        held: Arrays | None = None,
        at: frozenset[int] | None = None,
        augmentation: AugmentationSettings | None = None,
    ) -> Arrays:
        """Return the mean of all sites' models after plain training on their retain images; one step of the job.

        A model that is not ``final`` must only be used for another such round.

        Parameters
        ----------
        reference, held
            As in :meth:`train`.
        at
            Nodes that train. Default: all.
        augmentation
            As in :meth:`fit_task`.
        """
        number = self.job.next_round()

        def compute() -> Merged:
            task = self.fit_task(purpose, epochs, rate, final=final, reference=reference, augmentation=augmentation)
            mean = self._fit(arrays, task, advance, at)
            if task.reference is None:
                return Merged(self.as_sent(mean, arrays))
            return Merged(mean | self.job.card.frozen_of(arrays) if held is None else self.beside_held(mean, held))

        # Fresh weights, and those of references, are not compared: the journal does not keep them.
        base = arrays if purpose in ("repair", "relearn") else None
        return self._finished(f"{purpose}-{number}", purpose, compute, base).arrays

    def _finished(self, step: str, purpose: str, compute: Callable[[], Merged], base: Arrays | None = None) -> Merged:
        """Do, or recall, a round, and whose updates of this kind are shortened from then on."""
        job = self.job

        def with_long_updates() -> Merged:
            merged = compute()
            return replace(merged, long_updates=job.long_updates.get(purpose, {}))

        merged = job.journal.merged(step, with_long_updates, base)
        job.long_updates[purpose] = merged.long_updates
        return merged

    def _fit(self, arrays: Arrays, task: FitTask, advance: Advance, at: frozenset[int] | None) -> Arrays:
        job, fleet = self.job, self.job.fleet
        nodes, replies = fleet.wait_for_nodes(), fleet.replies()
        able = [node for node in nodes if node in replies and replies[node].can_train and (at is None or node in at)]
        if not able:
            raise JobError(f"No site has two images or more to train on: {fleet.why_absent()}.")
        mean, results = self.merge(able, task, FitResult, arrays, advance)
        able_members = sum(
            reply.can_train
            for node, reply in fleet.replies().items()
            if node not in fleet.without_half and (at is None or node in at)
        )
        if task.reference is not None and not able_members:
            raise JobError(
                f"No site has two images or more in its half for reference model {task.reference.number + 1}: add "
                "people, or set references.models to 0."
            )
        fleet.require_quorum(mean.count, f"trained in round {job.round}", able_members)
        losses = [result.loss for result in results.values()]
        metrics = {f"{task.purpose}_sites": mean.count, f"{task.purpose}_loss": sum(losses) / len(losses)}
        job.recorder.metrics(metrics, job.round)
        return mean.value()

    def fit_task(
        self,
        purpose: Purpose,
        epochs: int,
        rate: float,
        *,
        final: bool = True,
        reference: Reference | None = None,
        augmentation: AugmentationSettings | None = None,
    ) -> FitTask:
        """Return the task of plain training in the current round.

        Parameters
        ----------
        augmentation
            Default: ``erasure.augmentation`` for repair, ``training.augmentation`` for all else.
        """
        job, settings = self.job, self.job.settings
        usual = (settings.erasure if purpose == "repair" else settings.training).augmentation
        return FitTask(
            job=job.name,
            purpose=purpose,
            reference=reference,
            round=job.round,
            card=job.card,
            training=settings.training,
            augmentation=augmentation or usual,
            class_weights=self._class_weights(),
            epochs=epochs,
            learning_rate=rate,
            final=final,
            precision=settings.fleet.update_precision if reference is None else settings.references.update_precision,
            seed=job.seed if reference is None else seed_of_reference(settings.seed, reference, job.round),
        )

    # ------------------------------------------------------------------ unlearning

    def unlearning_round(self, forgetting: Forgetting, method: str, settings: UnlearningSettings) -> Merged:
        """Return the mean of the forgetting sites' models after a method of unlearning; one step of the job.

        Each attempt trains 1.5 times as long as the one before.

        Parameters
        ----------
        method
            Name of one of :data:`~dlfd_fleet.unlearning.METHODS`.
        settings
            Its hyper-parameters at a site.
        """
        number = self.job.next_round()

        def compute() -> Merged:
            task = self._unlearn_task(forgetting, method, settings)
            return self._unlearn(forgetting.arrays, task, forgetting.advance)

        return self._finished(f"distancing-{number}", "distancing", compute, forgetting.arrays)

    def _unlearn_task(self, forgetting: Forgetting, method: str, settings: UnlearningSettings) -> UnlearnTask:
        job = self.job
        epochs = settings.epochs * STRONGER ** (forgetting.attempt - 1)
        return UnlearnTask(
            job=job.name,
            round=job.round,
            card=job.card,
            method=method,
            augmentation=forgetting.augmentation or job.settings.erasure.augmentation,
            unlearning=settings.model_copy(update={"epochs": epochs}),
            aim=forgetting.aim,
            class_weights=self._class_weights(),
            precision=job.settings.fleet.update_precision,
            seed=job.seed,
        )

    def _unlearn(self, arrays: Arrays, task: UnlearnTask, advance: Advance) -> Merged:
        """Merge the forgetting sites' models, weighted by the images that each forgets.

        Only they are merged, because an average over all sites would weaken the unlearning. A site with nothing left to
        unlearn is not merged. If no site has anything left, the model does not change.
        """
        fleet = self.job.fleet
        nodes, replies = fleet.wait_for_nodes(), fleet.replies()
        asked = [node for node in nodes if node in replies and replies[node].can_unlearn]
        mean, results = self.merge(asked, task, UnlearnResult, arrays, advance)
        if not results:
            raise JobError(f"No site could unlearn: {fleet.why_absent()}; the requests wait for the next job.")
        requests = {request for result in results.values() for request in result.requests}
        merged = self.as_sent(mean.value(), arrays) if mean.count else arrays
        before = {node: result.retain_accuracy for node, result in results.items()}
        after = {node: result.retain_accuracy_after for node, result in results.items() if len(results) == 1}
        left = {fleet.name(node): each.left for node, each in results.items()}
        return Merged(
            merged,
            tuple(sorted(requests)),
            self._retained(before),
            self._retained(after),
            left=left,
        )

    def _retained(self, accuracies: Mapping[int, float | None]) -> dict[str, tuple[int, float]]:
        """Return by site how many retain images it counts by, and its accuracy on them, of nodes that tell it."""
        fleet = self.job.fleet
        return {
            fleet.name(node): (fleet.admitted[node].claim.weight, accuracy)
            for node, accuracy in accuracies.items()
            if accuracy is not None
        }

    # ------------------------------------------------------------------ what both are made of

    def merge(
        self,
        asked: Collection[int],
        task: FitTask | UnlearnTask,
        expected: type[_Update],
        arrays: Arrays,
        advance: Advance,
    ) -> tuple[RunningMean, dict[int, _Update]]:
        """Return the mean of the asked nodes' models, and each node's result.

        An update weighs by the images that its site says it is of; at most by those that it said it holds, and by those
        that it counts by. Replies are folded in as they come, so an update that is out of line with the others' shows
        only when all are in; then the round is done again. The update is shortened to ``fleet.update_ratio`` medians of
        the others'. If it is longer than that ratio squared, and the site has not as many times the images of the
        others, the site is left out. A site whose updates were shortened once is expected to have such again, so later
        rounds of that kind are done once: it is shortened at once to what any site's was in the round before, at most
        1.5 times what any site's may be now. What it sends is judged as in the first round.
        """
        job, nodes, refused = self.job, set(asked), set[int]()
        purpose = task.purpose if isinstance(task, FitTask) else "distancing"
        longest = dict(job.long_updates.get(purpose, {}))
        while True:
            mean, results, updates = RunningMean(), dict[int, _Update](), list[SiteUpdate]()
            norms, sent = dict[int, float](), dict[int, float]()
            tasks = dict.fromkeys(sorted(nodes), task.to_records(model=arrays))
            keep = isinstance(task, UnlearnTask) or task.reference is None
            for reply in job.fleet.exchange(task.TYPE, tasks, str(job.round), job.card, keep=keep):
                advance()
                try:
                    result, model, norm = self._checked(reply, task, expected, arrays)
                except MessageError as error:
                    job.fleet.refuse(reply.node, error)
                    refused.add(reply.node)
                    continue
                results[reply.node] = result
                if model is not None:
                    sent[reply.node] = norm.whole
                    norms[reply.node] = min(norm.whole, longest.get(reply.sender, norm.whole))
                    weight = result.weight
                    if isinstance(task, FitTask):
                        weight = min(weight, job.fleet.admitted[reply.node].claim.weight)
                    if norms[reply.node] < norm.whole:
                        model = shortened(model, arrays, norms[reply.node] / norm.whole)
                    mean.add(model, weight)
                updates.append(SiteUpdate(purpose, job.round, reply.sender, result.metrics(), norm))
            odd = odd_updates(sent, job.settings.fleet.update_ratio)
            unexplained = {node: ratio for node, ratio in odd.items() if ratio > self._longest_sent(node, sent)}
            long = odd_updates(norms, job.settings.fleet.update_ratio)
            long = {node: ratio for node, ratio in long.items() if ratio > self._tolerated(node, longest)}
            if not unexplained and not long:
                for update in updates:
                    job.recorder.update(update)
                job.recorder.metrics({"refused_updates": len(refused)}, job.round)
                listed = {node for node in norms if job.fleet.name(node) in longest and len(norms) > 1}
                job.long_updates[purpose] = {job.fleet.name(node): self._longest(node, norms) for node in listed}
                return mean, results
            for node, ratio in unexplained.items():
                job.fleet.expel(node, f"sent an update {ratio:.1f} times as large as the median of the others'")
            for node, ratio in long.items():
                if node not in unexplained:
                    longest[job.fleet.name(node)] = self._longest(node, norms)
                    job.progress.say(
                        f"{job.fleet.name(node)} sent an update {ratio:.1f} times as large as the median of the "
                        f"others': it is shortened to {job.settings.fleet.update_ratio:g} times."
                    )
            refused |= unexplained.keys()
            nodes -= unexplained.keys()

    def _longest(self, node: int, norms: Mapping[int, float]) -> float:
        """Return the largest norm of any site's update, as the other sites' of a round say."""
        return self.job.settings.fleet.update_ratio * median(norm for other, norm in norms.items() if other != node)

    def _tolerated(self, node: int, longest: Mapping[str, float]) -> float:
        """Return the largest norm in medians: of an update that was shortened by an earlier round's a little more."""
        return self.job.settings.fleet.update_ratio * (_DRIFT if self.job.fleet.name(node) in longest else 1.0)

    def _longest_sent(self, node: int, norms: Mapping[int, float]) -> float:
        """Return above how many medians a site is left out: a site with many images takes more steps."""
        images = {other: self.job.fleet.admitted[other].claim.weight for other in norms}
        usual = median(count for other, count in images.items() if other != node)
        ratio = self.job.settings.fleet.update_ratio
        return ratio * max(ratio, images[node] / max(usual, 1.0))

    def _checked(
        self, reply: Reply, task: FitTask | UnlearnTask, expected: type[_Update], arrays: Arrays
    ) -> tuple[_Update, Arrays | None, UpdateNorm]:
        """Return a site's result, its trained arrays and their norms; refuse what is not valid.

        A site within its gate sends no arrays, if it was asked about that.
        """
        result = expected.from_records(reply.records, reply.sender)
        self.job.fleet.worked(reply.node, result.seconds)
        done = isinstance(result, UnlearnResult) and result.done
        if done and not (isinstance(task, UnlearnTask) and task.aim.to_gate):
            raise MessageError(
                f"{reply.sender} says that nothing is left to unlearn, but was not asked that; it was refused."
            )
        model = None if done else self.trained_arrays(reply, task, arrays)
        check_epoch(result.epoch, self.job.card.epoch, reply.sender)
        said, largest = self.job.fleet.admitted[reply.node].reply, None
        if isinstance(task, UnlearnTask):
            largest = self.job.settings.erasure.largest_update
        check_weight(result.weight, said.retain_images if largest is None else said.forget_images, reply.sender)
        norm = UpdateNorm(0.0, 0.0)
        if model is not None:
            norm = check_update(model, self.job.card.trained(arrays), reply.sender, largest)
        if isinstance(result, UnlearnResult):
            check_requests(result.requests, said.requests, reply.sender)
        return result, model, norm

    def trained_arrays(self, reply: Reply, task: FitTask | UnlearnTask, arrays: Arrays) -> Arrays:
        """Return the arrays of a site's update: all that are not frozen.

        Raises
        ------
        MessageError
            If it sends a frozen array, or a difference does not fit.
        """
        card, update = self.job.card, arrays_of(reply.records, MODEL, reply.sender)
        if frozen := sorted(update.keys() - without_frozen(update, card).keys()):
            raise MessageError(f"{reply.sender} sent '{frozen[0]}', which is frozen; its update was refused.")
        return model_of(update, card.trained(arrays), task.precision, reply.sender)

    def as_sent(self, model: Arrays, base: Arrays) -> Arrays:
        """Return the model that nodes which hold ``base`` will have, and send them only the difference.

        Frozen arrays are those of ``base``.
        """
        return self._rounded(model, base, self.job.settings.fleet.update_precision)

    def beside_held(self, model: Arrays, held: Arrays) -> Arrays:
        """Return the reference model that nodes which hold another model will have.

        Its difference from that model is large, so it is sent in float16 at least.
        """
        exact = self.job.settings.references.update_precision == "float32"
        return self._rounded(model, held, "float32" if exact else "float16")

    def _rounded(self, model: Arrays, base: Arrays, precision: Precision) -> Arrays:
        card = self.job.card
        if precision == "float32":
            return model | card.frozen_of(base)
        difference = difference_of(card.trained(model), base, precision)
        sent = base | model_of(difference, card.trained(base), precision, COORDINATOR)
        self.job.fleet.held.offer(sent, base, difference, precision)
        return sent

    def _class_weights(self) -> tuple[float, ...]:
        """Return the class weights over the sites that still take part, by their counts."""
        fleet = self.job.fleet
        said = {node: member.reply for node, member in fleet.admitted.items()}
        return class_weights(fleet.replies() or said, fleet.claims())


def cosine(number: int, total: int) -> float:
    """Return the share of the learning rate in round ``number`` of ``total`` (Loshchilov & Hutter 2017)."""
    return 0.5 * (1.0 + math.cos(math.pi * number / total))


def seed_of_reference(seed: int, reference: Reference, number: int) -> int:
    """Return the seed of a reference model's round, which no other model has; round 0 is for its fresh weights."""
    text = f"reference {seed} {reference.number} {number}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6])
