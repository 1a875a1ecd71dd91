"""Peers that are led by gradients: up the loss of the forget set, or to the weights that it shares with the rest."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dlfd_fleet.unlearning.contract import LabelledImages
from dlfd_fleet.unlearning.peers.fine_tuning import reset, weight_layers
from dlfd_fleet.unlearning.session import Peer, Session
from dlfd_fleet.unlearning.training import trained


@dataclass(frozen=True)
class NegGrad(Peer):
    """Ascend the loss of the forget set (Golatkar et al., arXiv 1911.04933, section 6; Graves et al., 2010.10981).

    Nothing bounds the ascent but its length: long ones destroy the model.
    """

    def unlearn(self, session: Session) -> None:
        """Ascend for ``settings.epochs`` epochs over the forget set."""
        optimizer = session.optimizer()
        for images, labels in session.epochs(session.forget):
            session.step(optimizer, -session.loss(session.logits(images), labels), len(images))


@dataclass(frozen=True)
class ProjectedGradientAscent(Peer):
    """Ascend the loss of the forget set inside a ball around the model (after Halimi et al., arXiv 2207.05521).

    The ball is what keeps the ascent from destroying the model; its radius is the paper's, a third of the distance
    (L2, over all weights) to a model of fresh weights. The paper's ball lies around the mean of the other sites' last
    updates, from which it also begins, and it ascends until the loss is large. No server here keeps updates, so ball
    and ascent begin at the model, and the ascent is as long as it is told.

    Attributes
    ----------
    radius
        Of the ball, distances to a fresh model.
    largest_gradient
        L2 norm that gradients are clipped to.
    """

    radius: float = 1.0 / 3.0
    largest_gradient: float = 5.0

    def unlearn(self, session: Session) -> None:
        """Ascend for ``settings.epochs`` epochs over the forget set; each step ends inside the ball."""
        parameters = session.trained
        centre = [parameter.detach().clone() for parameter in parameters]
        fresh = copy.deepcopy(session.model)
        with torch.random.fork_rng():
            torch.manual_seed(session.problem.seed + 1)  # the model itself may be fresh weights of the same seed
            reset(fresh, fresh.modules())
        largest = self.radius * _distance(trained(fresh), centre)
        optimizer = session.optimizer()
        for images, labels in session.epochs(session.forget):
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(-session.loss(session.logits(images), labels))
            nn.utils.clip_grad_norm_(parameters, self.largest_gradient)
            optimizer.step()
            session.count_step(len(images))
            _project(parameters, centre, largest)


def _distance(parameters: Sequence[Tensor], centre: Sequence[Tensor]) -> float:
    squares = [(one.detach() - other).square().sum() for one, other in zip(parameters, centre, strict=True)]
    return float(torch.stack(squares).sum().sqrt())


@torch.no_grad()
def _project(parameters: Sequence[Tensor], centre: Sequence[Tensor], largest: float) -> None:
    """Move parameters that lie outside a ball onto its surface."""
    distance = _distance(parameters, centre)
    if distance > largest:
        for one, other in zip(parameters, centre, strict=True):
            one.copy_(other + (one - other) * (largest / distance))


@dataclass(frozen=True)
class NegGradPlus(Peer):
    """NegGrad+: descend on the retain set while ascending on the forget set (Kurmanji et al., arXiv 2302.09880).

    Minimises ``alpha * L(retain) - (1 - alpha) * L(forget)``, a batch of each a step. Both go through the network
    together: batch statistics of two forgotten images alone would be noise.

    Attributes
    ----------
    alpha
        Weight of the retain set, from 0 (NegGrad) to 1 (fine-tuning).
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
    """MSG: reset the convolution weights of the smallest gradients, then fine-tune, holding the others back.

    A finalist of the NeurIPS 2023 unlearning challenge, as benchmarked by Cadet et al. (arXiv 2410.01276). Gradients
    are of descent on the retain set plus ascent on the forget set, ``g = grad L(retain) - grad L(forget)``; in each
    convolution the weights of the smallest ``|g|`` get fresh values (He initialisation), for what they know of the two
    sets cannot be told apart, and in the fine-tuning on the retain set the other weights learn at a tenth of the rate.

    The paper only sketches the method; that masks are per layer, that ``g`` uses as many retain images as there are
    forget images, the shares and the initialisation were read off its authors' benchmark code. Ours differ in two
    points: the learning rate falls, where theirs rises first, and a network without convolutions has its
    linear maps masked; so has one whose convolutions are frozen.

    Attributes
    ----------
    share
        Share of each layer's weights that is reset.
    slow
        Factor on the gradients of the others.
    """

    share: float = 0.3
    slow: float = 0.1

    def unlearn(self, session: Session) -> None:
        """Reset, then fine-tune for ``settings.epochs`` epochs."""
        gradients = self._gradients(session)
        if session.expired():
            return  # gradients of half a set would choose the wrong weights
        factors: dict[Tensor, Tensor] = {}
        for weight, gradient in gradients.items():
            small = _smallest(gradient.abs(), self.share)
            fresh = nn.init.kaiming_normal_(torch.empty_like(weight), mode="fan_out", nonlinearity="relu")
            with torch.no_grad():
                weight.copy_(torch.where(small, fresh, weight))
            factors[weight] = torch.where(small, 1.0, self.slow)
        optimizer = session.optimizer()
        scale_gradients(optimizer, factors)
        session.fine_tune(optimizer)

    def _gradients(self, session: Session) -> dict[Tensor, Tensor]:
        layers = weight_layers(session.model)
        weights = [layer.weight for layer in layers if isinstance(layer, nn.Conv2d)] or [one.weight for one in layers]
        lost = mean_gradients(session, session.forget, weights)
        kept = mean_gradients(session, session.sample(session.retain, len(session.forget)), weights)
        return {weight: kept[weight] - lost[weight] for weight in weights}


def mean_gradients(session: Session, data: LabelledImages, parameters: Sequence[Tensor]) -> dict[Tensor, Tensor]:
    """Return the mean gradient of the loss over a data set by parameter, in eval mode; the model is left in train mode.

    The gradients are not those of all images if the time is used up on the way.
    """
    session.model.eval()
    sums = {parameter: torch.zeros_like(parameter) for parameter in parameters}
    for images, labels in session.batches(data):
        loss = session.loss(session.logits(images), labels) * (len(images) / len(data))
        session.backward_images += len(images)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            sums[parameter] += gradient
    session.model.train()
    return sums


def scale_gradients(optimizer: torch.optim.Optimizer, factors: Mapping[Tensor, Tensor]) -> None:
    """Have an optimizer multiply the gradient of each parameter by a tensor of its shape before every step."""

    def scale(*_: object) -> None:
        for parameter, factor in factors.items():
            if parameter.grad is not None:
                parameter.grad.mul_(factor)

    optimizer.register_step_pre_hook(scale)


def _smallest(values: Tensor, share: float) -> Tensor:
    """Return a mask of the shape of the values that is True for this share of them, the smallest."""
    chosen = torch.zeros(values.numel(), dtype=torch.bool, device=values.device)
    chosen[values.flatten().topk(round(share * values.numel()), largest=False).indices] = True
    return chosen.view_as(values)
