"""Read and write a model's files, ``model.safetensors`` and ``card.json``, and its weights as arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dlfd_fleet.exceptions import ModelFileError
from dlfd_fleet.files import whole_file
from dlfd_fleet.models.card import ModelCard
from dlfd_fleet.models.classifiers import FeatureClassifier
from dlfd_fleet.models.networks import build, build_empty

MODEL_FILE = "model.safetensors"
CARD_FILE = "card.json"


def state_arrays(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of every parameter and buffer on the CPU, by the names of the network itself."""
    network = model.network if isinstance(model, FeatureClassifier) else model
    return {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}


def load_arrays(model: FeatureClassifier, arrays: Mapping[str, Tensor]) -> None:
    """Load weights under the names of the network itself.

    Raises
    ------
    ModelFileError
        If they do not fit the network.
    """
    try:
        model.network.load_state_dict(dict(arrays))
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
        raise ModelFileError(f"The weights are not those of this network: {lines[0]}") from error


def digest(arrays: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of named arrays: names, types, shapes and bytes, independent of their order."""
    sha = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name].detach().cpu().contiguous()
        sha.update(f"{name}|{array.dtype}|{tuple(array.shape)}|".encode())
        sha.update(array.numpy().tobytes())
    return sha.hexdigest()


def save_model(model: nn.Module, card: ModelCard, folder: Path) -> None:
    """Write ``model.safetensors`` and ``card.json`` into a folder, each whole or not at all, and the card last.

    Raises
    ------
    ModelFileError
        If the weights do not fit the card (then nothing is written), or the disk refuses.
    """
    arrays = state_arrays(model)
    if reason := _why_not_of(card, arrays):
        raise ModelFileError(f"The model is not saved in {folder}: {reason}; give it the card that it was built by.")
    with (
        whole_file(folder / CARD_FILE, ModelFileError) as text,
        whole_file(folder / MODEL_FILE, ModelFileError) as weights,
    ):
        folder.mkdir(parents=True, exist_ok=True)
        text.write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")
        save_file({name: value.contiguous() for name, value in arrays.items()}, weights)


def load_model(folder: Path) -> tuple[FeatureClassifier, ModelCard]:
    """Read a model and its card from a folder.

    Raises
    ------
    ModelFileError
        If a file is missing, damaged, or the weights do not fit the card.
    """
    try:
        card = ModelCard.model_validate_json((folder / CARD_FILE).read_text(encoding="utf-8"))
        arrays = load_file(folder / MODEL_FILE)
    except ValidationError as error:
        key = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise ModelFileError(f"The model card {folder / CARD_FILE} is wrong at '{key}'.") from error
    except (OSError, UnicodeDecodeError, SafetensorError) as error:
        raise ModelFileError(f"Cannot read the model in {folder}: {error}.") from error
    if reason := _why_not_of(card, arrays):
        raise ModelFileError(
            f"The model in {folder} cannot be used: {reason}; it needs the card that it was saved with."
        )
    model = build_empty(card)
    load_arrays(model, arrays)
    return model, card


def card_of(folder: Path) -> ModelCard | None:
    """Return the card of a model's folder; None if it has no usable one."""
    try:
        return ModelCard.model_validate_json((folder / CARD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _why_not_of(card: ModelCard, arrays: Mapping[str, Tensor]) -> str | None:
    """Return why arrays do not fit the network of a card; None if they do."""
    whose = f"a {card.architecture} of {len(card.classes)} classes, which its card says it is"
    # A factory of somebody else's may look at its weights, which those of the meta device are not.
    with torch.device("cpu" if card.of_factory else "meta"), torch.random.fork_rng(devices=[]):
        expected = build(card).network.state_dict()
    for name, array in expected.items():
        if name not in arrays:
            return f"it has no '{name}', which {whose}, has"
        shape, wanted = tuple(arrays[name].shape), tuple(array.shape)
        if shape != wanted:
            return f"its '{name}' has the shape {shape}, and that of {whose}, has {wanted}"
        if arrays[name].is_floating_point() != array.is_floating_point():
            return f"its '{name}' holds {arrays[name].dtype}, and that of {whose}, {array.dtype}"
    if unknown := sorted(arrays.keys() - expected.keys()):
        return f"it has '{unknown[0]}', which {whose}, has not"
    return None
