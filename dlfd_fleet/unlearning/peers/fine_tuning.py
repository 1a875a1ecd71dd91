"""Peers that only train on the retain set, with all layers or some."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import nn

from dlfd_fleet.models import FeatureClassifier
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
        k, counting convolutions and linear maps that are not frozen. A batch norm belongs to the convolution before it.
        Earlier layers keep their weights and are in eval mode. At the end batch-norm statistics are computed again, as
        after every peer.
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
        k, as in :class:`CatastrophicForgetting`. All modules among or after these layers are reset, too.
    """

    layers: int = 5

    def unlearn(self, session: Session) -> None:
        """Reset the last layers, and train them for ``settings.epochs`` epochs."""
        reset(session.model, last_modules(session.model, self.layers))
        _fine_tune_last(session, self.layers)


def weight_layers(model: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    """Return the convolutions and linear maps whose weights are trained, in the order in which the network has them."""
    return [module for module in model.modules() if _is_trained(module)]


def last_modules(model: nn.Module, layers: int) -> list[nn.Module]:
    """Return every module without children from the k-th last trained layer on, or all if there are fewer.

    Raises
    ------
    ValueError
        If no layer is asked for.
    """
    if layers < 1:
        raise ValueError(f"At least one layer must be trained; {layers} is none.")
    leaves = _leaves(model)
    places = [index for index, module in enumerate(leaves) if _is_trained(module)]
    return leaves[places[-layers] :] if layers < len(places) else leaves


@torch.no_grad()
def reset(model: FeatureClassifier, modules: Iterable[nn.Module]) -> None:
    """Reset the modules that can reset themselves, with torch's generator; frozen ones keep their weights."""
    frozen = [(array, array.clone()) for array in model.frozen_arrays()]
    for module in modules:
        reset_parameters = getattr(module, "reset_parameters", None)
        if callable(reset_parameters):
            reset_parameters()
    for array, before in frozen:
        array.copy_(before)


def _fine_tune_last(session: Session, layers: int) -> None:
    trained = last_modules(session.model, layers)
    parameters = [one for module in trained for one in module.parameters() if one.requires_grad]
    session.model.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    leaves = _leaves(session.model)
    session.fine_tune(session.optimizer(parameters), frozen=leaves[: len(leaves) - len(trained)])


def _is_trained(module: nn.Module) -> TypeGuard[nn.Conv2d | nn.Linear]:
    return isinstance(module, nn.Conv2d | nn.Linear) and module.weight.requires_grad


def _leaves(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if next(module.children(), None) is None]
