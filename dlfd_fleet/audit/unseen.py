"""Test whether reference models are right less often than a model about people never trained on.

An erasure aims at the answers of models that never saw a person. If half of the people are too few to learn from, these
answers are often wrong, and retained people lose accuracy.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_ONE_SIDED = 1.645  # standard errors: chance alone is beyond them once in twenty times


def least_drop(model: Floats, references: Floats, person: NDArray[np.int64]) -> float:
    """Return the lower bound of the drop in accuracy from a model to its reference models.

    It is the lower end of a one-sided 95% interval of the mean over people. One more person without a drop is counted,
    so that two people with equal drops are not significant.

    Parameters
    ----------
    model, references
        How much of each image ``(N,)`` each predicts right, from 0 to 1.
    person
        Person of each image ``(N,)``.
    """
    _, index = np.unique(person, return_inverse=True)
    drops = np.bincount(index, weights=model - references) / np.bincount(index)
    drops = np.append(drops, 0.0)
    if len(drops) < 2:
        return 0.0
    return float(drops.mean() - _ONE_SIDED * drops.std(ddof=1) / math.sqrt(len(drops)))
