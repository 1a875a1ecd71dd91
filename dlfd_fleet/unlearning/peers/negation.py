"""NoT: negate the weights of layers, then fine-tune."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dlfd_fleet.unlearning.peers.fine_tuning import weight_layers
from dlfd_fleet.unlearning.session import Peer, Session


@dataclass(frozen=True)
class NegateLayers(Peer):
    """NoT: negate the weights of some layers, then fine-tune on the retain set (Khalil et al., arXiv 2503.05657).

    The learning rate is constant. With a falling rate less of the damage is repaired.

    Attributes
    ----------
    layers
        Positions of the layers, counting trained convolutions and linear maps from the input; the paper takes the
        first. A bias keeps its sign.
    """

    layers: tuple[int, ...] = (0,)

    def unlearn(self, session: Session) -> None:
        """Negate, then train for ``settings.epochs`` epochs.

        Raises
        ------
        IndexError
            If the network has no layer at one of the positions.
        """
        layers = weight_layers(session.model)
        with torch.no_grad():
            for place in self.layers:
                layers[place].weight.neg_()
        session.fine_tune(session.optimizer(), falling=False)
