"""Ordinary training and prediction: the original model, the retrained one, and repair after unlearning."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import update_bn

from dlfd_fleet.settings import TrainingSettings, UnlearningSettings
from dlfd_fleet.unlearning.contract import Augment, LabelledImages

_PREDICTION_BATCH = 128


def device_of(model: nn.Module) -> torch.device:
    """Return the device that a model's parameters are on."""
    return next(model.parameters()).device


def optimizer_of(model: nn.Module, settings: TrainingSettings | UnlearningSettings, rate: float) -> torch.optim.SGD:
    """Return SGD with the momentum and weight decay of the settings."""
    return torch.optim.SGD(model.parameters(), rate, momentum=settings.momentum, weight_decay=settings.weight_decay)


def fit(
    model: nn.Module,
    train: LabelledImages,
    settings: TrainingSettings,
    *,
    epochs: int,
    learning_rate: float,
    seed: int,
    class_weights: Tensor | None = None,
    augment: Augment | None = None,
) -> float:
    """Train in place with cross-entropy; return the mean loss of the last epoch, nats.

    Batch normalisation and dropout are in train mode; the model is left in eval mode.

    Parameters
    ----------
    class_weights
        Weight of each class in the loss, ``(C,)``; all 1 when omitted.
    augment
        Changes each batch before it is seen.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # dropout
    optimizer = optimizer_of(model, settings, learning_rate)
    mean_loss = 0.0
    model.train()
    for _ in range(epochs):
        total = torch.zeros((), device=device_of(model))
        for rows in train.batches(settings.batch_size, generator):
            images, labels = train.batch(rows, device_of(model))
            if augment is not None:
                images = augment(images, generator)
            loss = functional.cross_entropy(model(images), labels, weight=class_weights)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
            total += loss.detach() * len(rows)
        mean_loss = float(total) / len(train)
    model.eval()
    return mean_loss


@torch.inference_mode()
def predict_probabilities(model: nn.Module, data: LabelledImages) -> NDArray[np.float32]:
    """Return class probabilities ``(N, C)`` in eval mode; the model's mode is left as it was."""
    training = model.training
    model.eval()
    device = device_of(model)
    parts = [
        model(data.batch(rows, device)[0]).softmax(dim=1).cpu()
        for rows in torch.split(torch.arange(len(data)), _PREDICTION_BATCH)
    ]
    model.train(training)
    return torch.cat(parts).numpy()


def recalibrate(model: nn.Module, data: LabelledImages) -> None:
    """Take batch-norm statistics anew, averaged over all images; the model is left in eval mode."""
    device = device_of(model)
    batches = (data.batch(rows, device)[0] for rows in torch.split(torch.arange(len(data)), _PREDICTION_BATCH))
    update_bn(batches, model)
    model.eval()
