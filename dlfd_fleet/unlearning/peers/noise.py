"""UNSIR: damage with noise that maximises the error, then repair."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlfd_fleet.unlearning.session import Peer, Session


@dataclass(frozen=True)
class Unsir(Peer):
    """Learn error-maximising noise, impair with it, repair on the retain set (Tarun et al., arXiv 2111.08947).

    The paper forgets classes, and learns a noise matrix for each. Here people are forgotten and every class stays, so
    the noise is learned around the forget images, one matrix an image, to maximise the loss of its label; impairing
    trains on it under that label, together with retained images, as in the paper.

    Attributes
    ----------
    noise_steps, noise_rate
        Steps that learn the noise, and their size (pixel range).
    penalty
        Weight of the mean square of the noise.
    impairing_rate
        Learning rate of the impairing epoch; the repair has the settings' own.
    """

    noise_steps: int = 8
    noise_rate: float = 0.05
    penalty: float = 0.1
    impairing_rate: float = 0.02

    def unlearn(self, session: Session) -> None:
        """Impair for one pass over the forget set, then repair for ``settings.epochs`` epochs."""
        optimizer, retain = session.optimizer(rate=self.impairing_rate), session.cycle(session.retain)
        for images, labels in session.batches(session.forget):
            noise = self._noise(session, images, labels)
            kept, kept_labels = next(retain)
            batch = torch.cat([noise, kept])
            session.step(optimizer, session.loss(session.logits(batch), torch.cat([labels, kept_labels])), len(batch))
        session.fine_tune(session.optimizer())

    def _noise(self, session: Session, images: Tensor, labels: Tensor) -> Tensor:
        """Return pixels ``(N, 3, S, S)`` in [0, 1] whose labels the model gets as wrong as it can."""
        noise = torch.rand(images.shape, generator=session.generator).to(images.device)
        session.model.eval().requires_grad_(False)
        for _ in range(self.noise_steps):
            noise.requires_grad_(True)
            objective = session.loss(session.logits(noise), labels) - self.penalty * noise.square().mean()
            (gradient,) = torch.autograd.grad(objective, noise)
            noise = (noise.detach() + self.noise_rate * gradient.sign()).clamp_(0.0, 1.0)
            session.backward_images += len(images)
            session.noise_images += len(images)
        session.model.train().requires_grad_(True)
        return noise
