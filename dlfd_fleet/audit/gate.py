"""What a gate may read while it chooses: retained people, validation people, and an attack of its own."""

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
        Balanced accuracy on validation people; None where there are none, for everybody was trained on. Then there is
        no attack either, and a gate reads retained people only.
    utility_half_width
        Half the width of its 95% interval over people (Student's t: with five of them it is wide).
    retain_accuracy, retain_half_width
        The same of the retained people, its interval over their images: it is these people who pay, not a sample of
        others. They are many, so it shows a damage that validation people cannot; 1 where they were not asked.
    shift
        How far the forget set is from models that never saw it; None where no reference model has answered.
    """

    utility: float | None
    attack_auc: float | None
    utility_half_width: float = 0.0
    retain_accuracy: float = 1.0
    retain_half_width: float = 0.0
    shift: Shift | None = None

    @property
    def usefulness(self) -> float:
        """The mean of utility and accuracy on retained people, as far as they were read."""
        read = [value for value in (self.utility, self.retain_accuracy) if value is not None]
        return sum(read) / len(read)

    def beyond(self, gate: float, share: float = 0.0) -> float:
        """Return how much more is known of the forget set than a gate allows; 0 within it, or where nobody can tell.

        Parameters
        ----------
        gate
            AUC - 0.5 of the attack.
        share
            Of what members have, by reference models. Where they have answered, this is read and not the attack: few
            validation people are a worse measure than models that never saw the very images.
        """
        if self.shift is not None:
            return max(0.0, self.shift.left - share)
        return 0.0 if self.attack_auc is None else max(0.0, self.attack_auc - 0.5 - gate)

    def remembered(self, gate: float, share: float = 0.0) -> bool:
        """Tell whether more is known of the forget set than a gate allows, as of :meth:`beyond`."""
        return self.beyond(gate, share) > 0.0


def read_gate(samples: SampleScores, predicted: SampleScores | None = None) -> Reading:
    """Read a model from what it says of the forget set, of validation people and of retained people.

    Utility is the balanced accuracy on validation people, and on retained people, if there are rows of them. Without
    validation people only the second is read: an attack would have nobody to compare the forget set with. The attack
    compares losses within each true class and averages over the classes of the forget set: a forget set with other
    classes than the validation people would look remembered, or forgotten, for its classes alone.

    Parameters
    ----------
    predicted
        What utility is read from, where rows are not the attacked images: those of each label of a multi-label head.

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
    """Return what a gate has read, for the record, with 95% bounds over people.

    The gate's own attack matches losses by class and has none; beside it stands the plain loss attack, which has.
    What it could not read without validation people is left out.
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
    """Return the AUC of 'a low loss means a member' within each class, averaged by the members' images.

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
