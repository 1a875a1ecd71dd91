"""Start training from a file of arrays, or from torchvision's weights."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dlfd_fleet.components import lies_in
from dlfd_fleet.exceptions import ModelFileError
from dlfd_fleet.models.card import ModelCard
from dlfd_fleet.models.classifiers import FaceClassifier, FeatureClassifier, WrappedClassifier
from dlfd_fleet.models.networks import build
from dlfd_fleet.plain_text import visible
from dlfd_fleet.settings import TORCHVISION_WEIGHTS

_LONGEST_NAME = 80
# Where training programs keep the state dict beside other things.
_STATE_KEYS = ("state_dict", "model_state_dict", "model")


def start(card: ModelCard, weights: str | None) -> FeatureClassifier:
    """Build the network of a card with fresh weights, and load starting weights over them.

    Parameters
    ----------
    weights
        A ``.safetensors`` file, one that ``torch.save(model.state_dict(), FILE)`` has written, or a name of
        torchvision's weights, such as ``DEFAULT`` or ``ResNet18_Weights.IMAGENET1K_V1``. Names of arrays are those of
        the network; for a registered backbone also torchvision's own, whose classifier is then left out. The last
        linear layer, or the head of a registered backbone, may be missing, and begins fresh.

    Raises
    ------
    ModelFileError
        If the weights cannot be read or do not fit; the first array that does not fit is named.
    """
    model = build(card)
    model.network.load_state_dict(given_weights(model, card, weights), strict=False)
    return model


def given_weights(model: FeatureClassifier, card: ModelCard, weights: str | None) -> dict[str, Tensor]:
    """Return the arrays of starting weights, under the network's names; empty without such weights.

    Raises
    ------
    ModelFileError
        As of :func:`start`.
    """
    if weights is None:
        return {}
    name = re.fullmatch(TORCHVISION_WEIGHTS, weights)
    given = _of_torchvision(card, *name.groups()) if name else _of_file(Path(weights))
    if isinstance(model, FaceClassifier):
        given = _in_backbone(given, model)
    if reason := _why_not_of(model, card, given):
        raise ModelFileError(f"The starting weights {weights} (model.weights) do not fit: {reason}.")
    return dict(given)


def described(card: ModelCard, weights: str | None) -> str:
    """Describe starting weights: a file by its name and SHA-256, torchvision's weights by their name.

    Raises
    ------
    ModelFileError
        If there are no such weights.
    """
    if weights is None:
        return f"what {card.architecture} makes" if card.of_factory else "random weights"
    if name := re.fullmatch(TORCHVISION_WEIGHTS, weights):
        return f"torchvision's {_torchvision_weights(card, *name.groups())}"
    try:
        with Path(weights).open("rb") as content:
            sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise ModelFileError(f"Cannot read the starting weights {weights} (model.weights): {error}.") from error
    return f"the file {visible(Path(weights).name, _LONGEST_NAME)} (SHA-256 {sha256})"


def normalised(card: ModelCard, weights: str | None) -> ModelCard:
    """Return a card that normalises inputs as torchvision's weights require, unless it has its own values.

    Raises
    ------
    ModelFileError
        If torchvision has no such weights.
    """
    name = re.fullmatch(TORCHVISION_WEIGHTS, weights or "")
    if name is None or card.mean is not None or card.std is not None:
        return card
    transforms = _torchvision_weights(card, *name.groups()).transforms()
    return card.model_copy(update={"mean": tuple(transforms.mean), "std": tuple(transforms.std)})


def _of_file(file: Path) -> Mapping[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        found = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError) as error:
        raise ModelFileError(f"Cannot read the starting weights {file} (model.weights): {error}.") from error
    except Exception:  # of pickled objects, and of files of other kinds
        found = None
    if isinstance(found, dict):
        found = next((found[key] for key in _STATE_KEYS if isinstance(found.get(key), dict)), found)
    if not isinstance(found, dict) or not all(isinstance(array, Tensor) for array in found.values()):
        raise ModelFileError(
            f"The starting weights {file} (model.weights) are no named arrays alone; write them by "
            "torch.save(model.state_dict(), FILE), or as a .safetensors file."
        )
    return found


def _torchvision_weights(card: ModelCard, kind: str | None, name: str) -> Any:
    import torchvision

    try:
        known = torchvision.models.get_model_weights(card.architecture)
    except ValueError:
        raise ModelFileError(
            f"torchvision has no weights of a {card.architecture}; name a .safetensors or weights-only file in "
            "model.weights."
        ) from None
    if name not in known.__members__ or kind not in (None, known.__name__):
        asked = f"{kind}.{name}" if kind else name
        has = ", ".join(f"{known.__name__}.{member}" for member in known.__members__)
        raise ModelFileError(
            f"torchvision has no weights '{asked}' of a {card.architecture} (model.weights); it has {has}."
        )
    return known[name]


def _of_torchvision(card: ModelCard, kind: str | None, name: str) -> Mapping[str, Tensor]:
    import torchvision

    weights = _torchvision_weights(card, kind, name)
    try:
        network = torchvision.models.get_model(card.architecture, weights=weights, progress=False)
    except Exception as error:  # without a network, or of a file that is damaged
        raise ModelFileError(
            f"torchvision cannot give its weights {weights} ({type(error).__name__}: {str(error).splitlines()[0]}); "
            f"put {weights.url} into {torch.hub.get_dir()}/checkpoints, or name a file in model.weights."
        ) from error
    arrays: Mapping[str, Tensor] = network.state_dict()
    return arrays


def _in_backbone(given: Mapping[str, Tensor], model: FaceClassifier) -> Mapping[str, Tensor]:
    """Return arrays of torchvision's names under those of the whole network, without torchvision's classifier."""
    if any(lies_in(name, ("backbone",)) for name in given):
        return given
    return {f"backbone.{name}": array for name, array in given.items() if not lies_in(name, (model.replaced,))}


def _why_not_of(model: FeatureClassifier, card: ModelCard, given: Mapping[str, Tensor]) -> str | None:
    """Return why arrays are none of the network to begin with, in words; None if they are."""
    whose, expected = f"a {card.architecture} of {len(card.classes)} classes", model.network.state_dict()
    head = ("head", "mean", "std") if isinstance(model, FaceClassifier) else _head_of(model)
    for name, array in expected.items():
        fresh = lies_in(name, head) and not card.freezes(name)
        if name not in given:
            if fresh or name.endswith("num_batches_tracked"):  # of which old files have none
                continue
            return f"they have no '{name}', which {whose} has"
        shape, wanted = tuple(given[name].shape), tuple(array.shape)
        if shape != wanted:
            hint = ", unless that layer is left out of the file, and begins fresh" if fresh else ""
            return f"their '{name}' has the shape {shape}, and must have {wanted}, as in {whose}{hint}"
        if given[name].is_floating_point() != array.is_floating_point():
            return f"their '{name}' holds {given[name].dtype}, and must hold {array.dtype}"
        if not given[name].isfinite().all():
            return f"their '{name}' holds values that are not finite"
    if unknown := sorted(given.keys() - expected.keys()):
        return f"they have '{unknown[0]}', which {whose} has not"
    return None


def _head_of(model: FeatureClassifier) -> tuple[str, ...]:
    return (model.last_linear,) if isinstance(model, WrappedClassifier) and model.last_linear else ()
