"""Whether reference models are right about people never trained on less often than a model is, beyond chance.

What an erasure aims at is what models say that never saw a person. Where a half of the people is too few to learn from,
that is wrong more often than the model is about strangers, and retained people pay for it.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_ONE_SIDED = 1.645  # standard errors: chance alone is beyond them once in twenty times


def least_drop(model: Floats, references: Floats, person: NDArray[np.int64]) -> float:
    """Return the least by which reference models are right less often than a model, allowing for chance.

    It is the lower end of a one-sided 95% interval of the mean over people. One person more is counted, about whom
    both are right equally often: else two people would be beyond chance who happen to differ by the same.

    Parameters
    ----------
    model, references
        How much each says right of each image ``(N,)``, from 0 to 1.
    person
        Whose image it is ``(N,)``.
    """
    _, index = np.unique(person, return_inverse=True)
    drops = np.bincount(index, weights=model - references) / np.bincount(index)
    drops = np.append(drops, 0.0)
    if len(drops) < 2:
        return 0.0
    return float(drops.mean() - _ONE_SIDED * drops.std(ddof=1) / math.sqrt(len(drops)))
