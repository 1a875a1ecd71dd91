"""What a gate may look at while it chooses: validation people, and an attack that the final evidence does not use."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from dlfd_fleet.audit.samples import Role, SampleScores
from dlfd_fleet.exceptions import DataError

_FEWEST_UNSEEN = 5


@dataclass(frozen=True)
class Reading:
    """Utility in [0, 1], and the AUC of a membership attack (0.5 is perfect)."""

    utility: float
    attack_auc: float

    @property
    def forgetting(self) -> float:
        """Distance of the attack from chance, ``|AUC - 0.5|``."""
        return abs(self.attack_auc - 0.5)


def read_gate(samples: SampleScores) -> Reading:
    """Read a model from what it says of the forget set and of validation people.

    Utility is the balanced accuracy on validation people. The attack compares losses within each true class and
    averages over the classes of the forget set: a forget set with other classes than the validation people would look
    remembered, or forgotten, for its classes alone.

    Raises
    ------
    DataError
        If there is no validation image or no forget image.
    """
    forget, unseen = samples.of(Role.FORGET), samples.of(Role.VALIDATION)
    if not len(forget) or not len(unseen):
        missing = "forget" if not len(forget) else "validation"
        raise DataError(f"There is no {missing} image for the gate to look at.")
    # One class only, or one never predicted, is no mistake here.
    utility = np.mean([(unseen.prediction == label)[unseen.label == label].mean() for label in np.unique(unseen.label)])
    return Reading(float(utility), matched_auc(forget, unseen))


def matched_auc(members: SampleScores, unseen: SampleScores) -> float:
    """Return the AUC of 'a low loss means a member' within each class, averaged by the members' images.

    Classes with fewer than five unseen images are left out; if none is left, classes are not told apart.
    """
    total, count = 0.0, 0
    for label in np.unique(members.label):
        inside, outside = members.loss[members.label == label], unseen.loss[unseen.label == label]
        if len(outside) >= _FEWEST_UNSEEN:
            total += len(inside) * _auc(inside, outside)
            count += len(inside)
    return total / count if count else _auc(members.loss, unseen.loss)


def _auc(inside: NDArray[np.float64], outside: NDArray[np.float64]) -> float:
    truth = np.repeat([1, 0], [len(inside), len(outside)])
    return float(roc_auc_score(truth, -np.concatenate([inside, outside])))
