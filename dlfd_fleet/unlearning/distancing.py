"""DLFD: Distribution-Level Feature Distancing (Choi & Na, AAAI 2025, arXiv 2409.14747), as the paper describes it.

Retain images are moved, inside a small ball of pixels, to where their features are far from those of the forget set
(optimal transport under the cosine cost) while they are still classified correctly; the model is then trained on the
moved images. It unlearns what the forget images had to themselves, and keeps what the task needs.

Choices that the paper leaves open, and that the released code makes by accident:

- phi is the feature space before the head, not the logits.
- Noise lives in a ball of the pixel range and images stay in [0, 1].
- The noise is found in eval mode (fixed batch-norm statistics, no dropout: the gradient of the deployed function), the
  model is trained in train mode.
- The gate looks at the forget set and at validation people only. Before each look batch-norm statistics are taken anew
  from clean retain images: running ones lag behind weights that move fast.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from dlfd_fleet.audit import Reading
from dlfd_fleet.models import FeatureClassifier
from dlfd_fleet.settings import UnlearningSettings
from dlfd_fleet.unlearning.contract import (
    Augment,
    Cost,
    LabelledImages,
    Monitor,
    TraceEntry,
    UnlearnOutcome,
    checkpoint_rank,
)
from dlfd_fleet.unlearning.monitor import loss_monitor
from dlfd_fleet.unlearning.training import device_of, optimizer_of, recalibrate
from dlfd_fleet.unlearning.transport import cosine_cost, transport_distance

DISTANCING, CLASSIFICATION = "distancing", "classification"


def dlfd(
    model: FeatureClassifier,
    retain: LabelledImages,
    forget: LabelledImages,
    validation: LabelledImages,
    settings: UnlearningSettings,
    monitor: Monitor | None = None,
    *,
    seed: int = 0,
    class_weights: Tensor | None = None,
    augment: Augment | None = None,
) -> UnlearnOutcome:
    """Unlearn the forget set in place, and leave the model at its best checkpoint, in eval mode.

    Parameters
    ----------
    model
        Gives features ``(N, F)`` and logits ``(N, C)``.
    retain, forget
        Training images to keep and to forget; neither may be empty.
    validation
        People never trained on, for the gate; never those of the final evidence.
    settings
        Hyper-parameters; pixel units are fractions of the range [0, 1]. With ``monitor_every = 0`` nothing is looked
        at: every step distances and the last weights stay, for callers that gate by themselves.
    monitor
        Looks at the model between steps; :func:`loss_monitor` on ``forget`` and ``validation`` by default.
    seed
        Seed of batches, augmentation and dropout.
    class_weights
        Weight of each class in the training loss, ``(C,)``; all 1 when omitted.
    augment
        Changes each retain batch before its noise is found.

    Raises
    ------
    ValueError
        If a set is empty.
    """
    for name, data in (("retain", retain), ("forget", forget), ("validation", validation)):
        if not len(data):
            raise ValueError(f"DLFD needs at least one {name} image.")
    run = _Run(model, settings, monitor or loss_monitor(forget, validation), retain, class_weights)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # dropout
    if settings.monitor_every:
        run.look(0, "original")
    total = math.ceil(settings.epochs * len(list(retain.batches(settings.batch_size, generator))))
    retain_rows, forget_rows = _cycle(retain, settings, generator), _cycle(forget, settings, generator)
    for step in range(1, total + 1):
        if run.finished():
            break
        phase = run.phase()
        images, labels = retain.batch(next(retain_rows), device_of(model))
        if augment is not None:
            images = augment(images, generator)
        if phase == DISTANCING:
            others, _ = forget.batch(next(forget_rows), device_of(model))
            progress = (step - 1) / max(1, total - 1)
            images = run.distance(images, labels, others, progress)
        run.train_step(images, labels)
        if settings.monitor_every and (step % settings.monitor_every == 0 or step == total):
            run.look(step, phase)
    return run.outcome(total)


def distancing_noise(
    model: FeatureClassifier,
    images: Tensor,
    labels: Tensor,
    forget_features: Tensor,
    settings: UnlearningSettings,
    retain_weight: float,
) -> Tensor:
    """Return noise ``(N, 3, S, S)`` that distances the features of images from those of the forget set.

    ``settings.steps`` sign-gradient steps that ascend (arXiv 2409.14747, section 3)

        forget_weight * OT(phi(x + delta), phi(x_f)) - retain_weight * CE(f(x + delta), y)

    inside the L-infinity ball, with ``x + delta`` in [0, 1]. The model is used as it is: no gradient of its weights is
    computed.

    Parameters
    ----------
    images, labels
        Retain images ``(N, 3, S, S)`` in [0, 1] and their classes ``(N,)``.
    forget_features
        Features ``(M, F)`` of forget images under the same model.
    retain_weight
        Weight of the classification term at this point of the epoch.
    """
    noise = torch.zeros_like(images)
    for _ in range(settings.steps):
        noise.requires_grad_(True)
        features, logits = model.features_and_logits(images + noise)
        distance = transport_distance(
            cosine_cost(features, forget_features), settings.sinkhorn_epsilon, settings.sinkhorn_iterations
        )
        objective = settings.forget_weight * distance - retain_weight * functional.cross_entropy(logits, labels)
        (gradient,) = torch.autograd.grad(objective, noise)
        noise = noise.detach() + settings.step_size * gradient.sign()
        noise = noise.clamp_(-settings.ball, settings.ball)
        noise = (images + noise).clamp_(0.0, 1.0) - images
    return noise


@dataclass
class _Run:
    """One unlearning in progress: the model, its optimizer, its best checkpoint and what it has cost."""

    model: FeatureClassifier
    settings: UnlearningSettings
    monitor: Monitor
    retain: LabelledImages
    class_weights: Tensor | None
    trace: list[TraceEntry] = field(default_factory=list)
    forward_images: int = 0
    backward_images: int = 0
    monitor_seconds: float = 0.0
    started: float = field(default_factory=time.perf_counter)
    best_step: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.optimizer = optimizer_of(self.model, self.settings, self.settings.learning_rate)

    @property
    def latest(self) -> Reading:
        return self.trace[-1].reading

    def phase(self) -> str:
        """Follow the paper's dynamic forgetting strategy: noise only while the gate does not say 'forgotten'."""
        forgotten = bool(self.trace) and self.latest.forgetting <= self.settings.gate
        return CLASSIFICATION if forgotten else DISTANCING

    def utility_floor(self) -> float:
        """Least validation accuracy of a checkpoint that may be chosen."""
        return self.trace[0].reading.utility - self.settings.max_utility_drop

    def finished(self) -> bool:
        """Stop early at the gate: running on past it destroys the model."""
        if not self.trace:
            return False
        return self.latest.forgetting <= self.settings.gate and self.latest.utility >= self.utility_floor()

    def look(self, step: int, phase: str) -> None:
        """Read the model, and keep its weights if it is the best so far."""
        before = time.perf_counter()
        if step:
            recalibrate(self.model, self.retain)
        entry = TraceEntry(step, phase, self.monitor(self.model))
        self.monitor_seconds += time.perf_counter() - before
        self.trace.append(entry)
        best = next((seen for seen in self.trace if seen.step == self.best_step), entry)
        if entry is best or self._rank(entry.reading) > self._rank(best.reading):
            self.best_step = step
            self.best_weights = {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def _rank(self, reading: Reading) -> tuple[bool, float, float]:
        return checkpoint_rank(reading, self.utility_floor(), self.settings.gate)

    def distance(self, images: Tensor, labels: Tensor, others: Tensor, progress: float) -> Tensor:
        """Return retain images moved away from forget images; weights and statistics stay as they are."""
        first, last = self.settings.retain_weight_start, self.settings.retain_weight_end
        self.model.eval()
        self.model.requires_grad_(False)
        with torch.no_grad():
            forget_features = self.model.features(others)
        weight = first + (last - first) * progress
        noise = distancing_noise(self.model, images, labels, forget_features, self.settings, weight)
        self.model.requires_grad_(True)
        self.forward_images += len(others) + self.settings.steps * len(images)
        self.backward_images += self.settings.steps * len(images)
        return images + noise

    def train_step(self, images: Tensor, labels: Tensor) -> None:
        """One step of cross-entropy, batch normalisation and dropout in train mode."""
        self.model.train()
        loss = functional.cross_entropy(self.model(images), labels, weight=self.class_weights)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.optimizer.step()
        self.forward_images += len(images)
        self.backward_images += len(images)

    def outcome(self, last_step: int) -> UnlearnOutcome:
        """Put the best checkpoint back, where there is one, and report."""
        if self.trace:
            self.model.load_state_dict(self.best_weights)
        else:
            self.best_step = last_step
        self.model.eval()
        seconds = time.perf_counter() - self.started
        cost = Cost(seconds, self.monitor_seconds, self.forward_images, self.backward_images)
        return UnlearnOutcome(self.model, tuple(self.trace), cost, self.best_step)


def _cycle(data: LabelledImages, settings: UnlearningSettings, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield batches of rows, epoch after epoch, each shuffled anew."""
    while True:
        yield from data.batches(settings.batch_size, generator)
