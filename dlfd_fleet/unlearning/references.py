"""Use answers of models that never saw a person as the aim of unlearning, and to check it.

Reference models are trained as the model was, each on half of the people, in complementary pairs. For each person half
of them are OUT models, which were not trained on that person (Carlini et al., arXiv 2112.03570; Zarifzadeh et al.,
arXiv 2312.03262). Unlearning moves a model's answer for a forgotten image to that of the OUT models, and no further. A
loss far above theirs reveals a person as well as one far below.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional

from dlfd_fleet.audit.shift import ReferenceLosses

_LEAST = 1e-6  # of a probability, as the attacks have it
TEMPERATURES: list[float] = torch.logspace(-1.0, 1.0, 41, base=2.0).tolist()  # from a half to two


@dataclass(frozen=True)
class ReferenceAnswers:
    """Answers of K reference models to N images.

    Attributes
    ----------
    logits
        float32 ``(K, N, C)``; NaN in every class if a model's answer to an image is not known.
    trained
        bool ``(K, N)``: whether the model was trained on the image's person.
    multi_label
        Whether the logits are of labels, several of which may apply to an image.

    Raises
    ------
    ValueError
        If the shapes do not fit each other.
    """

    logits: Tensor
    trained: Tensor
    multi_label: bool = False

    def __post_init__(self) -> None:
        """Refuse shapes that do not fit."""
        if self.logits.ndim != 3 or self.trained.shape != self.logits.shape[:2]:
            raise ValueError(
                f"Answers of shape {tuple(self.logits.shape)} and flags of shape {tuple(self.trained.shape)} do not "
                "fit: they are (K, N, C) and (K, N)."
            )

    def __len__(self) -> int:
        return self.logits.shape[1]

    @property
    def out(self) -> Tensor:
        """Which answers are known and come from OUT models, bool ``(K, N)``."""
        return ~self.trained & ~self.logits.isnan().any(dim=2)

    def mean_of_out(self) -> Tensor:
        """Return the mean probabilities ``(N, C)`` of each image's OUT models; NaN if it has none."""
        out = self.out[:, :, None]
        probabilities = torch.where(out, probabilities_of(self.logits, multi_label=self.multi_label), 0.0)
        return probabilities.sum(dim=0) / out.sum(dim=0)

    def of_models(self, chosen: Sequence[int]) -> ReferenceAnswers:
        """Return the answers of some of the models."""
        numbers = torch.tensor(chosen)
        return ReferenceAnswers(self.logits[numbers], self.trained[numbers], self.multi_label)

    def select(self, rows: Tensor) -> ReferenceAnswers:
        """Return the answers to some of the images."""
        return ReferenceAnswers(self.logits[:, rows], self.trained[:, rows], self.multi_label)

    def losses(self, labels: Tensor) -> ReferenceLosses:
        """Return the losses ``(K, N)`` of the true classes ``(N,)``, or combinations of labels ``(N, L)``."""
        count, images, classes = self.logits.shape
        flat = self.logits.reshape(count * images, classes)
        truth = labels.repeat(count, *(1,) * (labels.ndim - 1))
        if self.multi_label:
            loss = functional.binary_cross_entropy_with_logits(flat, truth.to(flat.dtype), reduction="none").sum(dim=1)
        else:
            loss = functional.cross_entropy(flat, truth.long(), reduction="none")
        return ReferenceLosses(loss.reshape(count, images).double().numpy(), self.trained.numpy())


@dataclass(frozen=True)
class References:
    """Answers of reference models to the images of an unlearning problem, in their order.

    Attributes
    ----------
    forget
        Answers to the images to forget.
    validation
        Answers to images of people on whom neither the model nor a reference model was trained; None without any.
    """

    forget: ReferenceAnswers
    validation: ReferenceAnswers | None = None


def probabilities_of(logits: Tensor, *, multi_label: bool) -> Tensor:
    """Return the probabilities ``(..., C)`` of classes, or of labels."""
    return logits.sigmoid() if multi_label else logits.softmax(dim=-1)


def unlearning_targets(
    forget: ReferenceAnswers, unseen: ReferenceAnswers | None = None, unseen_now: Tensor | None = None
) -> Tensor:
    """Return the target probabilities ``(M, C)`` of forgotten images; NaN if none are known.

    A target is the mean of an image's OUT models, at a temperature. A model of half the people knows less than the
    model to unlearn from, and a mean of several models is less certain than one. People never trained on show how much
    less: the temperature brings the means on their images to the model's answers.

    Parameters
    ----------
    forget
        Answers to the M forgotten images.
    unseen, unseen_now
        Answers to images of people never trained on, and the probabilities ``(U, C)`` that the model to unlearn from
        gives them. Without them the temperature is 1.
    """
    targets = forget.mean_of_out()
    if unseen is None or unseen_now is None or not len(unseen):
        return targets
    temperature = temperature_between(unseen, unseen_now, models=max(1, int(forget.out.sum(dim=0).float().median())))
    return tempered(targets, temperature, multi_label=forget.multi_label)


def temperature_between(unseen: ReferenceAnswers, now: Tensor, models: int) -> float:
    """Return the temperature at which means of reference models are closest to a model, on people never trained on.

    Parameters
    ----------
    now
        The model's probabilities ``(U, C)`` for them.
    models
        Number of reference models in a mean. All such means are used, because single models differ by chance.
    """
    count, multi_label = len(unseen.logits), unseen.multi_label
    means = [unseen.of_models(chosen).mean_of_out() for chosen in combinations(range(count), min(models, count))]
    known = [(mean[rows], now[rows]) for mean in means if (rows := ~mean.isnan().any(dim=1)).any()]
    if not known:
        return 1.0

    def distance(temperature: float) -> float:
        total = 0.0
        for mean, said in known:
            logits = logits_of(mean, multi_label=multi_label) / temperature
            total += float(target_loss(logits, said, multi_label=multi_label))
        return total

    return float(min(TEMPERATURES, key=distance))


def tempered(probabilities: Tensor, temperature: float, *, multi_label: bool) -> Tensor:
    """Return probabilities ``(N, C)`` whose logits are divided by a temperature."""
    return probabilities_of(logits_of(probabilities, multi_label=multi_label) / temperature, multi_label=multi_label)


def logits_of(probabilities: Tensor, *, multi_label: bool) -> Tensor:
    """Return logits ``(N, C)`` that have these probabilities, of classes or of labels."""
    bounded = probabilities.clamp(_LEAST, 1.0 - _LEAST)
    return bounded.logit() if multi_label else bounded.log()


def target_loss(logits: Tensor, targets: Tensor, *, multi_label: bool) -> Tensor:
    """Return the divergence of a model from its targets, in nats: the mean over images of KL(targets || model).

    For labels it is the mean of their divergences, as in :func:`~dlfd_fleet.unlearning.training.classification_loss`.

    Parameters
    ----------
    logits
        Of classes or labels, ``(N, C)``.
    targets
        Probabilities ``(N, C)``.
    """
    if not multi_label:
        return functional.kl_div(functional.log_softmax(logits, dim=1), targets, reduction="batchmean")
    bounded = targets.clamp(_LEAST, 1.0 - _LEAST)
    entropy = functional.binary_cross_entropy(bounded, bounded)
    return functional.binary_cross_entropy_with_logits(logits, bounded) - entropy
