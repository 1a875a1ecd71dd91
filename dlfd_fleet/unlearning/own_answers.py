"""Aim unlearning at what the model itself says of changed copies of an image, where no reference model has answered.

What a model remembers of a person is tied to the images that it was trained on. It answers a copy that is mirrored,
shifted or lit otherwise from what it knows of the task, much as it answers images of people whom it never saw. So the
mean of its answers to random copies is a target for the image itself. Copies are changed as strongly as the answers to
people never trained on bear: a mirrored digit would be another digit. A temperature, at which means over copies of
their images are closest to the answers to these, corrects for what a change takes away. A model that was trained on
changed copies remembers those, too. Retained people show it: where their copies are answered more surely than images of
people never trained on, a higher temperature makes them equal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlfd_fleet.audit.shift import confidence, mean_by_person
from dlfd_fleet.data.dataset import augmentation
from dlfd_fleet.models import FeatureClassifier
from dlfd_fleet.settings import AugmentationSettings
from dlfd_fleet.unlearning.contract import LabelledImages
from dlfd_fleet.unlearning.monitor import people_of
from dlfd_fleet.unlearning.references import TEMPERATURES, ReferenceAnswers, probabilities_of, temperature_between
from dlfd_fleet.unlearning.training import device_of, predict_logits

MOST_OTHERS = 128  # images of unseen and of retained people; of more, copies would cost as much as the unlearning does
_COPIES = 8
_USUALLY_TRIED = 5  # of nine changes
_BATCH = 64
_NO_WORSE = 0.01  # nats: where a model is always right, a standard error is nothing
_FEWEST_FOR_ERROR = 5  # people; of fewer, a standard error is small or large by chance
_LEAST_TO_FORGET = 1.0  # logits; under it a share would be one of noise


class Left(NamedTuple):
    """The share of the way to the targets that is left, and its standard error, by person; 0 of a single person."""

    share: float
    error: float


@dataclass(frozen=True)
class OwnAnswers:
    """Logits that a model gave before it unlearned.

    Attributes
    ----------
    forget
        For the M images to forget, ``(M, C)``.
    changed
        Means over changed copies of them, at a temperature, ``(M, C)``.
    unseen
        For U images of people never trained on, ``(U, C)``.
    multi_label
        Whether the logits are of labels, several of which may apply to an image.

    A row is NaN if it is not known. At least one of each is known.
    """

    forget: Tensor
    changed: Tensor
    unseen: Tensor
    multi_label: bool = False

    @classmethod
    def of(
        cls,
        model: FeatureClassifier,
        forget: LabelledImages,
        unseen: LabelledImages,
        retain: LabelledImages,
        seed: int,
        *,
        trained_on_copies: bool,
    ) -> OwnAnswers | None:
        """Return the answers of a model; None if unseen people bear no change, for then there is nothing to aim at.

        Parameters
        ----------
        unseen
            People never trained on; there must be some.
        retain
            People trained on, who are not to be forgotten; there must be some. Of many images a sample is used.
        seed
            Of the changes.
        trained_on_copies
            Whether training changed images. Then targets are in the mean no surer than answers to strangers, by what
            retained people show; else by no more than a standard error.
        """
        change, multi_label = strongest_change(model, unseen, seed), forget.multi_label
        if change is None:
            return None
        plain, said = (torch.from_numpy(predict_logits(model, images)) for images in (forget, unseen))
        some = few(retain)
        changed, copies, kept = (answers_to_copies(model, images, change, seed) for images in (forget, unseen, some))
        known = ReferenceAnswers(copies[None], _nobody(copies), multi_label)
        temperature = temperature_between(known, probabilities_of(said, multi_label=multi_label), models=1)
        temperature *= _no_surer(kept / temperature, some, _surest(said, unseen, by_chance=not trained_on_copies))
        return cls(plain, changed / temperature, said, multi_label)

    def targets(self) -> Tensor:
        """Return the target probabilities ``(M, C)`` of the images to forget."""
        return probabilities_of(self.changed, multi_label=self.multi_label)

    def left(self, model: FeatureClassifier, forget: LabelledImages, unseen: LabelledImages) -> Left:
        """Return the share of the way to the targets that is left: 1 before unlearning, 0 at the targets.

        It compares mean confidence in the true classes. What the model has since become less sure of people never
        trained on is added: that is no forgetting. That it became surer of them counts for nothing. Where there is less
        than a logit to forget, the share is of one.

        Parameters
        ----------
        forget, unseen
            The images of these answers, in their order.
        """
        before, aim = _confidence(self.forget, forget), _confidence(self.changed, forget)
        now = _confidence(torch.from_numpy(predict_logits(model, forget)), forget)
        drift = _confidence(torch.from_numpy(predict_logits(model, unseen)), unseen) - _confidence(self.unseen, unseen)
        whole = max(float(np.nanmean(before - aim)), _LEAST_TO_FORGET)
        error = math.hypot(_standard_error(now - aim, forget), _standard_error(drift, unseen))
        return Left((float(np.nanmean(now - aim)) - min(float(np.nanmean(drift)), 0.0)) / whole, error / whole)


def few(images: LabelledImages) -> LabelledImages:
    """Return all images, or an even sample of many."""
    if len(images) <= MOST_OTHERS:
        return images
    return images.select(torch.linspace(0, len(images) - 1, MOST_OTHERS).long())


def strongest_change(model: FeatureClassifier, unseen: LabelledImages, seed: int) -> AugmentationSettings | None:
    """Return the strongest random change of images at which a model is right about unseen people as often as without.

    That is, its loss on them, each time at the best temperature, is higher than without by at most one standard error,
    by person (the rule of one standard error: Breiman et al., Classification and Regression Trees, 1984, section
    3.4.3), or a hundredth of a nat, which is all that fewer than five people may differ by.

    Returns
    -------
    AugmentationSettings or None
        None if even the weakest change makes the answers worse.
    """
    plain = _losses(torch.from_numpy(predict_logits(model, unseen)), unseen)
    people = people_of(unseen)
    for change in reversed([*_changes(unseen.images.shape[-1])]):
        worse = mean_by_person(_losses(answers_to_copies(model, unseen, change, seed), unseen) - plain, people)
        error = worse.std(ddof=1) / np.sqrt(len(worse)) if len(worse) >= _FEWEST_FOR_ERROR else 0.0
        if worse.mean() <= max(error, _NO_WORSE):
            return change
    return None


def images_answered(forget: int, unseen: int, retain: int, tried: int = _USUALLY_TRIED) -> int:
    """Return how many images a model answers until its own answers are known (:meth:`OwnAnswers.of`).

    It answers the images of unseen people, and their copies under each change that is tried; then all images, and their
    copies under the change that is chosen.

    Parameters
    ----------
    forget, unseen, retain
        Images to forget, of people never trained on, and of people to retain, of whom at most 128 are used.
    tried
        How many changes are tried before one is borne. Default: half of them, for that is not known before.
    """
    copies = forget + unseen + min(retain, MOST_OTHERS)
    return unseen * (1 + _COPIES * tried) + forget + unseen + _COPIES * copies


@torch.inference_mode()
def answers_to_copies(
    model: FeatureClassifier, images: LabelledImages, change: AugmentationSettings, seed: int
) -> Tensor:
    """Return a model's mean logits ``(N, C)`` for changed copies of images, in eval mode; its mode is restored."""
    training, device, changed = model.training, device_of(model), augmentation(change)
    generator = torch.Generator().manual_seed(seed)
    model.eval()
    means = []
    for rows in torch.split(torch.arange(len(images)), _BATCH):
        batch = images.batch(rows, device)[0]
        copies = [batch if changed is None else changed(batch, generator) for _ in range(_COPIES)]
        means.append(torch.stack([model(copy).float() for copy in copies]).mean(dim=0).cpu())
    model.train(training)
    return torch.cat(means)


def _changes(size: int) -> Iterator[AugmentationSettings]:
    """Yield changes of images of this many pixels a side, from weak to strong."""
    one, two, four = (max(1, round(size * part / 32)) for part in (1, 2, 4))
    yield AugmentationSettings(shift=one)
    yield AugmentationSettings(light=0.2)
    yield AugmentationSettings(flip=0.5)
    yield AugmentationSettings(shift=two)
    yield AugmentationSettings(light=0.4)
    yield AugmentationSettings(shift=two, light=0.2)
    yield AugmentationSettings(flip=0.5, shift=two, light=0.2)
    yield AugmentationSettings(shift=four)
    yield AugmentationSettings(flip=0.5, shift=four, light=0.2)


def _losses(logits: Tensor, images: LabelledImages) -> NDArray[np.float64]:
    """Return the losses ``(N,)`` at the temperature at which their mean is least: means over copies are softer."""
    losses = [_loss(logits / temperature, images) for temperature in TEMPERATURES]
    return min(losses, key=lambda each: float(each.mean()))


def _surest(logits: Tensor, unseen: LabelledImages, *, by_chance: bool) -> float:
    """Return the mean confidence for unseen people, or a standard error by person above it.

    Without the error two of five small fleets, whose training had changed no image, went past what retrained models
    say. Fewer than five people do not tell how large it is.
    """
    sure = _confidence(logits, unseen)
    if by_chance and len(np.unique(people_of(unseen))) < _FEWEST_FOR_ERROR:
        return math.inf
    return float(sure.mean()) + (_standard_error(sure, unseen) if by_chance else 0.0)


def _no_surer(logits: Tensor, images: LabelledImages, level: float) -> float:
    """Return the least temperature from 1 to 2 at which mean confidence is at most a level; 2 if none is enough."""
    warmer = [temperature for temperature in TEMPERATURES if temperature >= 1.0]
    enough = (one for one in warmer if float(_confidence(logits / one, images).mean()) <= level)
    return next(enough, warmer[-1])


def _loss(logits: Tensor, images: LabelledImages) -> NDArray[np.float64]:
    answers = ReferenceAnswers(logits[None], _nobody(logits), images.multi_label)
    loss: NDArray[np.float64] = answers.losses(images.labels).loss[0]
    return loss


def _nobody(logits: Tensor) -> Tensor:
    return torch.zeros(1, len(logits), dtype=torch.bool)


def _confidence(logits: Tensor, images: LabelledImages) -> NDArray[np.float64]:
    """Return the confidence ``(N,)`` in the true class or combination of labels; NaN where logits are."""
    sure = confidence(_loss(logits.nan_to_num(), images))
    return np.where(logits.isnan().any(dim=1).numpy(), np.nan, sure)


def _standard_error(value: NDArray[np.float64], images: LabelledImages) -> float:
    """Return the standard error of the mean of the known values, by person; 0 of a single person."""
    means = mean_by_person(value, people_of(images))
    return float(means.std(ddof=1)) / math.sqrt(len(means)) if len(means) > 1 else 0.0
