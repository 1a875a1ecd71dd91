"""Describe the input of a model for sites, devices and files: image pixels, or numbers.

Inside, between a site's data and a model, every value is in [0, 1], so that a bound on a change is a fraction of the
range whatever the model takes. Devices see pixels as bytes, and numbers in the range that the model declares.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

_MOST_DIMENSIONS = 4
_LARGEST_SIDE = 10**6
_MOST_VALUES = 10**8
_IMAGE_DIMENSIONS = 3
_PLAIN_CHANNELS = (1, 3)

Value = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
Fit = Literal["resize", "crop"]
"""How an image of another aspect ratio is fitted: resized, or scaled to cover the input and cropped."""


class ModelInput(BaseModel):
    """One input of a model.

    Attributes
    ----------
    shape
        ``(C, H, W)`` of an image, pixels; any other shape of numbers. Without the batch.
    kind
        Three dimensions are an image unless this says that they are numbers.
    low, high
        Range of the values that the model itself takes.
    fit
        How image files are brought to the shape.

    Examples
    --------
    >>> ModelInput(shape=(3, 48, 64)).device_shape
    (48, 64, 3)
    >>> ModelInput(shape=(30,), low=-4.0, high=4.0).kind
    'numbers'
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    shape: Annotated[
        tuple[Annotated[int, Field(ge=1, le=_LARGEST_SIDE)], ...], Field(min_length=1, max_length=_MOST_DIMENSIONS)
    ]
    kind: Literal["image", "numbers"] = Field(
        default_factory=lambda given: "image" if len(given.get("shape", ())) == _IMAGE_DIMENSIONS else "numbers"
    )
    low: Value = 0.0
    high: Value = 1.0
    fit: Fit = "resize"

    @model_validator(mode="after")
    def _fits_together(self) -> ModelInput:
        if math.prod(self.shape) > _MOST_VALUES:
            raise ValueError(f"an input of {math.prod(self.shape):,} values is more than {_MOST_VALUES:,}")
        if self.kind == "image" and len(self.shape) != _IMAGE_DIMENSIONS:
            raise ValueError(f"an image has channels, height and width, and {self.shape} has not")
        if not self.low < self.high:
            raise ValueError(f"values go from low to high, and {self.low:g} is not under {self.high:g}")
        return self

    @property
    def is_image(self) -> bool:
        """Whether devices take it as pixels."""
        return self.kind == "image"

    @property
    def of_files(self) -> bool:
        """Whether image files can be read for it."""
        return self.is_image and self.shape[0] in _PLAIN_CHANNELS

    @property
    def device_shape(self) -> tuple[int, ...]:
        """One input on a device: ``(H, W, C)`` of an image, or the shape of the numbers."""
        return (*self.shape[1:], self.shape[0]) if self.is_image else self.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8 pixels; float32 numbers, from low to high on a device and in [0, 1] in a data set."""
        return np.dtype(np.uint8 if self.is_image else np.float32)

    def why_not(self, inputs: NDArray[Any]) -> str | None:
        """Return why an array is no batch of a device's inputs, in words; None if it is one."""
        if inputs.dtype != self.dtype or inputs.shape[1:] != self.device_shape:
            shape = ", ".join(map(str, ("N", *self.device_shape)))
            what = "images" if self.is_image else "inputs"
            return f"the {what} are {inputs.dtype} of shape {inputs.shape}: give {self.dtype} of shape ({shape})"
        if self.is_image or not inputs.size:
            return None
        least, most = float(inputs.min()), float(inputs.max())
        if np.float32(self.low) <= least and most <= np.float32(self.high):  # a NaN is in no range
            return None
        return f"the inputs go from {least:g} to {most:g}, and the model takes {self.low:g} to {self.high:g}"

    def batch(self, given: Any) -> NDArray[Any]:
        """Return a batch of a device's inputs, which are given as JSON or an array holds them: one, or several.

        Raises
        ------
        ValueError
            If they are none; the text names the first one that is wrong.

        Examples
        --------
        >>> ModelInput(shape=(2,), high=9.0).batch([1, 2.5])
        array([[1. , 2.5]], dtype=float32)
        """
        one, depth = "image" if self.is_image else "row", _depth(given)
        if not depth or not len(given):
            raise ValueError(f"there is no {one} of {self.sentence()}")
        several = [given] if depth == len(self.shape) else given
        return np.stack([self._checked(f"{one} {number}", each) for number, each in enumerate(several, start=1)])

    def _checked(self, name: str, given: Any) -> NDArray[Any]:
        """Return one of a device's inputs; a :class:`ValueError` says what is wrong with it."""
        kinds, what = ("iu", "whole numbers from 0 to 255") if self.is_image else ("fiub", "numbers")
        try:
            values = np.asarray(given)
        except ValueError as error:  # of lists that differ in length
            raise ValueError(f"{name} has not the shape {self.device_shape}") from error
        if values.shape != self.device_shape:
            raise ValueError(f"{name} has the shape {values.shape}, and the model takes {self.device_shape}")
        if values.dtype.kind not in kinds:
            raise ValueError(f"{name} does not hold {what}")
        low, high = (0, 255) if self.is_image else (self.low, self.high)
        with np.errstate(over="ignore"):
            rounded = values if self.is_image else values.astype(np.float32)
        inside = (self.dtype.type(low) <= rounded) & (rounded <= self.dtype.type(high))  # a NaN is in no range
        if not inside.all():
            raise ValueError(
                f"{name}: the value {values[~inside].flat[0]:g} is outside the range from {low:g} to {high:g}"
            )
        return rounded.astype(self.dtype)

    @property
    def tensor_name(self) -> str:
        """Name of the input tensor in a model's file."""
        return "images" if self.is_image else "inputs"

    def on_device(self, inputs: NDArray[Any]) -> NDArray[Any]:
        """Return a data set's inputs ``(N, *shape)``, uint8 pixels or numbers in [0, 1], as a device has them."""
        if self.is_image:
            return np.ascontiguousarray(inputs.transpose(0, 2, 3, 1))
        values = self.low + inputs.astype(np.float64) * (self.high - self.low)
        return values.astype(np.float32).clip(np.float32(self.low), np.float32(self.high))

    def random(self, count: int, seed: int = 0) -> NDArray[Any]:
        """Return a batch of a device's inputs drawn at random."""
        generator, shape = np.random.default_rng(seed), (count, *self.device_shape)
        if self.is_image:
            return generator.integers(0, 256, shape, dtype=np.uint8)
        return self.on_device(generator.random(shape, dtype=np.float32))

    def sentence(self) -> str:
        """Return a short description."""
        if self.is_image:
            channels, height, width = self.shape
            colours = {1: " grey", 3: ""}.get(channels, f" x {channels}")
            cropped = ", cropped" if self.fit == "crop" else ""
            return f"{height} x {width}{colours} pixels{cropped}"
        return f"{' x '.join(map(str, self.shape))} numbers from {self.low:g} to {self.high:g}"


def _depth(given: Any) -> int:
    """Return how many dimensions nested lists have, down the first of each, or an array; 0 for anything else."""
    depth = 0
    while isinstance(given, list | tuple):
        depth, given = depth + 1, given[0] if given else None
    return depth + (given.ndim if isinstance(given, np.ndarray) else 0)


def image_input(
    size: int | tuple[int, int], channels: int = 3, fit: Fit = "resize", low: float = 0.0, high: float = 1.0
) -> ModelInput:
    """Return the input of a model of images.

    Parameters
    ----------
    size
        Side of a square, or height and width, pixels.
    """
    height, width = (size, size) if isinstance(size, int) else size
    return ModelInput(shape=(channels, height, width), fit=fit, low=low, high=high)
