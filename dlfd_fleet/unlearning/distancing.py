"""DLFD: Distribution-Level Feature Distancing (Choi & Na, AAAI 2025, arXiv 2409.14747), as the paper describes it.

Retain images are moved, inside a small ball of pixels, to where their features are far from those of the forget set
(optimal transport under the cosine cost) while they are still classified correctly; the model is then trained on the
moved images. It unlearns what the forget images had to themselves, and keeps what the task needs.

Choices that the paper leaves open, and that the released code makes by accident:

- phi is the feature space before the head, not the logits.
- Noise lives in a ball of the pixel range and images stay in [0, 1].
- The noise is found in eval mode (fixed batch-norm statistics, no dropout: the gradient of the deployed function), the
  model is trained in train mode.
- Distancing shakes a model, and whether it has forgotten shows only after more training. So the paper's dynamic
  strategy works in rounds: a few batches of distancing, then plain training whose steps shrink to nothing, then a
  reading. While forgotten people can be told from unseen ones, the next round distances again, harder if the score
  stood still; once they cannot, it only trains. A round that costs too much utility is not undone at once, for the
  next one mostly mends it (nine of eleven when it was measured); the best round's weights are put back at the end.
- Where reference models have answered (:mod:`~dlfd_fleet.unlearning.references`), repair trains towards what models say
  that never saw the forgotten people, with the same steps, and that forgets: distancing only shakes a model where a
  round of it stood still. Measured with and without: docs/experiments.
- The gate reads the forget set, validation people and retained people. Before each reading batch-norm statistics
  are taken anew from clean retain images: running ones lag behind weights that move fast.
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
TARGETS = "towards references"
_STOOD_STILL = 0.8


def dlfd(problem: UnlearningProblem, /) -> UnlearnOutcome:
    """Unlearn the forget set in place, and leave the model at its best checkpoint, in eval mode.

    Parameters
    ----------
    problem
        With validation people, whom the gate needs, or a monitor of one's own; it reads the model after each round.

    Returns
    -------
    UnlearnOutcome
        With ``success`` False, and reasons, if no round was both forgotten by the gate and useful.

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
    """Distance in place for ``settings.epochs`` passes over the retain set, without a gate and without repair.

    For a fleet, whose coordinator merges, repairs and gates.

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
    """Do a site's part of a round of DLFD: train towards what reference models say, or distance where none has.

    Training is for ``settings.epochs`` passes over the retain set, with half a batch of forget images in each step and
    a rate that falls to 0. Batch-norm statistics move as far as those of the site's own retain images do
    (:func:`~dlfd_fleet.unlearning.training.moved_statistics`): the other sites, whose images they are of, too, take no
    part.

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

    ``settings.steps`` sign-gradient steps that ascend (arXiv 2409.14747, section 3)

        forget_weight * OT(phi(x + delta), phi(x_f)) - retain_weight * CE(f(x + delta), y)

    inside the L-infinity ball, with ``x + delta`` in [0, 1]. The model is used as it is: no gradient of its weights is
    computed.

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
    """Train for some batches on retain images that are moved away from forget images."""
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
    """Find the noise with frozen weights: no gradient of theirs is computed, their statistics stay as they are."""
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
    """The dynamic strategy: rounds until forgotten and useful, the best of them kept."""

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
        """Tell whether another round may help and fits into the limits; half a round would leave a shaken model."""
        settings = self.session.settings
        done = len(self.trace) - 1
        if done >= settings.max_rounds:
            return False
        if settings.max_seconds is not None and self.session.seconds() + self.longest_round > settings.max_seconds:
            return False
        # Whatever a gate over few people reads of the original, nobody is forgotten without a round of distancing.
        return done == 0 or self.remembered() or self.bound.shortfall(self.latest) > 0.0

    def run_one(self) -> None:
        """Distance while the forget set is remembered, repair, and read.

        Where reference models say what is aimed at, that alone forgets; distancing helps where it stands still.
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
        """Train on clean retain images, the step falling to 0 along half a cosine."""
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
        """Read the model, and keep its weights if it is the best so far."""
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
        """Write the weights down: in memory they would be a fifth of what a training step takes.

        The file has no name, so that a process that is killed leaves no model behind that remembers somebody. Tensor
        by tensor, for all at once would be in memory again.
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
        """Rank a reading; the original counts as useless: whatever a gate over few people reads of it, it remembers."""
        reading = self.trace[number].reading
        if number == 0:
            return (False, 0.0, reading.usefulness if reading.utility is None else reading.utility)
        settings = self.session.settings
        return checkpoint_rank(reading, self.bound, settings.gate, settings.reference_gate)

    def outcome(self) -> UnlearnOutcome:
        """Put the best checkpoint back and say whether it is a success."""
        chosen = self.trace[self.best]
        if self.best != len(self.trace) - 1:
            self.best_weights.seek(0)
            parts = [load(self.best_weights.read(size)) for size in self.best_sizes]
            self.session.model.load_state_dict({name: value for part in parts for name, value in part.items()})
        return self.session.outcome(tuple(self.trace), chosen.step, self._reasons(chosen.reading))

    def _reasons(self, reading: Reading) -> tuple[str, ...]:
        """Return why the chosen checkpoint is no success, if it is none."""
        reasons = []
        if len(self.trace) == 1:
            reasons.append("the time was up before the first round")
        elif self.best == 0:
            reasons.append(f"no round was useful enough{self._closest()}, so the original is given back")
        settings = self.session.settings
        if reading.remembered(settings.gate, settings.reference_gate):
            reasons.append(
                f"the gate still tells forgotten from validation people: AUC {reading.attack_auc:.3f}"
                if reading.shift is None
                else f"of what the model remembers {reading.shift.left:.0%} is left, by models that never saw them"
            )
        lost = self.trace[0].reading.retain_accuracy - reading.retain_accuracy
        if lost > settings.max_utility_drop:
            reasons.append(f"accuracy on retained people fell by {lost:.3f}, above {settings.max_utility_drop:.3f}")
        return (*reasons, *collapse(reading, self.session.problem.validation))

    def _closest(self) -> str:
        """Return in words what the most useful round was short of."""
        bound = self.bound
        reading = min((entry.reading for entry in self.trace[1:]), key=bound.shortfall)
        least, lost = bound.least_utility(reading), bound.retain_accuracy - reading.retain_accuracy
        if least is not None and reading.utility is not None and least - reading.utility >= lost:
            return f" (validation utility {reading.utility:.3f}, under {least:.3f})"
        return f" (accuracy on retained people {reading.retain_accuracy:.3f}, under {bound.retain_accuracy:.3f})"
