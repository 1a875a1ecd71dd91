"""The oracle of an export: the same images through torch and through ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from dlfd_fleet.exceptions import ExportError

BATCH = 32
SINGLE_IMAGES = 8


@torch.inference_mode()
def largest_difference(graph: nn.Module, content: bytes, images: Tensor, *, classes: int) -> float:
    """Return the largest difference of a probability between torch and ONNX Runtime on the CPU.

    Every image is compared in a batch, and the last few once more alone: a device looks at one image at a time.

    Parameters
    ----------
    graph
        Module in eval mode from ``images`` to probabilities ``(N, C)``.
    content
        Bytes of the ONNX file.
    images
        uint8 ``(N, S, S, 3)``, N > 0.
    classes
        C of the card.

    Raises
    ------
    ExportError
        If the model has another number of classes than its card.
    """
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    expected = torch.cat([graph(batch) for batch in torch.split(images, BATCH)]).numpy()
    if expected.shape[1] != classes:
        raise ExportError(f"The model has {expected.shape[1]} classes and its card names {classes}.")
    batched = _run(session, torch.split(images, BATCH))
    alone = _run(session, torch.split(images[-SINGLE_IMAGES:], 1))
    # np.max, unlike Python's max, keeps a NaN.
    return float(np.max([np.abs(batched - expected).max(), np.abs(alone - expected[-SINGLE_IMAGES:]).max()]))


def _run(session: onnxruntime.InferenceSession, batches: tuple[Tensor, ...]) -> np.ndarray:
    return np.concatenate([session.run(None, {"images": batch.numpy()})[0] for batch in batches])
