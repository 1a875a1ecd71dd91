"""NoT: turn layers inside out, then repair."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dlfd_fleet.unlearning.peers.fine_tuning import weight_layers
from dlfd_fleet.unlearning.session import Peer, Session


@dataclass(frozen=True)
class NegateLayers(Peer):
    """NoT: negate the weights of some layers, then fine-tune on the retain set (Khalil et al., arXiv 2503.05657).

    The step of fine-tuning stays as it is: with one that falls, more of what the negation broke stays broken.

    Attributes
    ----------
    layers
        Places of the layers, counting convolutions and linear maps from the input on, but frozen ones; the paper's
        choice is the first. A bias keeps its sign.
    """

    layers: tuple[int, ...] = (0,)

    def unlearn(self, session: Session) -> None:
        """Negate, then train for ``settings.epochs`` epochs.

        Raises
        ------
        IndexError
            If the network has no layer at one of the places.
        """
        layers = weight_layers(session.model)
        with torch.no_grad():
            for place in self.layers:
                layers[place].weight.neg_()
        session.fine_tune(session.optimizer(), falling=False)
