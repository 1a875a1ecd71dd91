"""People who are drawn: a few rows of numbers each, around a point of their own, which a small network can learn.

The rows of a person are the same whenever they are drawn, so nothing of them has to be kept to know them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from dlfd_fleet.data.loaders import write_npz

NUMBERS, CLASSES, ROWS = 16, ("a", "b", "c"), 4
LOW, HIGH = -6.0, 6.0
NETWORK = "dlfd_fleet.bench.life.people:network"
_CENTRES, _OF_A_PERSON, _OF_A_ROW = 0.6, 1.0, 0.4


def network() -> nn.Module:
    """Return a small network of these numbers."""
    return nn.Sequential(nn.Linear(NUMBERS, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, len(CLASSES)))


def rows_of(people: Sequence[str], seed: int) -> dict[str, NDArray[np.generic]]:
    """Return the rows of people, as an NPZ file has them; a person's name tells which point is theirs."""
    centres = np.random.default_rng(seed).normal(0.0, _CENTRES, (len(CLASSES), NUMBERS))
    inputs, labels, names = list[NDArray[np.float64]](), list[str](), list[str]()
    for person in people:
        own = np.random.default_rng([seed, *person.encode()])
        label = int(own.integers(len(CLASSES)))
        point = centres[label] + own.normal(0.0, _OF_A_PERSON, NUMBERS)
        inputs.append(point + own.normal(0.0, _OF_A_ROW, (ROWS, NUMBERS)))
        labels += [CLASSES[label]] * ROWS
        names += [person] * ROWS
    values = np.concatenate(inputs).clip(LOW, HIGH).astype(np.float32)
    return {"inputs": values, "labels": np.array(labels), "people": np.array(names)}


def add_rows(file: Path, arrays: dict[str, NDArray[np.generic]]) -> None:
    """Add rows to an NPZ file."""
    with np.load(file, allow_pickle=False) as opened:
        known = {name: opened[name] for name in opened.files}
    write_npz(file, {name: np.concatenate([known[name], arrays[name]]) for name in known})
