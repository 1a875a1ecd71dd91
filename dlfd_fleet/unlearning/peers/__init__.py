"""The methods that DLFD is measured against, each from its own paper and of the same shape."""

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
