"""Peers in which the model learns from teachers."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from dlfd_fleet.data.inputs import joined
from dlfd_fleet.models import FeatureClassifier
from dlfd_fleet.unlearning.contract import LabelledImages
from dlfd_fleet.unlearning.peers.fine_tuning import reset
from dlfd_fleet.unlearning.session import Peer, Session


@dataclass(frozen=True)
class BadTeacher(Peer):
    """Learn retained images from the original, and forgotten ones from an untrained network.

    Chundawat et al., arXiv 2205.08096, section 4: with ``u = 1`` for a forgotten image, the student minimises
    ``(1 - u) KL(competent || student) + u KL(incompetent || student)`` over the forget set and a part of the retain
    set, shuffled. The incompetent teacher has the same architecture with fresh weights, except in frozen layers.

    Attributes
    ----------
    retain_share
        Share of the retain set that is used; 0.3 in the paper.
    temperature
        Divides all logits; 1 in the paper.
    """

    one_class_only: ClassVar[bool] = True
    retain_share: float = 0.3
    temperature: float = 1.0

    def unlearn(self, session: Session) -> None:
        """Train for ``settings.epochs`` epochs over both sets."""
        competent = _teacher(session.model)
        incompetent = copy.deepcopy(competent)
        reset(incompetent, incompetent.modules())
        optimizer = session.optimizer()
        for images, flags in session.epochs(self._flagged(session), augmented=True):
            forgotten = flags == 1
            with torch.no_grad():
                taught = competent(images)
                if forgotten.any():
                    taught[forgotten] = incompetent(images[forgotten])
            session.forward_images += len(images) + int(forgotten.sum())
            loss = divergence(session.logits(images), taught, self.temperature)
            session.step(optimizer, loss, len(images))

    def _flagged(self, session: Session) -> LabelledImages:
        """Return retained and forgotten images; the label is 1 for forgotten ones and 0 for others."""
        kept = session.sample(session.retain, math.ceil(self.retain_share * len(session.retain)))
        flags = [torch.zeros_like(kept.labels), torch.ones_like(session.forget.labels)]
        return LabelledImages(joined([kept.images, session.forget.images]), torch.cat(flags))


@dataclass(frozen=True)
class Scrub(Peer):
    """SCRUB: disobey the original on the forget set, obey it on the retain set (Kurmanji et al., arXiv 2302.09880).

    ``d`` is the KL divergence of the student from the original. The first epochs begin with steps that maximise ``d``
    on the forget set. Every epoch then minimises ``alpha * d + gamma * cross-entropy`` on the retain set (algorithm 1).
    The rewinding of SCRUB+R is left out, because the gate chooses checkpoints.

    Attributes
    ----------
    alpha, gamma
        Weights of the divergence and of the classification loss on the retain set.
    msteps
        Epochs that begin with maximising.
    temperature
        Divides all logits.
    """

    one_class_only: ClassVar[bool] = True
    alpha: float = 0.5
    gamma: float = 1.0
    msteps: int = 2
    temperature: float = 4.0

    def unlearn(self, session: Session) -> None:
        """Alternate for ``settings.epochs`` epochs, rounded to a whole number."""
        teacher, optimizer = _teacher(session.model), session.optimizer()
        for epoch in range(max(1, round(session.settings.epochs))):
            if session.expired():
                break
            if epoch < self.msteps:
                for images, _ in session.batches(session.forget):
                    distance, _ = self._distance(session, teacher, images)
                    session.step(optimizer, -distance, len(images))
            for images, labels in session.batches(session.retain, augmented=True):
                distance, logits = self._distance(session, teacher, images)
                loss = self.alpha * distance + self.gamma * session.loss(logits, labels)
                session.step(optimizer, loss, len(images))

    def _distance(self, session: Session, teacher: FeatureClassifier, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return how far the student is from the teacher, and the student's logits ``(N, C)``."""
        with torch.no_grad():
            taught = teacher(images)
        session.forward_images += len(images)
        logits = session.logits(images)
        return divergence(logits, taught, self.temperature), logits


def divergence(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """Return ``T^2 KL(teacher || student)`` of logits ``(N, C)`` at temperature T, the mean over images.

    The factor makes gradients independent of the temperature (Hinton et al., arXiv 1503.02531).
    """
    student = functional.log_softmax(logits / temperature, dim=1)
    teacher = functional.log_softmax(taught / temperature, dim=1)
    return temperature**2 * functional.kl_div(student, teacher, reduction="batchmean", log_target=True)


def _teacher(model: FeatureClassifier) -> FeatureClassifier:
    """Return a frozen copy in eval mode."""
    return copy.deepcopy(model).eval().requires_grad_(False)
