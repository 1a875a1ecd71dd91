"""The inputs of a data set: a tensor in memory, or rows of a file that are read batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlfd_fleet.data.decoded import MappedInputs


@dataclass(frozen=True, eq=False)
class StoredInputs:
    """A selection of inputs in a file; indexing reads them.

    Attributes
    ----------
    places
        Position of each input in the file, int64 ``(N,)``.
    """

    mapped: MappedInputs
    places: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        """Return inputs in memory, ``(M, *shape)``."""
        return torch.from_numpy(self.mapped.read(self.places[_as_index(rows)]))

    @property
    def shape(self) -> tuple[int, ...]:
        """``(N, *shape)``."""
        return (len(self), *self.mapped.shape)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the inputs."""
        return self[:0].dtype

    def select(self, rows: Tensor) -> StoredInputs:
        """Return other rows, without reading them."""
        return StoredInputs(self.mapped, self.places[_as_index(rows)])

    def numpy(self) -> NDArray[Any]:
        """Return all of them in memory."""
        return self.mapped.read(self.places)


Inputs = Tensor | StoredInputs


def select(inputs: Inputs, rows: Tensor) -> Inputs:
    """Return some rows of a data set's inputs; inputs in a file are not read."""
    return inputs.select(rows) if isinstance(inputs, StoredInputs) else inputs[rows]


def joined(parts: Sequence[Inputs]) -> Tensor:
    """Return the inputs of several data sets as one tensor, in memory."""
    return torch.cat([part[:] for part in parts])


def _as_index(rows: Tensor | slice) -> Any:
    return rows if isinstance(rows, slice) else rows.cpu().numpy()
