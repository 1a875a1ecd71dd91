"""Define what an unlearning method takes (:class:`UnlearningProblem`) and returns (:class:`UnlearnOutcome`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from dlfd_fleet.audit import Reading
from dlfd_fleet.data.inputs import Inputs, select
from dlfd_fleet.models import FeatureClassifier
from dlfd_fleet.settings import UnlearningSettings
from dlfd_fleet.unlearning.references import References

_LEAST_GAIN_OVER_CONSTANT = 0.1

Loss = Callable[[Tensor, Tensor], Tensor]
"""Maps logits ``(N, C)`` and labels to a scalar; replaces :func:`~dlfd_fleet.unlearning.classification_loss`."""

MakeOptimizer = Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer]
"""Maps parameters and a learning rate to an optimizer; replaces SGD."""

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""Maps float images ``(N, 3, S, S)`` in [0, 1] to changed images of the same shape and range."""


@dataclass(frozen=True)
class LabelledImages:
    """Images with their task labels.

    Attributes
    ----------
    images
        uint8 ``(N, 3, S, S)``, or float32 in [0, 1]. They are not copied; images in a file are read batch by batch.
    labels
        Class indices ``(N,)``, int64. For a model with L labels: 0 and 1, ``(N, L)``.
    people
        Person number of each image, int64 ``(N,)``. If it is missing, each image counts as a person.
    """

    images: Inputs
    labels: Tensor
    people: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def multi_label(self) -> bool:
        """Whether each image has several labels of its own, instead of one class."""
        return self.labels.ndim == 2

    def select(self, rows: Tensor) -> LabelledImages:
        """Return the images of these rows."""
        people = None if self.people is None else self.people[rows]
        return LabelledImages(select(self.images, rows), self.labels[rows], people)

    def batch(self, rows: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return float images in [0, 1] and labels of these rows, on the model's device."""
        images = self.images[rows].to(device)
        if images.dtype == torch.uint8:
            images = images.float().div_(255.0)
        return images, self.labels[rows].to(device)

    def batches(self, size: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield the rows of one shuffled epoch, in batches of at most this size that differ by at most one image.

        Batch normalisation needs two images, and takes a wild step where a last batch has only two or three: of 50
        faces of 32 pixels in batches of 16, the last two gave gradients a thousand times as large as the others did.
        """
        rows = torch.randperm(len(self), generator=generator)
        yield from torch.tensor_split(rows, max(1, min(math.ceil(len(rows) / size), len(rows) // 2)))


@dataclass(frozen=True)
class UtilityBound:
    """The lowest utility that a checkpoint may have, on people never seen and on retained people.

    Attributes
    ----------
    utility, retain_accuracy
        Values of the original minus the allowed drop. ``utility`` is None without validation people.
    noise
        Half the width of the original's interval on validation people, or None to count every drop. On few people even
        retrained models differ from the original by more than the allowed drop.

    The tolerance is the wider of the two models' intervals, because a model that is always right has an interval of no
    width. For retained people it is the candidate's interval, over images.
    """

    utility: float | None
    retain_accuracy: float
    noise: float | None = None

    @classmethod
    def under(cls, original: Reading, most_drop: float, *, by_chance: bool = False) -> UtilityBound:
        """Return the bound for an original: its values minus the allowed drop, and the tolerance for chance."""
        noise = original.utility_half_width if by_chance else None
        utility = None if original.utility is None else original.utility - most_drop
        return cls(utility, original.retain_accuracy - most_drop, noise)

    def least_utility(self, reading: Reading) -> float | None:
        """Return the lowest utility on validation people that this model may have; None without such people."""
        if self.utility is None:
            return None
        return self.utility if self.noise is None else self.utility - max(self.noise, reading.utility_half_width)

    def shortfall(self, reading: Reading) -> float:
        """Return how far a model is below the bound; 0 if it is useful."""
        lost = self.retain_accuracy - (reading.retain_accuracy + reading.retain_half_width)
        least = self.least_utility(reading)
        if least is None or reading.utility is None:
            return max(0.0, lost)
        return max(0.0, least - reading.utility, lost)


def collapse(reading: Reading, validation: LabelledImages | None) -> tuple[str, ...]:
    """Return a sentence if a model gives nearly the same answer for everybody; None if not.

    It returns None, too, without validation people, and if these show only one class or one value of each label.
    """
    if validation is None or reading.utility is None:
        return ()
    columns = validation.labels.T if validation.multi_label else validation.labels[None]
    constant = len(columns) / sum(len(torch.unique(column)) for column in columns)
    if constant == 1.0 or reading.utility >= constant + _LEAST_GAIN_OVER_CONSTANT:
        return ()
    return (f"balanced accuracy {reading.utility:.3f} is near a constant answer's: the model collapsed",)


def checkpoint_rank(
    reading: Reading, bound: UtilityBound, gate: float, share: float = 0.0
) -> tuple[bool, float, float]:
    """Return a sort key; the greatest is best. Useful candidates first, then those within the gate, then by utility.

    Forgetting beyond the gate does not change the order, because on a small sample it is noise. The audit, which has
    other people and bounds, decides whether a high loss reveals somebody.

    Parameters
    ----------
    gate, share
        The allowed values, as in :meth:`~dlfd_fleet.audit.Reading.beyond`.
    """
    shortfall, beyond_gate = bound.shortfall(reading), reading.beyond(gate, share)
    useful = shortfall == 0.0
    return (useful, -beyond_gate if useful else -shortfall, reading.usefulness)


class Monitor(Protocol):
    """Measures a model between steps. It must not change the weights or the mode."""

    def __call__(self, model: FeatureClassifier) -> Reading:
        """Return the reading of a model."""


@dataclass(frozen=True, kw_only=True)
class UnlearningProblem:
    """The input of every unlearning method.

    Attributes
    ----------
    model
        Returns features ``(N, F)`` and logits ``(N, C)``. It is changed in place.
    retain, forget
        Training images to keep and to forget; neither may be empty.
    validation
        People never trained on, for a method's own gate. They must not be the people of the final evidence. None if the
        caller has the gate, as in a fleet; then only methods without a gate can run.
    settings
        Hyper-parameters that methods share. Pixel units are fractions of the range [0, 1].
    monitor
        Measures the model for a gate. Default: :func:`~dlfd_fleet.unlearning.loss_monitor` on the three sets.
    seed
        Seed of batches, augmentation, dropout and fresh weights.
    class_weights
        Weights of classes or labels in the training loss, ``(C,)``, or of both values of each label, ``(C, 2)``.
        Default: 1.
    augment
        Changes each retain batch before training.
    loss
        Training loss. Default: :func:`~dlfd_fleet.unlearning.classification_loss`.
    optimizer
        Factory of the optimizer. Default: SGD with the settings' momentum and weight decay.
    references
        Answers of reference models, of which some never saw the people to forget. Methods that train on the retain set
        then also train forget images towards these answers. Default: none.
    targets
        Probabilities ``(M, C)`` towards which they train forget images in place of those of references; NaN in the row
        of an image without any.
    """

    model: FeatureClassifier
    retain: LabelledImages
    forget: LabelledImages
    validation: LabelledImages | None = None
    settings: UnlearningSettings = field(default_factory=UnlearningSettings)
    monitor: Monitor | None = None
    seed: int = 0
    class_weights: Tensor | None = None
    augment: Augment | None = None
    loss: Loss | None = None
    optimizer: MakeOptimizer | None = None
    references: References | None = None
    targets: Tensor | None = None


@dataclass(frozen=True)
class Cost:
    """The cost of an unlearning: wall-clock seconds, and images passed forward and backward.

    Attributes
    ----------
    monitor_seconds
        The part of the seconds that the monitor took.
    noise_images
        The part of the images passed backward for which only pixels have gradients.
    """

    seconds: float
    monitor_seconds: float
    forward_images: int
    backward_images: int
    noise_images: int = 0


@dataclass(frozen=True)
class TraceEntry:
    """One reading of the monitor: step, phase and values."""

    step: int
    phase: str
    reading: Reading


@dataclass(frozen=True)
class UnlearnOutcome:
    """The result of an unlearning: the model, its trace and its cost."""

    model: FeatureClassifier
    trace: tuple[TraceEntry, ...]
    cost: Cost
    chosen_step: int
    """The step whose weights were returned; 0 is the given model."""
    failures: tuple[str, ...] = ()
    """Reasons why the method's own gate is not satisfied; always empty for methods without a gate."""

    @property
    def success(self) -> bool:
        """Whether the method's own gate is satisfied. Only the audit gives evidence."""
        return not self.failures


class Unlearner(Protocol):
    """The shape of every method: DLFD and its peers."""

    def __call__(self, problem: UnlearningProblem, /) -> UnlearnOutcome:
        """Unlearn in place and return the outcome."""
