"""The monitor that DLFD's gate looks through: utility, and how well a loss threshold finds the forget set."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import roc_auc_score

from dlfd_fleet.models import FeatureClassifier
from dlfd_fleet.unlearning.contract import LabelledImages, Monitor, Reading
from dlfd_fleet.unlearning.training import predict_probabilities


def loss_monitor(forget: LabelledImages, validation: LabelledImages) -> Monitor:
    """Return a monitor that compares the losses of a forget set with those of people never trained on.

    Utility is the accuracy on ``validation``; the attack is the AUC of "a lower loss means a member". The images should
    be few, for they are all predicted at each look, and must not be those of the final evidence.
    """
    truth = np.repeat([1, 0], [len(forget), len(validation)])

    def read(model: FeatureClassifier) -> Reading:
        unseen = predict_probabilities(model, validation)
        labels = validation.labels.numpy()
        losses = [
            -np.log(np.clip(p[np.arange(len(y)), y], 1e-12, None))
            for p, y in ((predict_probabilities(model, forget), forget.labels.numpy()), (unseen, labels))
        ]
        auc = roc_auc_score(truth, -np.concatenate(losses))
        return Reading(utility=float((unseen.argmax(axis=1) == labels).mean()), attack_auc=float(auc))

    return read
