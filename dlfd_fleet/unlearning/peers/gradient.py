"""Peers that use gradients of the forget set: gradient ascent, and resets of weights with small gradients."""

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

    Only its length limits the ascent; a long ascent destroys the model.
    """

    def unlearn(self, session: Session) -> None:
        """Ascend for ``settings.epochs`` epochs over the forget set."""
        optimizer = session.optimizer()
        for images, labels in session.epochs(session.forget):
            session.step(optimizer, -session.loss(session.logits(images), labels), len(images))


@dataclass(frozen=True)
class ProjectedGradientAscent(Peer):
    """Ascend the loss of the forget set inside a ball around the model (after Halimi et al., arXiv 2207.05521).

    The ball keeps the ascent from destroying the model. Its radius is the paper's: a third of the L2 distance, over all
    weights, to a model with fresh weights. The paper centres the ball at the mean of the other sites' last updates,
    starts there, and ascends until the loss is large. No server here keeps updates. So the ball is centred at the
    model, and the ascent has a fixed length.

    Attributes
    ----------
    radius
        Radius of the ball, as a share of the distance to a fresh model.
    largest_gradient
        L2 norm to which gradients are clipped.
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

    Minimises ``alpha * L(retain) - (1 - alpha) * L(forget)`` with one batch of each in a step. Both go through the
    network together, because batch statistics of few forgotten images are noisy.

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
    """MSG: reset the convolution weights with the smallest gradients, then fine-tune, the others at a lower rate.

    A finalist of the NeurIPS 2023 unlearning challenge, as benchmarked by Cadet et al. (arXiv 2410.01276). Gradients
    are of descent on the retain set plus ascent on the forget set, ``g = grad L(retain) - grad L(forget)``; in each
    convolution the weights with the smallest ``|g|`` get fresh values (He initialisation), because they serve both sets
    alike. In the fine-tuning on the retain set the other weights learn at a tenth of the rate.

    The paper only outlines the method. Its authors' benchmark code has the details: masks for each layer, as many
    retain as forget images for ``g``, the shares and the initialisation. Ours differs in two points. The learning rate
    falls from the start. A network without trained convolutions has its linear maps masked.

    Attributes
    ----------
    share
        Share of each layer's weights that are reset.
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
    """Return each parameter's mean gradient over a data set, in eval mode; leave the model in train mode.

    If the time limit ends it, only some images count.
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
    """Make an optimizer multiply each parameter's gradient by a tensor of its shape before every step."""

    def scale(*_: object) -> None:
        for parameter, factor in factors.items():
            if parameter.grad is not None:
                parameter.grad.mul_(factor)

    optimizer.register_step_pre_hook(scale)


def _smallest(values: Tensor, share: float) -> Tensor:
    """Return a mask that is True for the smallest values, of this share."""
    chosen = torch.zeros(values.numel(), dtype=torch.bool, device=values.device)
    chosen[values.flatten().topk(round(share * values.numel()), largest=False).indices] = True
    return chosen.view_as(values)
