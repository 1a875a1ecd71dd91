"""Peers that follow the gradient of the forget set upwards."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlfd_fleet.unlearning.contract import LabelledImages
from dlfd_fleet.unlearning.session import Peer, Session


@dataclass(frozen=True)
class NegGrad(Peer):
    """Ascend the loss of the forget set (Golatkar et al., arXiv 1911.04933, section 5)."""

    def unlearn(self, session: Session) -> None:
        """Ascend for ``settings.epochs`` epochs over the forget set."""
        optimizer = session.optimizer()
        for images, labels in session.epochs(session.forget):
            session.step(optimizer, -session.loss(session.logits(images), labels), len(images))


@dataclass(frozen=True)
class NegGradPlus(Peer):
    """Descend on the retain set while ascending on the forget set (Kurmanji et al., arXiv 2302.09880, equation 2).

    ``alpha * L(retain) - (1 - alpha) * L(forget)``, one batch of each a step.
    """

    alpha: float = 0.95

    def unlearn(self, session: Session) -> None:
        """Train for ``settings.epochs`` epochs over the retain set."""
        optimizer, forget = session.optimizer(), session.cycle(session.forget)
        for images, labels in session.epochs(session.retain, augmented=True):
            others, other_labels = next(forget)
            logits = session.logits(torch.cat([images, others]))
            kept = session.loss(logits[: len(images)], labels)
            lost = session.loss(logits[len(images) :], other_labels)
            session.step(optimizer, self.alpha * kept - (1.0 - self.alpha) * lost, len(logits))


@dataclass(frozen=True)
class MaskedSmallGradients(Peer):
    """MSG: soften the weights on which forget and retain set agree, then fine-tune (arXiv 2410.01276, appendix).

    Where the difference between the gradients of the retain and of the forget set is small, a weight serves both, and
    what it knows of the forget set cannot be told from the rest: such weights are scaled down and learn faster, the
    others learn slower. Taken from the published description of the method, not from anybody's code.

    Attributes
    ----------
    share
        Share of the weights, those of the smallest gradient differences, that are softened.
    scale
        What they are multiplied by.
    slow
        Share of the learning rate of the other weights.
    """

    share: float = 0.3
    scale: float = 0.5
    slow: float = 0.1

    def unlearn(self, session: Session) -> None:
        """Soften, then fine-tune for ``settings.epochs`` epochs."""
        kept = mean_gradients(session, session.retain)
        lost = mean_gradients(session, session.forget)
        parameters = [one for one in session.model.parameters() if one.ndim > 1]
        difference = [(kept[one] - lost[one]).abs() for one in parameters]
        threshold = quantile(difference, self.share)
        masks, optimizer = {}, session.optimizer()
        with torch.no_grad():
            for parameter, distance in zip(parameters, difference, strict=True):
                small = distance <= threshold
                parameter.mul_(torch.where(small, self.scale, 1.0))
                masks[parameter] = torch.where(small, 1.0, self.slow)
        for images, labels in session.epochs(session.retain, augmented=True):
            before = {one: one.detach().clone() for one in masks}
            session.step(optimizer, session.loss(session.logits(images), labels), len(images))
            with torch.no_grad():
                for parameter, mask in masks.items():
                    parameter.lerp_(before[parameter], 1.0 - mask)


def mean_gradients(session: Session, data: LabelledImages) -> dict[Tensor, Tensor]:
    """Return the mean gradient of the loss over a data set by parameter, in eval mode."""
    session.model.eval()
    parameters = list(session.model.parameters())
    sums: dict[Tensor, Tensor] = {parameter: torch.zeros_like(parameter) for parameter in parameters}
    for images, labels in session.batches(data):
        loss = session.loss(session.logits(images), labels) * (len(images) / len(data))
        session.backward_images += len(images)
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            sums[parameter] += gradient
    session.model.train()
    return sums


def quantile(tensors: list[Tensor], share: float) -> Tensor:
    """Return the value that this share of all elements does not exceed; ``torch.quantile`` stops at 2**24 elements."""
    flat = torch.cat([one.flatten() for one in tensors])
    return flat.kthvalue(max(1, min(len(flat), round(share * len(flat))))).values
