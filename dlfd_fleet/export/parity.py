"""Compare torch and ONNX Runtime on the same images."""

from __future__ import annotations

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dlfd_fleet.answers import decided
from dlfd_fleet.exceptions import ExportError
from dlfd_fleet.formats import Parity
from dlfd_fleet.models import ModelCard

BATCH = 32
SINGLE_IMAGES = 8
RANDOM_IMAGES = 200


@torch.inference_mode()
def compare(
    graph: nn.Module,
    session: onnxruntime.InferenceSession,
    images: Tensor,
    *,
    card: ModelCard,
    labels: Tensor | None = None,
) -> Parity:
    """Compare torch and ONNX Runtime on the CPU, on the given images and on 200 random ones.

    Every image is compared in a batch, and the last few also alone, because devices predict single images.

    Parameters
    ----------
    graph
        Module in eval mode from a device's inputs to probabilities ``(N, C)``.
    session
        The ONNX file.
    images
        Of a data set, ``(N, *shape)``; N may be 0.
    card
        What the model takes, and its classes.
    labels
        Class numbers ``(N,)``, or which labels apply ``(N, L)``, to compare accuracies too.

    Raises
    ------
    ExportError
        If the model has another number of classes than its card.
    """
    given = len(images)
    given_inputs = card.input.on_device(images.cpu().numpy())
    compared = torch.from_numpy(np.concatenate([given_inputs, card.input.random(RANDOM_IMAGES)]))
    expected = torch.cat([graph(batch) for batch in torch.split(compared, BATCH)]).numpy()
    classes = len(card.classes)
    if expected.shape[1] != classes:
        raise ExportError(f"The model has {expected.shape[1]} classes and its card names {classes}.")
    name = card.input.tensor_name
    batched = _run(session, name, torch.split(compared, BATCH))
    alone = _run(session, name, torch.split(compared[-SINGLE_IMAGES:], 1))
    said, should = (decided(one[:given], multi_label=card.multi_label) for one in (batched, expected))
    truth = None if labels is None or not given else labels.numpy()
    return Parity(
        # np.max, unlike Python's max, keeps a NaN.
        max_abs_difference=float(
            np.max([np.abs(batched - expected).max(), np.abs(alone - expected[-SINGLE_IMAGES:]).max()])
        ),
        compared_images=len(compared),
        agreement=float((said == should).mean()) if given else None,
        accuracy=None if truth is None else float((said == truth).mean()),
        torch_accuracy=None if truth is None else float((should == truth).mean()),
    )


def _run(session: onnxruntime.InferenceSession, name: str, batches: tuple[Tensor, ...]) -> NDArray[np.float32]:
    return np.concatenate([session.run(None, {name: batch.numpy()})[0] for batch in batches])
