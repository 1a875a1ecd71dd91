"""Define what a loader returns: a data set and the person of each row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class MapStyle(Protocol):
    """A map-style data set, such as those of torch, or of Hugging Face from disk."""

    def __len__(self) -> int:
        """Return how many rows it has."""

    def __getitem__(self, index: int, /) -> Any:
        """Return a row: a tuple ``(input, label)``, or a mapping that has both."""


@dataclass(frozen=True)
class PersonDataset:
    """A data set with people.

    Attributes
    ----------
    dataset
        Rows of inputs and labels. An input is a PIL image or the bytes of an image file, which are converted to the
        model's size and colours. Or it is an array or tensor of the model's shape: uint8 pixels ``(C, H, W)``, or
        numbers in the model's range.
    people
        The person of each row.
    splits
        The split of each row: ``train``, ``validation``, ``test`` or empty. Without it people are assigned to splits.
    classes
        Names of the classes, in the order of the labels if these are indices.
    delete
        Deletes rows by index from your storage; the other rows keep their order. Without it, a purge reports that the
        storage still holds them.
    input_name, label_name
        Columns of input and label, if rows are mappings.

    Examples
    --------
    >>> PersonDataset([([0.5, 0.1], "ill"), ([0.3, 0.2], "well")], people=["anna", "bert"]).people[1]
    'bert'
    """

    dataset: MapStyle
    people: Sequence[str]
    splits: Sequence[str] | None = None
    classes: Sequence[str] | None = None
    delete: Callable[[Sequence[int]], None] | None = None
    input_name: str = "image"
    label_name: str = "label"
