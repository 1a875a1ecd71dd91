"""Measure a model for a gate: retained people, validation people, and the gate's own attack."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlfd_fleet.audit.attacks import auc_estimate, loss_attack
from dlfd_fleet.audit.bootstrap import person_sums, units
from dlfd_fleet.audit.samples import Role, SampleScores
from dlfd_fleet.audit.shift import Shift
from dlfd_fleet.exceptions import DataError

_FEWEST_UNSEEN = 5
_RESAMPLES = 500


@dataclass(frozen=True)
class Reading:
    """Utility in [0, 1], and the AUC of a membership attack (0.5 is perfect).

    Attributes
    ----------
    utility
        Balanced accuracy on validation people; None without any. Then there is no attack, and a gate measures only
        retained people.
    utility_half_width
        Half the width of its 95% interval over people (Student's t: with five of them it is wide).
    retain_accuracy, retain_half_width
        The same for retained people, with an interval over images. They are many, so this shows damage that validation
        people cannot show. 1 if they were not measured.
    shift
        Difference of the forget set from models that never saw it; None without references.
    """

    utility: float | None
    attack_auc: float | None
    utility_half_width: float = 0.0
    retain_accuracy: float = 1.0
    retain_half_width: float = 0.0
    shift: Shift | None = None

    @property
    def usefulness(self) -> float:
        """The mean of utility and accuracy on retained people, of those that were measured."""
        read = [value for value in (self.utility, self.retain_accuracy) if value is not None]
        return sum(read) / len(read)

    def beyond(self, gate: float, share: float = 0.0) -> float:
        """Return how much more the model knows of the forget set than a gate allows; 0 within it, or if unknown.

        Parameters
        ----------
        gate
            Allowed AUC - 0.5 of the attack.
        share
            Allowed share of what members have, by reference models. With references, this is used instead of the
            attack, because models that never saw the same images are a better comparison than few validation people.
        """
        if self.shift is not None:
            return max(0.0, self.shift.left - share)
        return 0.0 if self.attack_auc is None else max(0.0, self.attack_auc - 0.5 - gate)

    def remembered(self, gate: float, share: float = 0.0) -> bool:
        """Tell whether the model knows more of the forget set than a gate allows, as in :meth:`beyond`."""
        return self.beyond(gate, share) > 0.0


def read_gate(samples: SampleScores, predicted: SampleScores | None = None) -> Reading:
    """Measure a model by its answers for the forget set, validation people and retained people.

    Utility is the balanced accuracy on validation people, and on retained people if there are rows of them. Without
    validation people only the second is measured, because an attack has nobody to compare with. The attack compares
    losses within each true class and averages over the classes of the forget set. Otherwise a different mix of classes
    would look like memory.

    Parameters
    ----------
    predicted
        Rows for the utility, if they are not the attacked images: one row for each label of a multi-label head.

    Raises
    ------
    DataError
        If there is no forget image, or neither a validation image nor a retain image.
    """
    forget, unseen = samples.of(Role.FORGET), samples.of(Role.VALIDATION)
    if not len(forget):
        raise DataError("There is no forget image for the gate to read.")
    predicted = samples if predicted is None else predicted
    unseen_people, retain = predicted.of(Role.VALIDATION), predicted.of(Role.RETAIN)
    if not len(unseen) and not len(retain):
        raise DataError(
            "There is no image for the gate to read but of the forgotten: it needs people of the split 'validation', "
            "or of the split 'train', who have not asked to be forgotten."
        )
    image = np.arange(len(retain)) // (len(predicted) // len(samples))  # the labels of one image stand together
    stay = _balanced_accuracy(retain, image) if len(retain) else (1.0, 0.0)
    if not len(unseen):
        return Reading(None, None, 0.0, *stay)
    utility, half_width = _balanced_accuracy(unseen_people, units(unseen_people.person))
    return Reading(utility, matched_auc(forget, unseen), half_width, *stay)


def gate_metrics(samples: SampleScores, reading: Reading) -> dict[str, float]:
    """Return the metrics of a gate's reading, with 95% bounds over people.

    The gate's own attack has no bounds; the plain loss attack beside it has. Values that need validation people are
    left out if there are none.
    """
    if reading.utility is None or reading.attack_auc is None:
        return {"gate_retain_accuracy": reading.retain_accuracy}
    attack = auc_estimate(
        loss_attack(samples.canonical(), unseen=Role.VALIDATION), _RESAMPLES, np.random.default_rng(0)
    )
    utility, half = reading.utility, reading.utility_half_width
    return {
        "gate_utility": utility,
        "gate_utility_low": max(0.0, utility - half),
        "gate_utility_high": min(1.0, utility + half),
        "gate_retain_accuracy": reading.retain_accuracy,
        "gate_mia_auc": reading.attack_auc,
        "gate_loss_auc": attack.value,
        "gate_loss_auc_low": attack.low,
        "gate_loss_auc_high": attack.high,
    }


def _balanced_accuracy(samples: SampleScores, unit: NDArray[np.int64]) -> tuple[float, float]:
    """Return the balanced accuracy and half the width of its 95% interval, linearised, clustered by unit ``(N,)``."""
    classes = np.unique(samples.label)  # one class only, or one never predicted, is no mistake here
    right = samples.right.astype(np.float64)
    means, influence = [], np.zeros(len(samples))
    for label in classes:
        rows = samples.label == label
        means.append(right[rows].mean())
        influence[rows] = (right[rows] - means[-1]) / (rows.sum() * len(classes))
    from scipy.stats import t as student

    count = len(np.unique(unit))
    if count < 2:
        return float(np.mean(means)), 1.0
    by_unit = person_sums(unit, influence[:, None])[:, 0]
    error = np.sqrt((by_unit**2).sum() * count / (count - 1))
    return float(np.mean(means)), float(student.ppf(0.975, count - 1) * error)


def matched_auc(members: SampleScores, unseen: SampleScores) -> float:
    """Return the AUC of low losses within each class, averaged with the members' images as weights.

    Classes with fewer than five unseen images are left out; if none is left, classes are not told apart.
    """
    total, count = 0.0, 0
    _, classes = np.unique(np.concatenate([members.label, unseen.label]), axis=0, return_inverse=True)
    ours, theirs = np.split(classes.reshape(-1), [len(members)])
    for label in np.unique(ours):
        inside, outside = members.loss[ours == label], unseen.loss[theirs == label]
        if len(outside) >= _FEWEST_UNSEEN:
            total += len(inside) * _auc(inside, outside)
            count += len(inside)
    return total / count if count else _auc(members.loss, unseen.loss)


def _auc(inside: NDArray[np.float64], outside: NDArray[np.float64]) -> float:
    truth = np.repeat([1, 0], [len(inside), len(outside)])
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(truth, -np.concatenate([inside, outside])))
