"""Classifiers whose features and logits come from one forward pass, and their files.

The network is the paper's (arXiv 2409.14747, section 4): a torchvision backbone and a head 512-256-128-C with dropout.
Images are float tensors ``(N, 3, S, S)`` in [0, 1]; the normalisation is part of the model, so that a bound on the
pixel range means the same to DLFD, to an attacker and to a device.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dlfd_fleet.exceptions import ModelFileError
from dlfd_fleet.files import whole_file

Architecture = Literal["resnet18", "densenet121", "efficientnet_b0", "mobilenet_v3_small"]
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[[^\p{Cc}\p{Cf}\p{Zl}\p{Zp}]\x{200C}\x{200D}]+$")]
"""One line of any script, without what a terminal would obey."""
MODEL_FILE = "model.safetensors"
CARD_FILE = "card.json"


_Channel = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]


class ModelCard(BaseModel):
    """What a model file is: enough to build the network, and where the weights come from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: Architecture
    classes: Annotated[tuple[Name, ...], Field(min_length=2, max_length=10_000)]
    image_size: Annotated[int, Field(ge=32, le=4096)]
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.3
    mean: tuple[_Channel, _Channel, _Channel] = (0.5, 0.5, 0.5)
    std: tuple[_Channel, _Channel, _Channel] = (0.25, 0.25, 0.25)
    kind: Literal["original", "unlearned", "retrained"] = "original"
    epoch: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Erasure epoch: how many released erasures this model has behind it."""
    parent: Name | None = None
    """SHA-256 of the weights that this model was unlearned from, or trained on from."""
    job: Name | None = None


class FeatureClassifier(nn.Module, ABC):
    """A classifier that gives its features beside its logits, in one forward pass."""

    @abstractmethod
    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return features ``(N, F)`` and logits ``(N, C)`` of images ``(N, 3, S, S)`` in [0, 1]."""

    def features(self, images: Tensor) -> Tensor:
        """Return the features ``(N, F)`` of images ``(N, 3, S, S)``."""
        return self.features_and_logits(images)[0]

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``(N, C)`` of images ``(N, 3, S, S)``."""
        return self.features_and_logits(images)[1]


class FaceClassifier(FeatureClassifier):
    """A torchvision backbone with the paper's head.

    Parameters
    ----------
    card
        Architecture, classes, dropout and normalisation.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, card: ModelCard) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(card.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(card.std).view(1, 3, 1, 1))
        self.backbone, width = _backbone(card.architecture)
        self.head = nn.Sequential(
            nn.Linear(width, 256),
            nn.ReLU(),
            nn.Dropout(card.dropout),
            nn.Linear(256, 128),
            nn.ReLU(),
            nn.Dropout(card.dropout),
            nn.Linear(128, len(card.classes)),
        )

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Run backbone and head once."""
        features = self.backbone((images - self.mean) / self.std)
        return features, self.head(features)


class WrappedClassifier(FeatureClassifier):
    """Anybody's classifier, its features taken from a layer named by its user.

    Parameters
    ----------
    module
        A module from images ``(N, 3, S, S)`` in [0, 1] to logits ``(N, C)``.
    feature_layer
        Dotted name of the submodule whose output, flattened to ``(N, F)``, is the feature space.

    Raises
    ------
    ModelFileError
        If the module has no submodule of that name.

    Examples
    --------
    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> WrappedClassifier(network, "2").features(torch.rand(5, 3, 4, 4)).shape
    torch.Size([5, 8])
    """

    def __init__(self, module: nn.Module, feature_layer: str) -> None:
        super().__init__()
        self.module = module
        self.feature_layer = feature_layer
        if feature_layer not in dict(module.named_modules()):
            known = ", ".join(name for name, _ in module.named_modules() if name)
            raise ModelFileError(f"The model has no layer '{feature_layer}' to take features from; it has: {known}.")

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Run the module once, and take the named layer's output on the way."""
        captured: list[Tensor] = []
        layer = self.module.get_submodule(self.feature_layer)
        # The hook lives for one call only: a copied or exported model must not carry another model's list.
        hook = layer.register_forward_hook(lambda _module, _inputs, output: captured.append(output))
        try:
            logits = cast(Tensor, self.module(images))
        finally:
            hook.remove()
        return captured[-1].flatten(1), logits


def _backbone(architecture: Architecture) -> tuple[nn.Module, int]:
    """Build a torchvision network without its classifier; return it and the width of its features."""
    import torchvision

    network = torchvision.models.get_model(architecture, weights=None)
    name = "fc" if hasattr(network, "fc") else "classifier"
    last = getattr(network, name)
    # MobileNetV3's classifier starts with a hidden layer, EfficientNet's with dropout: the first Linear has the width.
    width = next(layer.in_features for layer in last.modules() if isinstance(layer, nn.Linear))
    setattr(network, name, nn.Identity())
    return network, width


def build(card: ModelCard) -> FaceClassifier:
    """Build the network of a card with fresh weights from torch's generator."""
    return FaceClassifier(card)


class _WithoutRandomWeights(TorchFunctionMode):
    """Leaves out what fills weights with random numbers, which takes most of the time of building a network."""

    _FILLING = (Tensor.normal_, Tensor.uniform_, nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func in self._FILLING:
            return args[0] if args else named["tensor"]
        return func(*args, **named)


def build_empty(card: ModelCard) -> FaceClassifier:
    """Build the network of a card without any weights: all of them are to be loaded."""
    with _WithoutRandomWeights():
        return FaceClassifier(card)


def to_best_device(model: FaceClassifier) -> FaceClassifier:
    """Move a model to the GPU where there is one; its images in channels-last order, a sixth faster on CPUs too."""
    return model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu")).to(memory_format=torch.channels_last)


def state_arrays(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of every parameter and buffer on the CPU, by name."""
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


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
        If the weights do not fit the card, and then nothing is written; or if the disk refuses.
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


def load_model(folder: Path) -> tuple[FaceClassifier, ModelCard]:
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
    model.load_state_dict(arrays)
    return model, card


def _why_not_of(card: ModelCard, arrays: Mapping[str, Tensor]) -> str | None:
    """Return why arrays are not those of the network of a card, in words; None if they are."""
    whose = f"a {card.architecture} of {len(card.classes)} classes, which its card says it is"
    with torch.device("meta"):
        expected = FaceClassifier(card).state_dict()
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


ARCHITECTURES: tuple[str, ...] = get_args(Architecture)
