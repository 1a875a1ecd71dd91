"""Turn a classifier's probabilities into answers: one class for each input, or the labels that apply."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from typing import Any

import numpy as np
from numpy.typing import NDArray

SEPARATOR, NO_LABEL = ";", "none"
"""The separator of labels in manifests and answers, and the word for no label."""
_APPLIES = 0.5


def decided(probabilities: NDArray[np.floating], *, multi_label: bool) -> NDArray[Any]:
    """Return the class of each input ``(N,)``, or which labels apply ``(N, L)``: those of 0.5 and more."""
    said: NDArray[Any] = probabilities >= _APPLIES if multi_label else probabilities.argmax(axis=1)
    return said


def agreement(one: NDArray[np.floating], other: NDArray[np.floating], *, multi_label: bool) -> float:
    """Return the share of inputs of which two models' probabilities ``(N, C)`` say the same class; or of labels."""
    return float((decided(one, multi_label=multi_label) == decided(other, multi_label=multi_label)).mean())


def named(probabilities: NDArray[np.floating], classes: Sequence[str], *, multi_label: bool) -> list[str]:
    """Return the name of each input's class; of labels, those that apply.

    Examples
    --------
    >>> import numpy as np
    >>> named(np.array([[0.2, 0.8]]), ["hat", "glasses"], multi_label=False)
    ['glasses']
    >>> named(np.array([[0.7, 0.8], [0.1, 0.2]]), ["hat", "glasses"], multi_label=True)
    ['hat;glasses', 'none']
    """
    said = decided(probabilities, multi_label=multi_label)
    if not multi_label:
        return [classes[number] for number in said.tolist()]
    return [SEPARATOR.join(compress(classes, row)) or NO_LABEL for row in said.tolist()]
