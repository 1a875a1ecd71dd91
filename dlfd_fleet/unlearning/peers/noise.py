"""UNSIR: train on noise that maximises the error, then repair."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from dlfd_fleet.models import FeatureClassifier
from dlfd_fleet.unlearning.contract import LabelledImages
from dlfd_fleet.unlearning.session import Peer, Session
from dlfd_fleet.unlearning.training import frozen


@dataclass(frozen=True)
class Unsir(Peer):
    """UNSIR: impair with error-maximising noise, then repair on the retain set (Tarun et al., arXiv 2111.08947).

    The noise N of a class minimises ``-L(f(N), class) + penalty * ||N||`` (the paper's equation for error-maximising
    noise); impairing trains the model on copies of it, labelled with that class, together with as many retained images.

    The paper forgets whole classes and learns noise for each of them. Here people are forgotten, and classes are not
    people. So noise is learned for every class in the forget set, and it also damages classes that retained people are
    in.

    Attributes
    ----------
    matrices
        Noise matrices for each class: normalised inputs of the network, not limited to the pixel range.
    noise_steps, noise_rate
        Steps of Adam that learn them, and its learning rate.
    penalty
        Weight of their L2 norm.
    impairing_share
        Share of the retain set that the impairing epoch sees.
    impairing_rate
        Learning rate of the impairing epoch; the repair has that of the settings.
    """

    one_class_only: ClassVar[bool] = True
    matrices: int = 4
    noise_steps: int = 40
    noise_rate: float = 0.1
    penalty: float = 0.1
    impairing_share: float = 0.3
    impairing_rate: float = 0.05

    def unlearn(self, session: Session) -> None:
        """Impair for one epoch, then repair for ``settings.epochs`` epochs."""
        noise = self._noise(session)
        optimizer = session.optimizer(rate=self.impairing_rate)
        subset = session.sample(session.retain, math.ceil(self.impairing_share * len(session.retain)))
        session.model.train()
        for kept, kept_labels in session.batches(subset):
            errors, error_labels = noise.batch(torch.arange(len(kept)) % len(noise), session.device)
            images, labels = torch.cat([errors, kept]), torch.cat([error_labels, kept_labels])
            session.step(optimizer, session.loss(session.logits(images), labels), len(images))
        session.fine_tune(session.optimizer())

    def _noise(self, session: Session) -> LabelledImages:
        """Learn noise images ``(classes * matrices, 3, S, S)`` with frozen weights."""
        labels = torch.unique(session.forget.labels).repeat_interleave(self.matrices).to(session.device)
        shape = (len(labels), *session.forget.images.shape[1:])
        noise = torch.randn(shape, generator=session.generator).to(session.device).requires_grad_(True)
        optimizer = torch.optim.Adam([noise], self.noise_rate)
        mean, std = normalisation(session.model)
        session.model.eval()
        with frozen(session.model):
            for _ in range(self.noise_steps):
                if session.expired():
                    break
                error = functional.cross_entropy(session.logits(mean + std * noise), labels)
                objective = self.penalty * noise.flatten(1).norm(dim=1).mean() - error
                (noise.grad,) = torch.autograd.grad(objective, noise)
                optimizer.step()
                session.backward_images += len(labels)
                session.noise_images += len(labels)
        return LabelledImages((mean + std * noise).detach(), labels)


def normalisation(model: FeatureClassifier) -> tuple[Tensor, Tensor]:
    """Return the mean and standard deviation with which a network normalises images, in a shape that broadcasts.

    Default: 0.5 and 0.25, as in :class:`dlfd_fleet.models.ModelCard`.
    """
    device = next(model.parameters()).device
    mean, std = getattr(model, "mean", None), getattr(model, "std", None)
    if isinstance(mean, Tensor) and isinstance(std, Tensor):
        return mean, std
    return torch.tensor(0.5, device=device), torch.tensor(0.25, device=device)
