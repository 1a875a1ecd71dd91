"""What reference models say of images: half of them never saw the person of any one."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ReferenceAnswers:
    """What K reference models say of N images.

    Attributes
    ----------
    logits
        float32 (K, N, C); NaN in every class where a model's answer to an image is not known.
    trained
        bool (K, N): whether a model was trained on the image's person.
    """

    logits: Tensor
    trained: Tensor
