"""What every unlearner takes and gives."""

from __future__ import annotations

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
"""From logits ``(N, C)`` and labels to a scalar; in the place of :func:`~dlfd_fleet.unlearning.classification_loss`."""

MakeOptimizer = Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer]
"""From parameters and a learning rate to an optimizer, in the place of SGD."""

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""From float images ``(N, 3, S, S)`` in [0, 1] to changed ones of the same shape and range."""


@dataclass(frozen=True)
class LabelledImages:
    """Images with their task labels.

    Attributes
    ----------
    images
        uint8 ``(N, 3, S, S)``, or float32 in [0, 1]; kept as given, so a cached data set is never copied, and one in a
        file is read batch by batch.
    labels
        Class indices ``(N,)``, int64; or, for a multi-label head, which of L labels apply, ``(N, L)`` of 0 and 1.
    people
        Number of each image's person, int64 ``(N,)``; without it each image counts as a person of its own.
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
        """Yield the rows of one shuffled epoch; a last batch of one image joins the batch before it.

        Batch normalisation cannot train on a single image.
        """
        rows = torch.randperm(len(self), generator=generator)
        parts = list(torch.split(rows, size))
        if len(parts) > 1 and len(parts[-1]) == 1:
            parts[-2:] = [torch.cat(parts[-2:])]
        yield from parts


@dataclass(frozen=True)
class UtilityBound:
    """Least utility of a checkpoint that may be chosen: for people never seen, and for retained people.

    Attributes
    ----------
    utility, retain_accuracy
        What the original has, less the drop that is allowed; no utility where there are no validation people.
    noise
        Half the width of the original's interval on validation people, or None to hold every drop against a candidate.
        On few of them retrained models differ from each other, and from the original, by more than any sensible drop.

    What chance can do, the wider of both intervals says: a model that is right about everybody has none of its own. So
    of retained people, of whom the original knows almost everybody, it is the candidate's (over their images).
    """

    utility: float | None
    retain_accuracy: float
    noise: float | None = None

    @classmethod
    def under(cls, original: Reading, most_drop: float, *, by_chance: bool = False) -> UtilityBound:
        """Return what the original has less a drop, and beside it less what chance can do on few validation people."""
        noise = original.utility_half_width if by_chance else None
        utility = None if original.utility is None else original.utility - most_drop
        return cls(utility, original.retain_accuracy - most_drop, noise)

    def least_utility(self, reading: Reading) -> float | None:
        """Return the least utility on validation people that this model may have, if there are such people."""
        if self.utility is None:
            return None
        return self.utility if self.noise is None else self.utility - max(self.noise, reading.utility_half_width)

    def shortfall(self, reading: Reading) -> float:
        """Return how far a model is under it; 0 if it is useful."""
        lost = self.retain_accuracy - (reading.retain_accuracy + reading.retain_half_width)
        least = self.least_utility(reading)
        if least is None or reading.utility is None:
            return max(0.0, lost)
        return max(0.0, least - reading.utility, lost)


def collapse(reading: Reading, validation: LabelledImages | None) -> tuple[str, ...]:
    """Return in words that a model answers nearly the same to everybody, if it does.

    Nobody can tell without validation people, nor of those who show one class only, or one value of each label.
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
    """Order candidates, the better the greater: useful enough, then forgotten up to the gate, then the more useful.

    Forgetting beyond the gate is noise of a small sample, so it earns nothing. Nor does it cost anything: hard people
    are below chance for retrained models, too. Whether somebody is conspicuous by a high loss is for the audit to say,
    which has other people and bounds.

    Parameters
    ----------
    gate, share
        What is allowed, as of :meth:`~dlfd_fleet.audit.Reading.beyond`.
    """
    shortfall, beyond_gate = bound.shortfall(reading), reading.beyond(gate, share)
    useful = shortfall == 0.0
    return (useful, -beyond_gate if useful else -shortfall, reading.usefulness)


class Monitor(Protocol):
    """Reads a model between steps; must leave its weights and its mode as they were."""

    def __call__(self, model: FeatureClassifier) -> Reading:
        """Return the reading of a model."""


@dataclass(frozen=True, kw_only=True)
class UnlearningProblem:
    """Everything that an unlearning method is given.

    Attributes
    ----------
    model
        Gives features ``(N, F)`` and logits ``(N, C)``; it is changed in place.
    retain, forget
        Training images to keep and to forget; neither may be empty.
    validation
        People never trained on, for a method's own gate; never those of the final evidence. None where the caller has a
        gate of its own, as a fleet has: then only methods without a gate can run.
    settings
        Hyper-parameters that methods share; pixel units are fractions of the range [0, 1].
    monitor
        Reads the model for a gate; :func:`~dlfd_fleet.unlearning.loss_monitor` on the three sets when omitted.
    seed
        Seed of batches, augmentation, dropout and fresh weights.
    class_weights
        Weight of each class, or label, in the training loss, ``(C,)``; or of both values of each label, ``(C, 2)``. All
        1 when omitted.
    augment
        Changes each retain batch before it is trained on.
    loss
        Training loss of the model's users; :func:`~dlfd_fleet.unlearning.classification_loss` when omitted.
    optimizer
        Optimizer of the model's users; SGD with the settings' momentum and weight decay when omitted.
    references
        What models that never saw the people to forget say of their images, where that is known: methods that train on
        the retain set then train on the forget set towards it.
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


@dataclass(frozen=True)
class Cost:
    """What an unlearning took: wall-clock seconds, and images passed forward and backward.

    Attributes
    ----------
    monitor_seconds
        Of the seconds, those of the monitor's readings.
    noise_images
        Of the images passed backward, those passed back to the pixels only.
    """

    seconds: float
    monitor_seconds: float
    forward_images: int
    backward_images: int
    noise_images: int = 0


@dataclass(frozen=True)
class TraceEntry:
    """One reading of the monitor: after which step, in which phase, and what it read."""

    step: int
    phase: str
    reading: Reading


@dataclass(frozen=True)
class UnlearnOutcome:
    """The unlearned model, how it came about, and its cost."""

    model: FeatureClassifier
    trace: tuple[TraceEntry, ...]
    cost: Cost
    chosen_step: int
    """Step whose weights were returned; 0 is the model that was given."""
    failures: tuple[str, ...] = ()
    """Why this is no success, by the method's own gate; methods without one never say."""

    @property
    def success(self) -> bool:
        """Whether the method's own gate is satisfied; the evidence is for the audit to say."""
        return not self.failures


class Unlearner(Protocol):
    """The shape of every method: DLFD and its peers."""

    def __call__(self, problem: UnlearningProblem, /) -> UnlearnOutcome:
        """Unlearn in place and return the outcome."""
