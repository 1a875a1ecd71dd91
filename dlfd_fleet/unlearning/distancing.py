"""DLFD: Distribution-Level Feature Distancing (Choi & Na, AAAI 2025, arXiv 2409.14747), as the paper describes it.

DLFD adds noise to retain images, inside a small ball of pixels. The noise moves their features away from those of the
forget set (optimal transport under the cosine cost), while they are still classified correctly. Then the model is
trained on the noisy images. So it loses what is particular to the forget images, and keeps the task.

Choices that the paper leaves open:

- phi is the output of the layer before the head, not the logits.
- The ball is in units of the pixel range, and images stay in [0, 1].
- Noise is computed in eval mode (fixed batch-norm statistics, no dropout). The model is trained in train mode.
- The paper's dynamic strategy works in rounds, because forgetting shows only after plain training. A round is a few
  batches of distancing, plain training with a rate that falls to 0, and a reading. While the reading tells forgotten
  people from unseen ones, the next round distances again, and more strongly if the score did not move. Otherwise it
  only trains. A round that costs too much utility is not undone at once, because the next round often repairs it (nine
  of eleven). At the end the best round's weights are restored.
- With targets, answers of models that never saw the forget images (:mod:`~dlfd_fleet.unlearning.references`) or the
  model's own to changed copies (:mod:`~dlfd_fleet.unlearning.own_answers`), repair also trains these images towards
  them. Distancing is then used only after a round without progress.
  docs/experiments has results with and without.
- The gate measures the forget set, validation people and retained people. Before each reading, batch-norm statistics
  are computed again from clean retain images, because running statistics lag behind the weights.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass, field
from typing import IO

import torch
from safetensors.torch import load, save
from torch import Tensor

from dlfd_fleet.audit import Reading
from dlfd_fleet.exceptions import ModelFileError
from dlfd_fleet.models import FeatureClassifier
from dlfd_fleet.settings import UnlearningSettings
from dlfd_fleet.unlearning.contract import (
    Monitor,
    TraceEntry,
    UnlearningProblem,
    UnlearnOutcome,
    UtilityBound,
    checkpoint_rank,
    collapse,
)
from dlfd_fleet.unlearning.session import Session
from dlfd_fleet.unlearning.training import classification_loss, frozen, moved_statistics
from dlfd_fleet.unlearning.transport import cosine_cost, transport_distance

ORIGINAL, DISTANCING, REPAIR = "original", "distancing and repair", "repair"
TARGETS = "towards targets"
_STOOD_STILL = 0.8


def dlfd(problem: UnlearningProblem, /) -> UnlearnOutcome:
    """Unlearn the forget set in place with DLFD; the model ends at its best checkpoint, in eval mode.

    Parameters
    ----------
    problem
        Must have validation people, or a monitor of its own, for the gate after each round.

    Returns
    -------
    UnlearnOutcome
        ``success`` is False, with reasons, if no round was both within the gate and useful.

    Raises
    ------
    ValueError
        If a set is empty, or there are neither validation people nor a monitor.
    ModelFileError
        If the disk refuses the temporary file of the best weights.
    """
    session = Session(problem)
    with tempfile.TemporaryFile() as best_weights:
        rounds = _Rounds(session, session.monitor(), best_weights)
        rounds.note_reading(ORIGINAL)
        while rounds.wanted():
            rounds.run_one()
        return rounds.outcome()


def distance(problem: UnlearningProblem, /) -> UnlearnOutcome:
    """Distance in place for ``settings.epochs`` passes over the retain set, without gate or repair.

    A fleet uses it at its sites; its coordinator merges, repairs and gates.

    Raises
    ------
    ValueError
        If a set is empty.
    """
    session = Session(problem)
    batches = list(problem.retain.batches(problem.settings.batch_size, session.generator))
    _distance(session, session.optimizer(), math.ceil(problem.settings.epochs * len(batches)))
    return session.outcome()


def unlearn_at_site(problem: UnlearningProblem, /) -> UnlearnOutcome:
    """Do a site's part of a round of DLFD: train towards targets, or distance if there are none.

    Training takes ``settings.epochs`` passes over the retain set, with half a batch of forget images in each step and a
    rate that falls to 0. Batch-norm statistics change as much as those of the site's own retain images
    (:func:`~dlfd_fleet.unlearning.training.moved_statistics`), because they also describe images of other sites.

    Raises
    ------
    ValueError
        If a set is empty.
    """
    session = Session(problem)
    if not session.has_targets:
        return distance(problem)
    with moved_statistics(session.model, session.retain_sample()):
        session.fine_tune(session.optimizer())
    return session.outcome()


def distancing_noise(
    model: FeatureClassifier,
    images: Tensor,
    labels: Tensor,
    forget_features: Tensor,
    settings: UnlearningSettings,
    retain_weight: float,
) -> Tensor:
    """Return noise ``(N, 3, S, S)`` that distances the features of images from those of the forget set.

    It takes ``settings.steps`` sign-gradient steps that increase (arXiv 2409.14747, section 3)

        forget_weight * OT(phi(x + delta), phi(x_f)) - retain_weight * CE(f(x + delta), y)

    inside the L-infinity ball, with ``x + delta`` in [0, 1]. No gradient of the weights is computed.

    Parameters
    ----------
    images, labels
        Retain images ``(N, 3, S, S)`` in [0, 1], and their classes ``(N,)`` or labels ``(N, L)``.
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
        objective = settings.forget_weight * distance - retain_weight * classification_loss(logits, labels)
        (gradient,) = torch.autograd.grad(objective, noise)
        noise = noise.detach() + settings.step_size * gradient.sign()
        noise = noise.clamp_(-settings.ball, settings.ball)
        noise = (images + noise).clamp_(0.0, 1.0) - images
    return noise


def _distance(session: Session, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Train for some batches on retain images with distancing noise."""
    retain, forget = session.cycle(session.retain), session.cycle(session.forget)
    settings = session.settings
    for step in range(steps):
        images, labels = next(retain)
        if session.augment is not None:
            images = session.augment(images, session.generator)
        others, _ = next(forget)
        first, last = settings.retain_weight_start, settings.retain_weight_end
        moved = images + _noise(session, images, labels, others, first + (last - first) * step / max(1, steps - 1))
        session.model.train()
        session.step(optimizer, session.loss(session.logits(moved), labels), len(moved))


def _noise(session: Session, images: Tensor, labels: Tensor, others: Tensor, retain_weight: float) -> Tensor:
    """Compute the noise with frozen weights and unchanged batch-norm statistics."""
    model, steps = session.model.eval(), session.settings.steps
    with frozen(model):
        with torch.no_grad():
            forget_features = model.features(others)
        noise = distancing_noise(model, images, labels, forget_features, session.settings, retain_weight)
    session.forward_images += len(others) + steps * len(images)
    session.backward_images += steps * len(images)
    session.noise_images += steps * len(images)
    return noise


@dataclass
class _Rounds:
    """The dynamic strategy: run rounds until the model has forgotten and is useful, and keep the best."""

    session: Session
    monitor: Monitor
    best_weights: IO[bytes]
    trace: list[TraceEntry] = field(default_factory=list)
    strength: float = 1.0
    stood_still: bool = False
    best: int = 0
    best_sizes: list[int] = field(default_factory=list)
    longest_round: float = 0.0

    @property
    def latest(self) -> Reading:
        return self.trace[-1].reading

    @property
    def bound(self) -> UtilityBound:
        original = self.trace[0].reading
        return UtilityBound.under(original, self.session.settings.max_utility_drop, by_chance=True)

    def remembered(self) -> bool:
        settings = self.session.settings
        return self.latest.remembered(settings.gate, settings.reference_gate)

    def wanted(self) -> bool:
        """Tell whether another whole round can help and fits into the limits."""
        settings = self.session.settings
        done = len(self.trace) - 1
        if done >= settings.max_rounds:
            return False
        if settings.max_seconds is not None and self.session.seconds() + self.longest_round > settings.max_seconds:
            return False
        # Whatever a gate over few people reads of the original, nobody is forgotten without a round of distancing.
        return done == 0 or self.remembered() or self.bound.shortfall(self.latest) > 0.0

    def run_one(self) -> None:
        """Run one round: distance while the forget set is remembered, repair, and read.

        With targets, repair alone forgets; distancing is used only after a round without progress.
        """
        session, started = self.session, self.session.seconds()
        phase = DISTANCING if len(self.trace) == 1 or self.remembered() else REPAIR
        if session.has_targets and not self.stood_still:
            phase = TARGETS
        self._train(phase)
        self.note_reading(phase)
        before, after = (entry.reading.beyond(0.0) for entry in self.trace[-2:])
        self.stood_still = after > _STOOD_STILL * before
        if phase == DISTANCING and self.stood_still:
            self.strength *= session.settings.strengthen
        self.longest_round = max(self.longest_round, session.seconds() - started)

    def _train(self, phase: str) -> None:
        optimizer = self.session.optimizer()
        if phase == DISTANCING:
            optimizer.param_groups[0]["lr"] *= self.strength
            _distance(self.session, optimizer, self.session.settings.distancing_steps)
        self._repair(optimizer)

    def _repair(self, optimizer: torch.optim.Optimizer) -> None:
        """Train on clean retain images; the rate falls to 0 along half a cosine."""
        session, settings = self.session, self.session.settings
        retain, steps = session.cycle(session.retain), session.planned_steps(session.retain, settings.repair_epochs)
        session.model.train()
        for step in range(steps):
            rate = settings.repair_learning_rate * 0.5 * (1.0 + math.cos(math.pi * step / steps))
            optimizer.param_groups[0]["lr"] = rate
            images, labels = next(retain)
            if session.augment is not None:
                images = session.augment(images, session.generator)
            session.train_on(optimizer, images, labels)

    def note_reading(self, phase: str) -> None:
        """Measure the model, and keep its weights if it is the best so far."""
        session = self.session
        if self.trace:
            session.take_statistics()
        entry = TraceEntry(session.steps, phase, session.read(self.monitor))
        self.trace.append(entry)
        latest = len(self.trace) - 1
        if latest == 0 or self._rank(latest) > self._rank(self.best):
            self.best = latest
            self._keep()

    def _keep(self) -> None:
        """Write the weights to a file; in memory they would take a fifth of a training step.

        The file has no name, so a killed process leaves no model that remembers somebody. Tensors are written one by
        one to save memory.
        """
        self.best_weights.seek(0)
        self.best_sizes.clear()
        try:
            for name, value in self.session.model.state_dict().items():
                self.best_sizes.append(self.best_weights.write(save({name: value.contiguous()})))
            self.best_weights.flush()
        except OSError as error:
            raise ModelFileError(
                f"Cannot write weights to {tempfile.gettempdir()}: {error.strerror}; make room, or set TMPDIR."
            ) from error

    def _rank(self, number: int) -> tuple[bool, float, float]:
        """Rank a reading. The original always counts as useless, because it remembers whatever the gate measures."""
        reading = self.trace[number].reading
        if number == 0:
            return (False, 0.0, reading.usefulness if reading.utility is None else reading.utility)
        settings = self.session.settings
        return checkpoint_rank(reading, self.bound, settings.gate, settings.reference_gate)

    def outcome(self) -> UnlearnOutcome:
        """Restore the best checkpoint and return the outcome."""
        chosen = self.trace[self.best]
        if self.best != len(self.trace) - 1:
            self.best_weights.seek(0)
            parts = [load(self.best_weights.read(size)) for size in self.best_sizes]
            self.session.model.load_state_dict({name: value for part in parts for name, value in part.items()})
        return self.session.outcome(tuple(self.trace), chosen.step, self._reasons(chosen.reading))

    def _reasons(self, reading: Reading) -> tuple[str, ...]:
        """Return why the chosen checkpoint is no success; empty if it is one."""
        reasons = []
        if len(self.trace) == 1:
            reasons.append("the time was up before the first round")
        elif self.best == 0:
            reasons.append(f"no round was useful enough{self._closest()}, so the original is returned")
        settings = self.session.settings
        if reading.remembered(settings.gate, settings.reference_gate):
            reasons.append(
                f"the gate still tells forgotten from validation people: AUC {reading.attack_auc:.3f}"
                if reading.shift is None
                else f"of what the model knew {reading.shift.left:.0%} is left, by models that never saw them"
            )
        lost = self.trace[0].reading.retain_accuracy - reading.retain_accuracy
        if lost > settings.max_utility_drop:
            reasons.append(f"accuracy on retained people fell by {lost:.3f}, above {settings.max_utility_drop:.3f}")
        return (*reasons, *collapse(reading, self.session.problem.validation))

    def _closest(self) -> str:
        """Return a sentence that says what the most useful round lacked."""
        bound = self.bound
        reading = min((entry.reading for entry in self.trace[1:]), key=bound.shortfall)
        least, lost = bound.least_utility(reading), bound.retain_accuracy - reading.retain_accuracy
        if least is not None and reading.utility is not None and least - reading.utility >= lost:
            return f" (validation utility {reading.utility:.3f}, under {least:.3f})"
        return f" (accuracy on retained people {reading.retain_accuracy:.3f}, under {bound.retain_accuracy:.3f})"
