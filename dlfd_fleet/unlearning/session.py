"""Provide what methods share: batches, training steps, cost counts and the time limit."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from dlfd_fleet.audit import Reading
from dlfd_fleet.unlearning.contract import (
    Cost,
    LabelledImages,
    Monitor,
    TraceEntry,
    UnlearningProblem,
    UnlearnOutcome,
    collapse,
)
from dlfd_fleet.unlearning.monitor import MOST_IMAGES, loss_monitor
from dlfd_fleet.unlearning.references import target_loss, unlearning_targets
from dlfd_fleet.unlearning.training import (
    classification_loss,
    device_of,
    predict_probabilities,
    recalibrate,
    restored_gradients,
    trained,
)

_STATISTICS_IMAGES = 512


@dataclass
class Session:
    """One unlearning in progress: the problem and its cost so far."""

    problem: UnlearningProblem
    steps: int = 0
    forward_images: int = 0
    backward_images: int = 0
    noise_images: int = 0
    monitor_seconds: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        """Refuse empty sets and a model without gradients, and seed everything that is random."""
        problem = self.problem
        for name in ("retain", "forget", "validation"):
            images = getattr(problem, name)
            if images is not None and not len(images):
                raise ValueError(f"Unlearning needs at least one {name} image.")
        self.model, self.settings, self.augment = problem.model, problem.settings, problem.augment
        self.retain, self.forget = problem.retain, problem.forget
        self.device = device_of(self.model)
        self.model.freeze()  # whatever takes no gradient now keeps its statistics, too
        self.trained = trained(self.model)
        if not self.trained:
            raise ValueError("No parameter of the model takes a gradient: it can neither learn nor forget.")
        self.model.zero_grad(set_to_none=True)
        self.generator = torch.Generator().manual_seed(problem.seed)
        torch.manual_seed(problem.seed)  # dropout and fresh weights
        self.class_weights = None if problem.class_weights is None else problem.class_weights.to(self.device)
        self._refuse_answers_of_other_images()
        self._targets = self._find_targets()
        self._rows_with_targets = self._cycle_rows_with_targets()

    @property
    def validation(self) -> LabelledImages:
        """The validation images; raises :class:`ValueError` if there are none."""
        if self.problem.validation is None:
            raise ValueError("This method has a gate, which needs validation images.")
        return self.problem.validation

    def seconds(self) -> float:
        """Return the wall-clock seconds since the start."""
        return time.perf_counter() - self.started

    def expired(self) -> bool:
        """Tell whether the time limit of the settings is used up."""
        return self.settings.max_seconds is not None and self.seconds() >= self.settings.max_seconds

    def batches(self, data: LabelledImages, *, augmented: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one shuffled epoch of float images and labels on the model's device, until the time is used up."""
        for rows in data.batches(self.settings.batch_size, self.generator):
            if self.expired():
                return
            images, labels = data.batch(rows, self.device)
            if augmented and self.augment is not None:
                images = self.augment(images, self.generator)
            yield images, labels

    def cycle(self, data: LabelledImages) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches without end; each epoch is shuffled again."""
        while True:
            for rows in data.batches(self.settings.batch_size, self.generator):
                yield data.batch(rows, self.device)

    def sample(self, data: LabelledImages, images: int) -> LabelledImages:
        """Return this many random images of a data set, or all if there are fewer."""
        rows = torch.randperm(len(data), generator=self.generator)[:images]
        return data.select(rows)

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits ``(N, C)``, and count the pass."""
        self.forward_images += len(images)
        logits: Tensor = self.model(images)
        return logits

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss under the class weights, in nats, or the problem's own loss."""
        if self.problem.loss is not None:
            return self.problem.loss(logits, labels)
        return classification_loss(logits, labels, self.class_weights)

    def step(self, optimizer: torch.optim.Optimizer, loss: Tensor, images: int) -> None:
        """Take one optimizer step on a loss over this number of images, and clear the gradients."""
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.count_step(images)

    def count_step(self, images: int) -> None:
        """Count a step over this number of images."""
        self.backward_images += images
        self.steps += 1

    def train_on(self, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> None:
        """Take a step on retain images and, with references, on forget images towards their targets.

        Both go through the network together, so that batch statistics cover both. There are half as many forget images
        as ``batch_size``; each counts as much as a retain image.
        """
        if self._targets is None:
            self.step(optimizer, self.loss(self.logits(images), labels), len(images))
            return
        rows = next(self._rows_with_targets)
        others, _ = self.forget.batch(rows, self.device)
        logits, count = self.logits(torch.cat([images, others])), len(images)
        aimed = target_loss(logits[count:], self._targets[rows], multi_label=self.forget.multi_label)
        loss = self.loss(logits[:count], labels) + len(others) / count * aimed
        self.step(optimizer, loss, len(logits))

    @property
    def has_targets(self) -> bool:
        """Whether images to forget have targets."""
        return self._targets is not None

    def _refuse_answers_of_other_images(self) -> None:
        references = self.problem.references
        for name in ("forget", "validation") if references is not None else ():
            answers, images = getattr(references, name), getattr(self.problem, name)
            if answers is not None and images is not None and len(answers) != len(images):
                raise ValueError(
                    f"Reference models have answered for {len(answers)} {name} images, and there are {len(images)}: "
                    "give the answers to these images, in their order."
                )

    def _find_targets(self) -> Tensor | None:
        """Return the targets of the forget images ``(M, C)``; None without any.

        Unknown targets are NaN.
        """
        references, validation = self.problem.references, self.problem.validation
        if (given := self.problem.targets) is not None:
            if len(given) != len(self.forget):
                raise ValueError(f"There are {len(given)} targets for {len(self.forget)} forget images.")
            return None if given.isnan().any(dim=1).all() else given.to(self.device)
        if references is None:
            return None
        unseen_now = None
        if references.validation is not None and validation is not None:
            unseen_now = torch.from_numpy(predict_probabilities(self.model, validation))
            self.forward_images += len(validation)
        targets = unlearning_targets(references.forget, references.validation, unseen_now)
        return None if targets.isnan().any(dim=1).all() else targets.to(self.device)

    def _cycle_rows_with_targets(self) -> Iterator[Tensor]:
        """Yield rows of forget images with known targets, in batches without end; each epoch is shuffled again."""
        if self._targets is None:
            return
        known, left = torch.nonzero(~self._targets.isnan().any(dim=1).cpu()).flatten(), torch.zeros(0, dtype=torch.long)
        size = max(1, self.settings.batch_size // 2)
        while True:
            while len(left) < min(size, len(known)):
                left = torch.cat([left, known[torch.randperm(len(known), generator=self.generator)]])
            yield left[:size]
            left = left[size:]

    def optimizer(
        self, parameters: list[nn.Parameter] | None = None, rate: float | None = None
    ) -> torch.optim.Optimizer:
        """Return SGD over parameters (default: all trained ones) with the settings' rate, momentum and decay.

        If the problem has its own optimizer, return that with the same rate.
        """
        settings = self.settings
        chosen = self.trained if parameters is None else parameters
        rate = settings.learning_rate if rate is None else rate
        if self.problem.optimizer is not None:
            return self.problem.optimizer(chosen, rate)
        return torch.optim.SGD(
            chosen,
            rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )

    def planned_steps(self, data: LabelledImages, epochs: float | None = None) -> int:
        """Return the number of batches in a number of epochs, which need not be whole; default: ``settings.epochs``."""
        batches = len(list(data.batches(self.settings.batch_size, torch.Generator())))
        return max(1, round((self.settings.epochs if epochs is None else epochs) * batches))

    def epochs(self, data: LabelledImages, *, augmented: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches for ``settings.epochs`` epochs, until the time is used up."""
        left = self.planned_steps(data)
        while left > 0 and not self.expired():
            for images, labels in self.batches(data, augmented=augmented):
                yield images, labels
                left -= 1
                if left == 0:
                    return

    def fine_tune(
        self, optimizer: torch.optim.Optimizer, frozen: Iterable[nn.Module] = (), *, falling: bool = True
    ) -> None:
        """Train on the retain set in train mode for ``settings.epochs``; frozen modules stay in eval mode.

        The rate falls to 0 along half a cosine, as in DLFD's repair, or is constant.
        """
        self.model.train()
        for module in frozen:
            module.eval()
        steps = self.planned_steps(self.retain)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps) if falling else None
        for images, labels in self.epochs(self.retain, augmented=True):
            self.train_on(optimizer, images, labels)
            if schedule is not None:
                schedule.step()

    def retain_sample(self) -> LabelledImages:
        """Return the retain images for batch-norm statistics: all, or a sample of a large set."""
        if len(self.retain) <= _STATISTICS_IMAGES:
            return self.retain
        # A generator of its own, so that a reading does not change the batches that follow it.
        rows = torch.randperm(len(self.retain), generator=torch.Generator().manual_seed(self.problem.seed))
        return self.retain.select(rows[:_STATISTICS_IMAGES])

    def take_statistics(self) -> None:
        """Compute batch-norm statistics again from retain images, and count the passes."""
        sample = self.retain_sample()
        recalibrate(self.model, sample)
        self.forward_images += len(sample)

    def read(self, monitor: Monitor) -> Reading:
        """Measure the model, and count the cost."""
        before = self.seconds()
        reading = monitor(self.model)
        self.monitor_seconds += self.seconds() - before
        parts = (self.forget, self.problem.validation, self.retain)
        self.forward_images += sum(min(len(part), MOST_IMAGES) for part in parts if part is not None)
        return reading

    def monitor(self) -> Monitor:
        """Return the problem's monitor, or one over its three sets."""
        problem = self.problem
        return problem.monitor or loss_monitor(self.forget, self.validation, self.retain, problem.references)

    def collapse(self) -> tuple[str, ...]:
        """Measure the model, and return a sentence if it gives nearly the same answer for everybody."""
        return collapse(self.read(self.monitor()), self.problem.validation)

    def outcome(
        self, trace: tuple[TraceEntry, ...] = (), chosen_step: int | None = None, failures: tuple[str, ...] = ()
    ) -> UnlearnOutcome:
        """Put the model in eval mode and return the outcome."""
        self.model.eval()
        cost = Cost(self.seconds(), self.monitor_seconds, self.forward_images, self.backward_images, self.noise_images)
        return UnlearnOutcome(self.model, trace, cost, self.steps if chosen_step is None else chosen_step, failures)


def refuse_labels(method: str, data: LabelledImages) -> None:
    """Raise a :class:`ValueError` if images have several labels."""
    if data.multi_label:
        raise ValueError(f"{method} is defined for one class an image, not for several labels.")


class Peer(ABC):
    """A method without a gate, like those of the papers.

    Subclasses are frozen dataclasses of their hyper-parameters. Shared ones (epochs, batch size, learning rate,
    momentum, weight decay, time limit) are in the settings.

    Attributes
    ----------
    one_class_only
        Whether the paper defines the method only for one class an image.
    """

    one_class_only: ClassVar[bool] = False

    def __call__(self, problem: UnlearningProblem, /) -> UnlearnOutcome:
        """Unlearn in place, and compute batch-norm statistics again from the retain set at the end.

        With validation people the model is measured once, at the end. A collapsed model is no success.

        Raises
        ------
        ValueError
            If a set is empty, or images have several labels and the method is not defined for them.
        """
        if self.one_class_only:
            refuse_labels(type(self).__name__, problem.retain)
        session = Session(problem)
        session.model.train()
        with restored_gradients(session.model):
            self.unlearn(session)
        session.take_statistics()
        unchanged = () if session.steps else ("the time was up before anything was changed",)
        collapsed = () if problem.validation is None else session.collapse()
        return session.outcome(failures=(*unchanged, *collapsed))

    @abstractmethod
    def unlearn(self, session: Session) -> None:
        """Change the session's model."""
