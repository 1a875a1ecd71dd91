"""The monitor that DLFD's gate looks through."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from dlfd_fleet.audit import Reading, Role, SampleScores, read_gate
from dlfd_fleet.audit.samples import ROLES
from dlfd_fleet.models import FeatureClassifier
from dlfd_fleet.unlearning.contract import LabelledImages, Monitor
from dlfd_fleet.unlearning.training import predict_probabilities

_MOST_IMAGES = 512


def loss_monitor(forget: LabelledImages, validation: LabelledImages) -> Monitor:
    """Return a monitor that reads a model from a forget set and from people never trained on.

    They must not be those of the final evidence. Of large sets the same sample is read at each look, its classes in
    their shares: more images would not change a decision.
    """
    forget, validation = _sample(forget), _sample(validation)
    both = LabelledImages(torch.cat([forget.images, validation.images]), torch.cat([forget.labels, validation.labels]))
    sides = [ROLES.index(Role.FORGET), ROLES.index(Role.VALIDATION)]
    roles = np.repeat(sides, [len(forget), len(validation)]).astype(np.uint8)
    # Numbers of the two sides may be the same ones, and nobody is on both.
    people = np.concatenate([_people(forget), _people(validation) + len(forget) + int(_people(forget).max())])

    def read(model: FeatureClassifier) -> Reading:
        probabilities = predict_probabilities(model, both)
        labels = both.labels.long().numpy()
        attacked = SampleScores.from_probabilities(probabilities, labels, people, roles)
        if not both.multi_label:
            return read_gate(attacked)
        return read_gate(attacked, SampleScores.of_each_label(probabilities, labels, people, roles))

    return read


def _people(data: LabelledImages) -> NDArray[np.int64]:
    people = torch.arange(len(data)) if data.people is None else data.people
    return people.numpy()


def _sample(data: LabelledImages) -> LabelledImages:
    """Return at most 512 images, evenly from the set in the order of its classes."""
    if len(data) <= _MOST_IMAGES:
        return data
    classes = torch.unique(data.labels, dim=0, return_inverse=True)[1]
    order = torch.argsort(classes, stable=True)
    return data.select(order[torch.linspace(0, len(data) - 1, _MOST_IMAGES).long()])
