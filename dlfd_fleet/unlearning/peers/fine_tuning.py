"""Peers that only train on, in whole or in part, on what is retained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from dlfd_fleet.models import FeatureClassifier
from dlfd_fleet.unlearning.session import Peer, Session


@dataclass(frozen=True)
class FineTune(Peer):
    """Train on the retain set and let the rest be forgotten (Golatkar et al., arXiv 1911.04933, section 5)."""

    def unlearn(self, session: Session) -> None:
        """Train for ``settings.epochs`` epochs."""
        session.fine_tune(session.optimizer())


@dataclass(frozen=True)
class CatastrophicForgetting(Peer):
    """CF-k: fine-tune the last k layers on the retain set (Goel et al., arXiv 2201.06640, section 4).

    A layer is a convolution or a linear map; the layers before them, batch normalisation included, stay as they are.
    """

    layers: int = 5

    def unlearn(self, session: Session) -> None:
        """Freeze all but the last layers, and train those."""
        fine_tune_last(session, self.layers)


@dataclass(frozen=True)
class ExactUnlearning(Peer):
    """EU-k: give the last k layers fresh weights and train them on the retain set (Goel et al., arXiv 2201.06640)."""

    layers: int = 5

    def unlearn(self, session: Session) -> None:
        """Freeze all but the last layers, reset those whatever their kind, and train them."""
        for module in last_modules(session.model, self.layers):
            reset(module)
        fine_tune_last(session, self.layers)


def fine_tune_last(session: Session, layers: int) -> None:
    """Train the last layers only, the others frozen and in eval mode."""
    trained = list(last_modules(session.model, layers))
    parameters = [parameter for module in trained for parameter in module.parameters(recurse=False)]
    session.model.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    frozen = [module for module in session.model.modules() if module not in trained and not _has_children(module)]
    session.fine_tune(session.optimizer(parameters), frozen=frozen)


def last_modules(model: FeatureClassifier, layers: int) -> Iterator[nn.Module]:
    """Yield the modules from the k-th last convolution or linear map on, in the order of the network."""
    leaves = [module for module in model.modules() if not _has_children(module)]
    places = [index for index, module in enumerate(leaves) if isinstance(module, nn.Conv2d | nn.Linear)]
    yield from leaves[places[-min(layers, len(places))] :]


def reset(module: nn.Module) -> None:
    """Give a module fresh weights, if it has any."""
    reset_parameters = getattr(module, "reset_parameters", None)
    if callable(reset_parameters):
        with torch.no_grad():
            reset_parameters()


def _has_children(module: nn.Module) -> bool:
    return next(module.children(), None) is not None
