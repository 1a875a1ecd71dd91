"""Peers that find the weights on which the forget set depends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dlfd_fleet.data.inputs import joined
from dlfd_fleet.unlearning.contract import LabelledImages
from dlfd_fleet.unlearning.peers.gradient import mean_gradients, scale_gradients
from dlfd_fleet.unlearning.session import Peer, Session


@dataclass(frozen=True)
class SalUn(Peer):
    """SalUn: train forget images on random wrong labels, in salient weights only (Fan et al., arXiv 2310.12508).

    The mask selects the weights with the largest ``|grad L(forget)|`` in the original (section 4, with the median as
    threshold). The training set is the forget set, relabelled once, and the retain set, shuffled. Every image counts
    the same, which is one choice of the paper's weight between the sets. There is no weight decay, because it would
    change weights outside the mask.

    Attributes
    ----------
    share
        Share of all trained weights that may change.
    """

    one_class_only: ClassVar[bool] = True
    share: float = 0.5

    def unlearn(self, session: Session) -> None:
        """Train for ``settings.epochs`` epochs over both sets."""
        optimizer = session.optimizer()
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.0
        scale_gradients(optimizer, self._mask(session))
        for images, labels in session.epochs(_relabelled(session), augmented=True):
            session.step(optimizer, session.loss(session.logits(images), labels), len(images))

    def _mask(self, session: Session) -> dict[Tensor, Tensor]:
        """Return 1 for the salient weights of each parameter and 0 for the others."""
        gradients = mean_gradients(session, session.forget, session.trained)
        sizes = {parameter: gradient.abs() for parameter, gradient in gradients.items()}
        flat = torch.cat([size.flatten() for size in sizes.values()])
        # Not torch.quantile, which stops at 2**24 elements.
        threshold = flat.kthvalue(max(1, round((1.0 - self.share) * len(flat)))).values
        return {parameter: (size > threshold).float() for parameter, size in sizes.items()}


@dataclass(frozen=True)
class SelectiveSynapticDampening(Peer):
    """SSD: dampen the weights that matter more to the forget set than to the training set (Foster et al., AAAI 2024).

    arXiv 2308.07707, section 4: where the importance ``I(forget) > alpha * I(train)``, a weight is multiplied by
    ``min(lambda * I(train) / I(forget), 1)``. Importance is the diagonal of the Fisher information, the mean square of
    the gradient of an image's loss. Nothing is trained.

    The forget set is part of the training set, so ``I(forget) <= I(train) * |train| / |forget|``. If a fifth of the
    people is forgotten, an alpha of 5 or more selects nothing. The paper's 10 is for smaller shares.

    Attributes
    ----------
    selection
        Alpha.
    dampening
        Lambda.
    images
        Most images of each set for the importance, one at a time; the paper takes all.
    """

    selection: float = 2.0
    dampening: float = 1.0
    images: int = 128

    def unlearn(self, session: Session) -> None:
        """Dampen once."""
        forget = self._importance(session, session.forget)
        retain = self._importance(session, session.retain)
        if session.expired():
            return  # importances of half a set would dampen the wrong weights
        share = len(session.forget) / (len(session.forget) + len(session.retain))
        with torch.no_grad():
            for parameter in session.trained:
                own = forget[parameter]
                everybody = share * own + (1.0 - share) * retain[parameter]
                left = (self.dampening * everybody / own).clamp_(max=1.0)
                parameter.mul_(torch.where(own > self.selection * everybody, left, 1.0))
        session.steps += 1

    def _importance(self, session: Session, data: LabelledImages) -> dict[Tensor, Tensor]:
        session.model.eval()
        parameters: list[Tensor] = list(session.trained)
        sums = {parameter: torch.zeros_like(parameter) for parameter in parameters}
        sample = session.sample(data, self.images)
        for row in torch.split(torch.arange(len(sample)), 1):
            if session.expired():
                break
            images, labels = sample.batch(row, session.device)
            loss = session.loss(session.logits(images), labels)
            session.backward_images += 1
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                sums[parameter] += gradient.square() / len(sample)
        return sums


def _relabelled(session: Session) -> LabelledImages:
    """Return the retain set, and the forget set with random wrong labels."""
    retain, forget = session.retain, session.forget
    session.model.eval()
    with torch.no_grad():
        classes = session.logits(forget.batch(torch.arange(1), session.device)[0]).shape[1]
    session.model.train()
    shift = torch.randint(1, classes, forget.labels.shape, generator=session.generator)
    wrong = (forget.labels + shift.to(forget.labels.device)) % classes
    return LabelledImages(joined([retain.images, forget.images]), torch.cat([retain.labels, wrong]))
