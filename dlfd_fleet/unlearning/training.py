"""Train and predict in the ordinary way: for the original, retrained models and repair."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from dlfd_fleet.models import FeatureClassifier, frozen_outputs_kept
from dlfd_fleet.settings import TrainingSettings, UnlearningSettings
from dlfd_fleet.unlearning.contract import Augment, LabelledImages, Loss, MakeOptimizer

_PREDICTION_BATCH = 64


def device_of(model: nn.Module) -> torch.device:
    """Return the device that a model's parameters are on."""
    return next(model.parameters()).device


def trained(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that take a gradient."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def optimizer_of(model: nn.Module, settings: TrainingSettings | UnlearningSettings, rate: float) -> torch.optim.SGD:
    """Return SGD over all trained parameters, with the momentum and weight decay of the settings."""
    return torch.optim.SGD(trained(model), rate, momentum=settings.momentum, weight_decay=settings.weight_decay)


@contextmanager
def restored_gradients(model: nn.Module) -> Iterator[None]:
    """Let a block choose which parameters are trained, and restore the choice afterwards."""
    before = [parameter.requires_grad for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, trained in zip(model.parameters(), before, strict=True):
            parameter.requires_grad_(trained)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Freeze all weights in a block."""
    with restored_gradients(model):
        model.requires_grad_(False)
        yield


@contextmanager
def moved_statistics(model: nn.Module, data: LabelledImages) -> Iterator[None]:
    """Let a block train, then change batch-norm statistics as much as those of these images changed.

    The statistics also describe images that are not here, such as those of other sites. The change is estimated on the
    images that are here: the difference of means, and the ratio of variances. Unchanged statistics would not fit the
    new weights; statistics of these images alone would be wrong for all others.
    """
    norms = [one for one in model.modules() if isinstance(one, _BatchNorm) and one.running_mean is not None]
    if not norms:
        yield
        return
    kept = [_statistics(norm) for norm in norms]
    recalibrate(model, data)
    before = [_statistics(norm) for norm in norms]
    for norm, (mean, variance) in zip(norms, kept, strict=True):
        _set_statistics(norm, mean, variance)
    yield
    recalibrate(model, data)
    for norm, (mean, variance), (old_mean, old_variance) in zip(norms, kept, before, strict=True):
        new_mean, new_variance = _statistics(norm)
        ratio = (new_variance + norm.eps) / (old_variance + norm.eps)
        _set_statistics(norm, mean + new_mean - old_mean, variance * ratio)


def _statistics(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Return copies of the running mean and variance of a batch norm that has them."""
    mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    return mean.clone(), variance.clone()


def _set_statistics(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    norm.get_buffer("running_mean").copy_(mean)
    norm.get_buffer("running_var").copy_(variance)


def classification_loss(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean loss of logits ``(N, C)``, in nats.

    Parameters
    ----------
    labels
        Class indices ``(N,)`` for cross-entropy. For labels, 0 and 1, ``(N, C)``, for binary cross-entropy averaged
        over labels.
    weights
        Weights of classes or labels, ``(C,)``, or of both values of each label (0, 1), ``(C, 2)``. Default: 1.
    """
    if labels.ndim == 2:
        if weights is not None and weights.ndim == 2:
            weights = torch.where(labels.bool(), weights[:, 1], weights[:, 0])
        return functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), weight=weights)
    return functional.cross_entropy(logits, labels, weight=weights)


def fit(
    model: nn.Module,
    train: LabelledImages,
    settings: TrainingSettings,
    *,
    epochs: int,
    learning_rate: float,
    seed: int,
    cosine: bool = False,
    class_weights: Tensor | None = None,
    augment: Augment | None = None,
    loss: Loss | None = None,
    optimizer: MakeOptimizer | None = None,
) -> float:
    """Train in place, and return the mean loss of the last epoch, in nats.

    Batch norm and dropout are in train mode. The model ends in eval mode. Without ``augment``, outputs of frozen layers
    are computed once (:func:`~dlfd_fleet.models.frozen_outputs_kept`).

    Parameters
    ----------
    cosine
        Whether the learning rate falls to 0 over the steps, along half a cosine (Loshchilov & Hutter 2017).
    class_weights
        Weights in the loss, as in :func:`classification_loss`. Default: 1.
    augment
        Changes each batch before training.
    loss
        Training loss. Default: :func:`classification_loss` under the class weights.
    optimizer
        Factory of the optimizer. Default: SGD with the settings' momentum and weight decay.
    """
    if class_weights is not None:
        class_weights = class_weights.to(device_of(model))
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # dropout
    own = optimizer(trained(model), learning_rate) if optimizer else None
    steps = own or optimizer_of(model, settings, learning_rate)
    schedule = None
    if cosine:
        count = epochs * math.ceil(len(train) / settings.batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(steps, count)
    mean_loss = 0.0
    model.train()
    with frozen_outputs_kept(model, len(train), unchanged=augment is None) as begin:
        for _ in range(epochs):
            total = torch.zeros((), device=device_of(model))
            for rows in train.batches(settings.batch_size, generator):
                images, labels = train.batch(rows, device_of(model))
                if augment is not None:
                    images = augment(images, generator)
                begin(rows)
                logits = model(images)
                cost = loss(logits, labels) if loss else classification_loss(logits, labels, class_weights)
                steps.zero_grad(set_to_none=True)
                torch.autograd.backward(cost)
                steps.step()
                if schedule is not None:
                    schedule.step()
                total += cost.detach() * len(rows)
            mean_loss = float(total) / len(train)
    model.eval()
    return mean_loss


def predict_probabilities(model: FeatureClassifier, data: LabelledImages) -> NDArray[np.float32]:
    """Return probabilities ``(N, C)`` of classes or labels, in eval mode; the model's mode is restored."""
    return predict_features_and_probabilities(model, data)[1]


@torch.inference_mode()
def predict_features_and_probabilities(
    model: FeatureClassifier, data: LabelledImages
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return features ``(N, F)`` and probabilities ``(N, C)`` of classes, or of labels, in eval mode, from one pass."""
    training, device = model.training, device_of(model)
    model.eval()
    features, probabilities = [], []
    for rows in torch.split(torch.arange(len(data)), _PREDICTION_BATCH):
        seen, logits = model.features_and_logits(data.batch(rows, device)[0])
        features.append(seen.float().cpu())
        logits = logits.float()
        probabilities.append((logits.sigmoid() if data.multi_label else logits.softmax(dim=1)).cpu())
    model.train(training)
    return torch.cat(features).numpy(), torch.cat(probabilities).numpy()


@torch.inference_mode()
def predict_logits(model: FeatureClassifier, data: LabelledImages) -> NDArray[np.float32]:
    """Return logits ``(N, C)``, in eval mode; the model's mode is restored."""
    training, device = model.training, device_of(model)
    model.eval()
    parts = torch.split(torch.arange(len(data)), _PREDICTION_BATCH)
    logits = [model(data.batch(rows, device)[0]).float().cpu() for rows in parts]
    model.train(training)
    return torch.cat(logits).numpy()


@torch.no_grad()
def recalibrate(model: nn.Module, data: LabelledImages) -> None:
    """Compute batch-norm statistics again from all images; the model ends in eval mode.

    Every batch counts the same, so batches are mixed and their sizes differ by at most one. With a single image nothing
    changes. Frozen layers keep their statistics.
    """
    device, parts = device_of(model), math.ceil(len(data) / _PREDICTION_BATCH)
    model.train()
    # What torch's update_bn does, which would take the statistics of frozen layers anew, too.
    momenta = {one: one.momentum for one in model.modules() if isinstance(one, _BatchNorm) and one.training}
    if len(data) > 1 and momenta:
        for norm in momenta:
            norm.reset_running_stats()
            norm.momentum = None
        rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
        for part in torch.tensor_split(rows, parts):
            model(data.batch(part, device)[0])
        for norm, momentum in momenta.items():
            norm.momentum = momentum
    model.eval()
