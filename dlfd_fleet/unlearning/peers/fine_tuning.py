"""Peers that only train on, in whole or in part, on what is retained."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from dlfd_fleet.unlearning.session import Peer, Session


@dataclass(frozen=True)
class FineTune(Peer):
    """Train on the retain set and let the rest be forgotten (Golatkar et al., arXiv 1911.04933, section 6)."""

    def unlearn(self, session: Session) -> None:
        """Train for ``settings.epochs`` epochs."""
        session.fine_tune(session.optimizer())


@dataclass(frozen=True)
class CatastrophicForgetting(Peer):
    """CF-k: fine-tune the last k layers on the retain set (Goel et al., arXiv 2201.06640, section 5).

    Attributes
    ----------
    layers
        k, of the network's convolutions and linear maps; a batch normalisation belongs to the convolution before it.
        The layers before keep their weights, their batch normalisation and dropout are in eval mode; at the end all
        batch-norm statistics are taken anew, as after every peer.
    """

    layers: int = 5

    def unlearn(self, session: Session) -> None:
        """Train the last layers for ``settings.epochs`` epochs."""
        _fine_tune_last(session, self.layers)


@dataclass(frozen=True)
class ExactUnlearning(Peer):
    """EU-k: give the last k layers fresh weights, then train them on the retain set (Goel et al., arXiv 2201.06640).

    Attributes
    ----------
    layers
        k, as in :class:`CatastrophicForgetting`; whatever is among or behind these layers is reset with them.
    """

    layers: int = 5

    def unlearn(self, session: Session) -> None:
        """Reset the last layers, and train them for ``settings.epochs`` epochs."""
        for module in last_modules(session.model, self.layers):
            reset(module)
        _fine_tune_last(session, self.layers)


def weight_layers(model: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    """Return the convolutions and linear maps, in the order in which the network defines them."""
    return [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def last_modules(model: nn.Module, layers: int) -> list[nn.Module]:
    """Return every module without children from the k-th last convolution or linear map on; all, if there are fewer.

    Raises
    ------
    ValueError
        If no layer is asked for.
    """
    if layers < 1:
        raise ValueError(f"At least one layer must be trained; {layers} is none.")
    leaves = _leaves(model)
    places = [index for index, module in enumerate(leaves) if isinstance(module, nn.Conv2d | nn.Linear)]
    return leaves[places[-layers] :] if layers < len(places) else leaves


def reset(module: nn.Module) -> None:
    """Give a module fresh weights from torch's generator, if it knows how."""
    reset_parameters = getattr(module, "reset_parameters", None)
    if callable(reset_parameters):
        reset_parameters()


def _fine_tune_last(session: Session, layers: int) -> None:
    trained = last_modules(session.model, layers)
    parameters = [parameter for module in trained for parameter in module.parameters()]
    session.model.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    leaves = _leaves(session.model)
    session.fine_tune(session.optimizer(parameters), frozen=leaves[: len(leaves) - len(trained)])


def _leaves(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if next(module.children(), None) is None]
