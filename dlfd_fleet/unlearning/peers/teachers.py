"""Peers in which the model learns from teachers: what to keep from one, what to lose from another."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from dlfd_fleet.unlearning.peers.fine_tuning import reset
from dlfd_fleet.unlearning.session import Peer, Session


@dataclass(frozen=True)
class BadTeacher(Peer):
    """Learn the retain set from the original and the forget set from a network that knows nothing.

    Chundawat et al., arXiv 2205.08096, section 4: the student minimises the KL divergence from the competent teacher on
    retained images and from the incompetent one, of fresh weights, on forgotten ones.

    Attributes
    ----------
    temperature
        Divides all logits.
    """

    temperature: float = 1.0

    def unlearn(self, session: Session) -> None:
        """Train for ``settings.epochs`` epochs over the retain set, a forget batch beside each of its batches."""
        competent = teacher_of(session.model)
        incompetent = copy.deepcopy(competent)
        for module in incompetent.modules():
            reset(module)
        optimizer, forget = session.optimizer(), session.cycle(session.forget)
        for images, _ in session.epochs(session.retain, augmented=True):
            others, _ = next(forget)
            with torch.no_grad():
                taught = torch.cat([competent(images), incompetent(others)])
            session.forward_images += len(taught)
            logits = session.logits(torch.cat([images, others]))
            session.step(optimizer, divergence(logits, taught, self.temperature), len(logits))


@dataclass(frozen=True)
class Scrub(Peer):
    """SCRUB: disobey the original on the forget set, obey it on the retain set (Kurmanji et al., arXiv 2302.09880).

    Epochs of steps that maximise the divergence on forgotten images alternate with epochs that minimise
    ``alpha * KL + gamma * CE`` on retained ones; the last epochs only minimise.

    Attributes
    ----------
    alpha, gamma
        Weights of the divergence and of the classification loss on the retain set.
    forgetting_epochs
        Epochs that begin with maximising.
    temperature
        Divides all logits.
    """

    alpha: float = 0.1
    gamma: float = 0.9
    forgetting_epochs: int = 2
    temperature: float = 4.0

    def unlearn(self, session: Session) -> None:
        """Alternate for ``settings.epochs`` epochs."""
        teacher = teacher_of(session.model)
        optimizer = session.optimizer()
        for epoch in range(round(session.settings.epochs)):
            if epoch < self.forgetting_epochs:
                for images, _ in session.batches(session.forget):
                    session.step(optimizer, -self._from_teacher(session, teacher, images)[0], len(images))
            for images, labels in session.batches(session.retain, augmented=True):
                distance, logits = self._from_teacher(session, teacher, images)
                loss = self.alpha * distance + self.gamma * session.loss(logits, labels)
                session.step(optimizer, loss, len(images))

    def _from_teacher(self, session: Session, teacher: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            taught = teacher(images)
        session.forward_images += len(images)
        logits = session.logits(images)
        return divergence(logits, taught, self.temperature), logits


def teacher_of(model: nn.Module) -> nn.Module:
    """Return a frozen copy in eval mode."""
    return copy.deepcopy(model).eval().requires_grad_(False)


def divergence(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """Return ``T^2 KL(teacher || student)`` of logits ``(N, C)`` at a temperature, mean over images (Hinton 2015)."""
    student = functional.log_softmax(logits / temperature, dim=1)
    target = functional.log_softmax(taught / temperature, dim=1)
    return temperature**2 * functional.kl_div(student, target, reduction="batchmean", log_target=True)
