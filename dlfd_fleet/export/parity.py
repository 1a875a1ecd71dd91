"""The oracle of an export: the same images through torch and through ONNX Runtime."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dlfd_fleet.exceptions import ExportError
from dlfd_fleet.settings import ExportSettings, Format

BATCH = 32
SINGLE_IMAGES = 8
RANDOM_IMAGES = 200
_ROUNDING = 1e-9  # 0.84 - 0.82 is a little over 0.02


@dataclass(frozen=True)
class Parity:
    """How near a file is to torch.

    Attributes
    ----------
    max_abs_difference
        Largest difference of a probability.
    compared_images
        Images behind that number: the given ones and 200 random ones.
    agreement
        Share of the given images of which both say the same class; None if none was given.
    accuracy, torch_accuracy
        Shares of the given images that the file, and torch, name rightly; None without labels.
    """

    max_abs_difference: float
    compared_images: int
    agreement: float | None
    accuracy: float | None
    torch_accuracy: float | None

    def why_not(self, form: Format, settings: ExportSettings) -> str | None:
        """Return why a file of this format is not near enough to torch, or None if it is."""
        if form == "int8":
            if self.agreement is not None and self.agreement < settings.int8_agreement:
                return (
                    f"names the class that torch names on {self.agreement:.3f} of the images, less than "
                    f"{settings.int8_agreement:.3f} (export.int8_agreement)"
                )
            drop = (self.torch_accuracy or 0.0) - (self.accuracy or 0.0)
            if drop > settings.int8_accuracy_drop + _ROUNDING:
                return (
                    f"is less accurate than torch by {drop:.3f}, more than {settings.int8_accuracy_drop:.3f} "
                    "(export.int8_accuracy_drop)"
                )
            # Rounding moves every probability; a NaN is no rounding.
            return None if np.isfinite(self.max_abs_difference) else "gives probabilities that are no numbers"
        name = "fp16_tolerance" if form == "fp16" else "parity_tolerance"
        tolerance: float = getattr(settings, name)
        # Written so that a NaN, which is under no tolerance, fails too.
        if self.max_abs_difference <= tolerance:
            return None
        return (
            f"gives a probability that differs from torch by {self.max_abs_difference:.3g}, more than the tolerance "
            f"{tolerance:.3g} (export.{name})"
        )


@torch.inference_mode()
def compare(
    graph: nn.Module,
    session: onnxruntime.InferenceSession,
    images: Tensor,
    *,
    classes: int,
    labels: Tensor | None = None,
) -> Parity:
    """Compare torch and ONNX Runtime on the CPU, on the given images and on 200 random ones.

    Every image is compared in a batch, and the last few once more alone: a device predicts one image at a time.

    Parameters
    ----------
    graph
        Module in eval mode from ``images`` to probabilities ``(N, C)``.
    session
        The ONNX file.
    images
        uint8 ``(N, 3, S, S)``; N may be 0.
    classes
        C of the card.
    labels
        Class numbers ``(N,)``, to compare accuracies too.

    Raises
    ------
    ExportError
        If the model has another number of classes than its card.
    """
    given = len(images)
    compared = torch.cat([images.cpu(), _random_images(images.shape[-1])]).permute(0, 2, 3, 1).contiguous()
    expected = torch.cat([graph(batch) for batch in torch.split(compared, BATCH)]).numpy()
    if expected.shape[1] != classes:
        raise ExportError(f"The model has {expected.shape[1]} classes and its card names {classes}.")
    batched = _run(session, torch.split(compared, BATCH))
    alone = _run(session, torch.split(compared[-SINGLE_IMAGES:], 1))
    said, should = batched[:given].argmax(axis=1), expected[:given].argmax(axis=1)
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


def _random_images(size: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (RANDOM_IMAGES, 3, size, size), generator=generator, dtype=torch.uint8)


def _run(session: onnxruntime.InferenceSession, batches: tuple[Tensor, ...]) -> NDArray[np.float32]:
    return np.concatenate([session.run(None, {"images": batch.numpy()})[0] for batch in batches])
