"""Unlearning on plain tensors: DLFD, ordinary training, and the registry of methods.

A method takes one :class:`UnlearningProblem`: the model, retained and forgotten images, and images of people never
trained on. It changes the model in place and returns an :class:`UnlearnOutcome`: whether its own gate is satisfied,
what it cost, and which step it chose. It does not use Flower or MLflow::

    problem = UnlearningProblem(model=model, retain=retain, forget=forget, validation=unseen)
    outcome = dlfd(problem)                           # or any other: METHODS.find("msg").default.unlearner(problem)
    print(outcome.success, outcome.failures)

Stable: the names in ``__all__``. A method of your own: docs/how-to/method.md.
"""

from dlfd_fleet.unlearning.contract import (
    Augment,
    Cost,
    LabelledImages,
    Loss,
    MakeOptimizer,
    Monitor,
    Unlearner,
    UnlearningProblem,
    UnlearnOutcome,
    UtilityBound,
    checkpoint_rank,
)
from dlfd_fleet.unlearning.distancing import distance, dlfd
from dlfd_fleet.unlearning.methods import METHODS, Candidate, Method
from dlfd_fleet.unlearning.monitor import loss_monitor
from dlfd_fleet.unlearning.training import fit, predict_features_and_probabilities, predict_probabilities, recalibrate
from dlfd_fleet.unlearning.transport import cosine_cost, transport_distance

__all__ = [
    "METHODS",
    "Augment",
    "Candidate",
    "Cost",
    "LabelledImages",
    "Loss",
    "MakeOptimizer",
    "Method",
    "Monitor",
    "UnlearnOutcome",
    "Unlearner",
    "UnlearningProblem",
    "UtilityBound",
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
