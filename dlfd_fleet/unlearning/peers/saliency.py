"""Peers that look for the weights in which the forget set lives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlfd_fleet.unlearning.contract import LabelledImages
from dlfd_fleet.unlearning.peers.gradient import mean_gradients, quantile
from dlfd_fleet.unlearning.session import Peer, Session


@dataclass(frozen=True)
class SalUn(Peer):
    """Train forget images on random wrong labels, in salient weights only (Fan et al., arXiv 2310.12508, eq. 3 and 5).

    Attributes
    ----------
    share
        Share of the weights, those of the largest gradient of the forget set, that may change.
    """

    share: float = 0.5

    def unlearn(self, session: Session) -> None:
        """Train for ``settings.epochs`` epochs over the retain set, a relabelled forget batch beside each batch."""
        gradients = {one: gradient.abs() for one, gradient in mean_gradients(session, session.forget).items()}
        threshold = quantile(list(gradients.values()), 1.0 - self.share)
        masks = {one: gradient > threshold for one, gradient in gradients.items()}
        # Weight decay and momentum would move the others, so the mask is on the weights and not on the gradients.
        before = {one: one.detach().clone() for one in masks}
        optimizer, forget = session.optimizer(), session.cycle(session.forget)
        for images, labels in session.epochs(session.retain, augmented=True):
            others, other_labels = next(forget)
            logits = session.logits(torch.cat([images, others]))
            wrong = self._wrong(session, other_labels, logits.shape[1])
            loss = session.loss(logits[: len(images)], labels) + session.loss(logits[len(images) :], wrong)
            session.step(optimizer, loss, len(logits))
            with torch.no_grad():
                for parameter, mask in masks.items():
                    parameter.copy_(torch.where(mask, parameter, before[parameter]))

    def _wrong(self, session: Session, labels: Tensor, classes: int) -> Tensor:
        """Return other classes ``(N,)`` than the true ones, at random."""
        shift = torch.randint(1, classes, labels.shape, generator=session.generator).to(labels.device)
        return (labels + shift) % classes


@dataclass(frozen=True)
class SelectiveSynapticDampening(Peer):
    """SSD: dampen weights that matter more to the forget set than to all (Foster et al., arXiv 2308.07707, eq. 4).

    Importance is the diagonal of the Fisher information, the mean square of the gradient of an image's loss. Nothing is
    trained.

    Attributes
    ----------
    selection
        Alpha: how many times more important to the forget set a weight must be.
    dampening
        Lambda: scale of what is left of it, at most all.
    images
        Images of the training set that its importance is taken from, at most.
    """

    selection: float = 10.0
    dampening: float = 1.0
    images: int = 64

    def unlearn(self, session: Session) -> None:
        """Dampen once."""
        forget = self._importance(session, session.forget)
        everybody = LabelledImages(
            torch.cat([session.retain.images, session.forget.images]),
            torch.cat([session.retain.labels, session.forget.labels]),
        )
        train = self._importance(session, everybody)
        with torch.no_grad():
            for parameter in session.model.parameters():
                chosen = forget[parameter] > self.selection * train[parameter]
                left = (self.dampening * train[parameter] / forget[parameter].clamp(min=1e-30)).clamp(max=1.0)
                parameter.mul_(torch.where(chosen, left, 1.0))

    def _importance(self, session: Session, data: LabelledImages) -> dict[Tensor, Tensor]:
        session.model.eval()
        parameters = list(session.model.parameters())
        sums: dict[Tensor, Tensor] = {parameter: torch.zeros_like(parameter) for parameter in parameters}
        rows = torch.randperm(len(data), generator=session.generator)[: self.images]
        for row in torch.split(rows, 1):
            if session.expired():
                break
            images, labels = data.batch(row, session.device)
            loss = session.loss(session.logits(images), labels)
            session.backward_images += 1
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                sums[parameter] += gradient.square() / len(rows)
        session.steps += 1
        return sums
