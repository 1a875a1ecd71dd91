"""Check whether training anew without people is exact: its starting weights must not have seen them.

The operator says that nobody of the fleet was in the training of frozen layers and starting weights. The coordinator
can disprove this if they come from a model of this fleet that it still has: also in half precision, and if a few
arrays or values differ.
"""

from __future__ import annotations

from collections.abc import Mapping

from safetensors import SafetensorError, safe_open
from torch import Tensor, isclose

from dlfd_fleet.federation.protocol.packing import Arrays
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.models import MODEL_FILE, ModelCard, build_empty, card_of, described, given_weights

_ROUNDED, _TINY = 2.0**-8, 1e-7
"""How far a value may be from another one, as a share of it, to be the same in half precision (bfloat16 has 8 bits)."""
_MOST_VALUES = 0.9


def why_not_exact(store: Store, card: ModelCard, arrays: Arrays, weights: str | None) -> str:
    """Return why training a model anew would not be exact; empty if nothing is known against it.

    Parameters
    ----------
    card, arrays
        The fleet's model, whose frozen layers stay.
    weights
        The starting weights (``model.weights``).

    Raises
    ------
    ModelFileError
        If the starting weights cannot be read.
    """
    frozen = card.frozen_of(arrays)
    if frozen and card.began_with is None:
        return "nobody knows what its frozen layers began with"
    if job := _trained_in(store, frozen):
        return f"its frozen layers are those of {job}, which were trained on this fleet's people"
    given = card.trained(given_weights(build_empty(card), card, weights))
    if job := _trained_in(store, given, described(card, weights) if given else None):
        return f"the starting weights (model.weights) are those of {job}, which were trained on this fleet's people"
    return ""


def _trained_in(store: Store, arrays: Mapping[str, Tensor], began_with: str | None = None) -> str:
    """Return the job of this fleet that has trained some of these arrays, and whose model has most of these.

    Parameters
    ----------
    began_with
        What the arrays are called: a job that began with the very same has not made them, however little it changed.
    """
    # Constants, such as a bias before it is trained, are alike by chance.
    telling = {name: array for name, array in arrays.items() if array.is_floating_point() and _varies(array)}
    for record in store.jobs():
        folder = store.folders.model(record.job)
        made = card_of(folder)
        if made is None or (began_with is not None and made.began_with == began_with):
            continue
        trained = [name for name in telling if not made.freezes(name)]
        try:
            with safe_open(folder / MODEL_FILE, "pt") as held:
                names = set(held.keys())
                alike = sum(name in names and _alike(held.get_tensor(name), telling[name]) for name in trained)
                if 2 * alike > len(trained):
                    return record.job
        except (OSError, SafetensorError):
            continue  # it was purged, or another job purges it now
    return ""


def _varies(array: Tensor) -> bool:
    return array.numel() > 1 and bool(array.min() < array.max())


def _alike(one: Tensor, other: Tensor) -> bool:
    """Tell whether most values of two arrays are the same, as a network loads them and up to half precision."""
    if one.shape != other.shape:
        return False
    near = isclose(one.float(), other.float(), rtol=_ROUNDED, atol=_TINY)
    return near.float().mean().item() >= _MOST_VALUES
