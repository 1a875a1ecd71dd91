"""NoT: turn layers inside out, then repair."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from dlfd_fleet.unlearning.session import Peer, Session


@dataclass(frozen=True)
class NegateLayers(Peer):
    """Negate the weights of the first layers, then fine-tune on the retain set (NoT, arXiv 2503.05657, section 4).

    Attributes
    ----------
    layers
        How many convolutions, from the input on, are negated.
    """

    layers: int = 1

    def unlearn(self, session: Session) -> None:
        """Negate, then train for ``settings.epochs`` epochs."""
        convolutions = [module for module in session.model.modules() if isinstance(module, nn.Conv2d)]
        with torch.no_grad():
            for module in convolutions[: self.layers]:
                module.weight.neg_()
        session.fine_tune(session.optimizer())
