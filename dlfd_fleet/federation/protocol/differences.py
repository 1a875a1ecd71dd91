"""Send models as differences from one that the receiver holds, in float16 (half the bytes) or int8 (a quarter).

The sender continues with the model that the rounded difference gives, so both sides have the same model.
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
    """Return the arrays to send to a receiver that holds ``base``, in its order; with ``float32`` the model itself.

    Few bits keep the leading digits of a small difference. ``int8`` has a scale for each output channel. Vectors are
    sent exactly: they are small, and rounding can make a small variance negative. Arrays that ``model`` does not have
    are left out.
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
    """Return the model of a :func:`difference_of`, with arrays in the order of ``base``.

    Raises
    ------
    MessageError
        If an array is missing or has a wrong shape or type; the text names the sender.
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
    """Return the arrays of a model or difference without those that its card freezes."""
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
