"""The monitor of DLFD's gate."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from dlfd_fleet.audit import Reading, Role, SampleScores, Shift, read_gate, shift_from_out
from dlfd_fleet.audit.samples import ROLES
from dlfd_fleet.data.inputs import joined
from dlfd_fleet.models import FeatureClassifier
from dlfd_fleet.unlearning.contract import LabelledImages, Monitor
from dlfd_fleet.unlearning.references import References
from dlfd_fleet.unlearning.training import predict_probabilities

# A round passes several times over the retain images: beside that, readings of so many of each set take a tenth of the
# time. Of fewer nobody could tell two points of accuracy.
MOST_IMAGES = 512


def loss_monitor(
    forget: LabelledImages,
    validation: LabelledImages | None,
    retain: LabelledImages,
    references: References | None = None,
) -> Monitor:
    """Return a monitor that measures a model on a forget set, on people never trained on and on retained people.

    Validation people must not be those of the final evidence; without any, it reads the accuracy on retained people and
    no attack. Of large sets the same sample is read each time, its
    classes in their shares: more images would not change a decision.

    Parameters
    ----------
    references
        What reference models say of the forget set and of validation people: then it reads how far those are from
        models that never saw them, too.

    Raises
    ------
    ValueError
        If some images are uint8 and others are floats.
    """
    given = {Role.FORGET: forget, Role.VALIDATION: validation, Role.RETAIN: retain}
    parts = {role: _sample(images) for role, images in given.items() if images is not None}
    if len({part.images.dtype for part in parts.values()}) > 1:
        raise ValueError("The images of a monitor must all be uint8, or all be floats in [0, 1].")
    seen = LabelledImages(
        joined([part.images for part in parts.values()]), torch.cat([part.labels for part in parts.values()])
    )
    sizes = [len(part) for part in parts.values()]
    roles = np.repeat([ROLES.index(role) for role in parts], sizes).astype(np.uint8)
    # Numbers of different sides may be the same ones, and nobody is on two.
    pairs = np.stack([roles, np.concatenate([people_of(part) for part in parts.values()])], axis=1)
    people = np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1)

    def read(model: FeatureClassifier) -> Reading:
        probabilities = predict_probabilities(model, seen)
        labels = seen.labels.long().numpy()
        attacked = SampleScores.from_probabilities(probabilities, labels, people, roles)
        each = SampleScores.of_each_label(probabilities, labels, people, roles) if seen.multi_label else None
        reading = read_gate(attacked, each)
        if validation is None or references is None:
            return reading
        return replace(reading, shift=read_shift(model, forget, validation, references))

    return read


def read_shift(
    model: FeatureClassifier, forget: LabelledImages, validation: LabelledImages, references: References
) -> Shift | None:
    """Return how much surer a model is of the forget set than models that never saw it; None without references.

    It compares confidence on all images of the forget set, corrected by validation people.
    """
    if references.validation is None or not references.forget.out.any() or not references.validation.out.any():
        return None
    forget_loss, unseen_loss = (_losses(model, part) for part in (forget, validation))
    return shift_from_out(
        forget_loss,
        references.forget.losses(forget.labels),
        people_of(forget),
        unseen_loss,
        references.validation.losses(validation.labels),
        people_of(validation),
    )


def _losses(model: FeatureClassifier, data: LabelledImages) -> NDArray[np.float64]:
    people, roles = people_of(data), np.zeros(len(data), dtype=np.uint8)
    labels = data.labels.long().numpy()
    return SampleScores.from_probabilities(predict_probabilities(model, data), labels, people, roles).loss


def people_of(data: LabelledImages) -> NDArray[np.int64]:
    """Return the person of each image ``(N,)``; each image is its own without people."""
    people = torch.arange(len(data)) if data.people is None else data.people
    return people.numpy()


def _sample(data: LabelledImages) -> LabelledImages:
    """Return all images, or an even sample by class of a large set."""
    if len(data) <= MOST_IMAGES:
        return data
    classes = torch.unique(data.labels, dim=0, return_inverse=True)[1]
    order = torch.argsort(classes, stable=True)
    return data.select(order[torch.linspace(0, len(data) - 1, MOST_IMAGES).long()])
