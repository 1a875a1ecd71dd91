"""Models that travel as differences from one that the other side holds: float16 halves the bytes, int8 quarters them.

The sender works on with what the difference stands for, not with what it rounded, so both sides have the same model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor

from dlfd_fleet.exceptions import MessageError
from dlfd_fleet.models import ModelCard
from dlfd_fleet.settings import Precision

_TYPES = {"float16": torch.float16, "int8": torch.int8}
_STEPS = 127
_SCALE = ":scale"
_Array = TypeVar("_Array")


def difference_of(model: Mapping[str, Tensor], base: Mapping[str, Tensor], precision: Precision) -> dict[str, Tensor]:
    """Return what is sent of a model to somebody who holds ``base``, in its order; with ``float32`` the model itself.

    A difference is small, so few bits keep its leading digits; the model itself would lose its last ones. ``int8`` has
    a scale of its own for each output channel. Vectors travel as they are: they are few, and a rounded difference can
    turn a small variance negative. What ``model`` does not hold is left out.
    """
    sent = dict[str, Tensor]()
    for name in base:  # Flower's LocalDpMod wants back the order that it saw
        if name not in model:
            continue
        array = model[name]
        if precision == "float32" or not _is_rounded(array):
            sent[name] = array
        elif precision == "float16":
            sent[name] = (array - base[name]).half()
        else:
            sent[name], sent[name + _SCALE] = _in_steps(array - base[name])
    return sent


def model_of(
    difference: Mapping[str, Tensor], base: Mapping[str, Tensor], precision: Precision, sender: str
) -> dict[str, Tensor]:
    """Return the model that :func:`difference_of` stands for, its arrays in the order of ``base``.

    Raises
    ------
    MessageError
        If an array of a difference is missing, or has another shape or type than it must have, naming the sender.
    """
    if precision == "float32":
        return dict(difference)
    model, left = dict[str, Tensor](), dict(difference)
    for name, reference in base.items():
        if not _is_rounded(reference):
            if name in left:
                model[name] = left.pop(name)
            continue
        change = _taken(left, name, reference.shape, _TYPES[precision], sender).to(reference.dtype)
        if precision == "int8":
            change *= _rows(_taken(left, name + _SCALE, reference.shape[:1], torch.float32, sender), reference)
        model[name] = reference + change
    return model | left


def without_frozen(sent: Mapping[str, _Array], card: ModelCard) -> dict[str, _Array]:
    """Return what is sent of a model, or of a difference, without the arrays that are frozen by its card."""
    return {name: array for name, array in sent.items() if not card.freezes(name.removesuffix(_SCALE))}


def _is_rounded(array: Tensor) -> bool:
    return array.is_floating_point() and array.dim() > 1


def _in_steps(change: Tensor) -> tuple[Tensor, Tensor]:
    scale = change.flatten(1).abs().amax(dim=1).float() / _STEPS
    steps = (change / _rows(scale.clamp_min(torch.finfo(torch.float32).tiny), change)).round_()
    return steps.clamp_(-_STEPS, _STEPS).to(torch.int8), scale


def _rows(scale: Tensor, array: Tensor) -> Tensor:
    return scale.to(array.dtype).view(-1, *(1,) * (array.dim() - 1))


def _taken(left: dict[str, Tensor], name: str, shape: torch.Size, kind: torch.dtype, sender: str) -> Tensor:
    array = left.pop(name, None)
    if array is None:
        raise MessageError(f"{sender} sent no difference of '{name}'; its update was refused.")
    if array.shape != shape or array.dtype != kind:
        raise MessageError(
            f"{sender} sent the difference of '{name}' as {array.dtype} {tuple(array.shape)}, not {kind} "
            f"{tuple(shape)}; its update was refused."
        )
    return array
