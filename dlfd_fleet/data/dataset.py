"""Decode the images of a manifest once, and select and augment them as tensors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from dlfd_fleet.data.classes import balanced_weights, labels_in, listed, unknown_label
from dlfd_fleet.data.decoded import DecodedRows, decode
from dlfd_fleet.data.identity import canonical
from dlfd_fleet.data.inputs import Inputs, StoredInputs, select
from dlfd_fleet.data.loaded import digest_of_key
from dlfd_fleet.data.manifest import Manifest, Row
from dlfd_fleet.exceptions import DataError
from dlfd_fleet.images import read_pixels
from dlfd_fleet.model_input import ModelInput
from dlfd_fleet.settings import AugmentationSettings


@dataclass(frozen=True)
class IdentityDataset:
    """Images with their people and labels.

    Attributes
    ----------
    images
        Inputs ``(N, *shape)``: uint8 pixels of images ``(N, C, H, W)``, or float32 numbers in [0, 1]; in memory, or in
        a site's file of decoded rows.
    labels
        Indices into ``classes``, int64 ``(N,)``; for labels, 0 and 1, uint8 ``(N, L)``.
    rows
        Rows of the manifest, one for each image.
    classes
        Names of the classes.
    """

    images: Inputs
    labels: Tensor
    rows: tuple[Row, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def identities(self) -> tuple[str, ...]:
        """The person of each image."""
        return tuple(row.identity for row in self.rows)

    @property
    def people(self) -> Tensor:
        """Person number of each image, int64 ``(N,)``, valid only in this set."""
        numbers = {name: number for number, name in enumerate(sorted(set(self.identities)))}
        return torch.tensor([numbers[name] for name in self.identities], dtype=torch.long)

    def class_images(self) -> Tensor:
        """Return how many images show each class, or label, int64 ``(C,)``."""
        if self.labels.ndim == 2:
            return self.labels.sum(dim=0, dtype=torch.int64)
        return torch.bincount(self.labels, minlength=len(self.classes))

    def class_weights(self) -> Tensor:
        """Return loss weights with which all classes count the same, ``(C,)``; for labels, both values, ``(L, 2)``."""
        if self.labels.ndim == 2:
            shown = self.class_images().tolist()
            return torch.tensor([balanced_weights((len(self) - count, count)) for count in shown])
        return torch.tensor(balanced_weights(self.class_images().tolist()))

    def select(self, indices: Sequence[int]) -> IdentityDataset:
        """Return the images of these indices, in their order."""
        chosen = torch.tensor(list(indices), dtype=torch.long)
        rows = tuple(self.rows[index] for index in indices)
        return IdentityDataset(select(self.images, chosen), self.labels[chosen], rows, self.classes)

    def of_people(self, identities: Collection[str]) -> IdentityDataset:
        """Return the images of these people, however their names are spelled."""
        people = {canonical(identity) for identity in identities}
        return self.select([index for index, row in enumerate(self.rows) if canonical(row.identity) in people])

    def without_people(self, identities: Collection[str]) -> IdentityDataset:
        """Return the images of everybody else."""
        people = {canonical(identity) for identity in identities}
        return self.select([index for index, row in enumerate(self.rows) if canonical(row.identity) not in people])

    def of_split(self, split: str) -> IdentityDataset:
        """Return the images of one split."""
        return self.select([index for index, row in enumerate(self.rows) if row.split == split])


def load_dataset(
    manifest: Manifest, *, model_input: ModelInput, classes: Sequence[str] | None = None, multi_label: bool = False
) -> IdentityDataset:
    """Decode every image of a manifest once, on all cores, into one tensor.

    Parameters
    ----------
    model_input
        Input of the model; images are resized and converted to it.
    classes
        Names of the classes in the model's order. Default: those of the manifest.
    multi_label
        Whether a cell may hold several labels instead of one class.

    Raises
    ------
    DataError
        If an image is missing or damaged, a label is none of the classes, or the model takes no grey or RGB images.
    """
    known = manifest.labels if multi_label else manifest.classes
    names = tuple(classes) if classes is not None else known
    labels = _labels(manifest, names, multi_label=multi_label)
    rows, places = manifest.rows, dict[str, list[int]]()
    keys = [(digest_of_key(row.image) or "") if manifest.loaded else str(number) for number, row in enumerate(rows)]
    for number, key in enumerate(keys):
        places.setdefault(key, []).append(number)
    images = np.empty((len(rows), *model_input.shape), model_input.dtype)
    for key, content in decode(manifest, rows, keys, model_input):
        images[places[key]] = content
    return IdentityDataset(torch.from_numpy(images), labels, manifest.rows, names)


def as_arrays(manifest: Manifest, model_input: ModelInput) -> dict[str, NDArray[Any]]:
    """Return rows as an NPZ file of :func:`~dlfd_fleet.data.loaders.npz` holds them: inputs, labels, people."""
    inputs = load_dataset(manifest, model_input=model_input).images[:].numpy()
    return {
        "inputs": inputs if model_input.is_image else model_input.on_device(inputs),
        "labels": np.array([row.label for row in manifest.rows]),
        "people": np.array([row.identity for row in manifest.rows]),
    }


def stored_dataset(
    manifest: Manifest,
    digests: Sequence[str | None],
    decoded: DecodedRows,
    classes: Sequence[str],
    *,
    multi_label: bool = False,
) -> IdentityDataset:
    """Return a site's images from a file into which they are decoded once, without loading them into memory.

    Parameters
    ----------
    digests
        SHA-256 of each row's file, or of a loader's row.

    Raises
    ------
    DataError
        If one of them cannot be decoded, a label is none of the classes, or the disk refuses.
    """
    labels = _labels(manifest, classes, multi_label=multi_label)
    return IdentityDataset(StoredInputs(*decoded.open(manifest, digests)), labels, manifest.rows, tuple(classes))


def _labels(manifest: Manifest, names: Sequence[str], *, multi_label: bool) -> Tensor:
    """Return the labels of every row, or raise a :class:`DataError` at the first that is none of the classes."""
    index = {canonical(name): number for number, name in enumerate(names)}
    for row in manifest.rows:
        if (unknown := unknown_label(row.label, index, multi_label=multi_label)) is not None:
            raise DataError(f"The image {row.image} has the label '{unknown}'; the classes are {listed(names)}.")
    if not multi_label:
        return torch.tensor([index[canonical(row.label)] for row in manifest.rows], dtype=torch.long)
    labels = torch.zeros((len(manifest.rows), len(names)), dtype=torch.uint8)
    for number, row in enumerate(manifest.rows):
        labels[number, [index[canonical(name)] for name in labels_in(row.label, multi_label=True)]] = 1
    return labels


def read_image(file: Path, model_input: ModelInput) -> Tensor:
    """Return :func:`~dlfd_fleet.images.read_pixels` of a file as a tensor, uint8 ``(C, H, W)``.

    Raises
    ------
    ImageError
        If the file is missing, damaged or no usable image.
    """
    return torch.from_numpy(read_pixels(file, model_input)).permute(2, 0, 1)


def augmentation(settings: AugmentationSettings) -> Callable[[Tensor, torch.Generator], Tensor] | None:
    """Return :func:`augment` under these settings, or None if they change nothing."""
    flip, shift, light = settings.flip, settings.shift, settings.light
    if not flip and not shift and not light:
        return None
    return lambda images, generator: augment(images, flip=flip, shift=shift, light=light, generator=generator)


def augment(images: Tensor, *, flip: float, shift: int, light: float, generator: torch.Generator) -> Tensor:
    """Return float images ``(N, 3, S, S)`` in [0, 1], each mirrored, shifted and lit at random.

    Parameters
    ----------
    flip
        Probability of mirroring an image left to right.
    shift
        Largest shift in each direction, pixels; edges are repeated.
    light
        Largest change of contrast, a fraction; brightness changes by at most half of it, pixel range.
    """
    count = len(images)
    mirrored = torch.rand(count, generator=generator) < flip
    images = torch.where(mirrored.to(images.device)[:, None, None, None], images.flip(3), images)
    if shift:
        images = _shifted(images, shift, generator)
    if light:
        contrast, brightness = (torch.rand(2, count, 1, 1, 1, generator=generator) * 2.0 - 1.0).to(
            images.device
        ) * light
        images = ((images - 0.5) * (1.0 + contrast) + 0.5 + brightness / 2.0).clamp_(0.0, 1.0)
    return images


def _shifted(images: Tensor, shift: int, generator: torch.Generator) -> Tensor:
    count, _, height, width = images.shape
    padded = functional.pad(images, (shift, shift, shift, shift), mode="replicate")
    offsets = torch.randint(0, 2 * shift + 1, (2, count), generator=generator).to(images.device)
    rows = offsets[0][:, None] + torch.arange(height, device=images.device)
    columns = offsets[1][:, None] + torch.arange(width, device=images.device)
    batch = torch.arange(count, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
