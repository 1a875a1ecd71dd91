"""Published unlearning methods that ``bench methods`` compares with DLFD.

Each takes an :class:`~dlfd_fleet.unlearning.UnlearningProblem`, changes its model in place and returns an
:class:`~dlfd_fleet.unlearning.UnlearnOutcome`; each class names its paper. Most are a subclass of
:class:`~dlfd_fleet.unlearning.session.Peer`::

    outcome = FineTune()(problem)

Not stable: use them by name through :data:`~dlfd_fleet.unlearning.METHODS`.
"""

from dlfd_fleet.unlearning.peers.fine_tuning import CatastrophicForgetting, ExactUnlearning, FineTune
from dlfd_fleet.unlearning.peers.gradient import MaskedSmallGradients, NegGrad, NegGradPlus, ProjectedGradientAscent
from dlfd_fleet.unlearning.peers.negation import NegateLayers
from dlfd_fleet.unlearning.peers.noise import Unsir
from dlfd_fleet.unlearning.peers.released import ReleasedDlfd
from dlfd_fleet.unlearning.peers.saliency import SalUn, SelectiveSynapticDampening
from dlfd_fleet.unlearning.peers.teachers import BadTeacher, Scrub

__all__ = [
    "BadTeacher",
    "CatastrophicForgetting",
    "ExactUnlearning",
    "FineTune",
    "MaskedSmallGradients",
    "NegGrad",
    "NegGradPlus",
    "NegateLayers",
    "ProjectedGradientAscent",
    "ReleasedDlfd",
    "SalUn",
    "Scrub",
    "SelectiveSynapticDampening",
    "Unsir",
]
