"""Unlearning on plain tensors: DLFD, ordinary training, and the shape that every method shares.

An unlearner is called as ``(model, retain, forget, validation, settings, monitor)`` and returns an
:class:`UnlearnOutcome`; it knows neither Flower nor MLflow, and no file but one without a name for its best weights.
"""

from dlfd_fleet.unlearning.contract import (
    Augment,
    Cost,
    LabelledImages,
    Monitor,
    Unlearner,
    UnlearnOutcome,
    UtilityFloor,
    checkpoint_rank,
)
from dlfd_fleet.unlearning.distancing import distance, dlfd
from dlfd_fleet.unlearning.monitor import loss_monitor
from dlfd_fleet.unlearning.training import fit, predict_features_and_probabilities, predict_probabilities, recalibrate
from dlfd_fleet.unlearning.transport import cosine_cost, transport_distance

__all__ = [
    "Augment",
    "Cost",
    "LabelledImages",
    "Monitor",
    "UnlearnOutcome",
    "Unlearner",
    "UtilityFloor",
    "checkpoint_rank",
    "cosine_cost",
    "distance",
    "dlfd",
    "fit",
    "loss_monitor",
    "predict_features_and_probabilities",
    "predict_probabilities",
    "recalibrate",
    "transport_distance",
]
