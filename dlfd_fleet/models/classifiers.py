"""Define classifiers that return features and logits from one forward pass.

Inputs are float tensors ``(N, *shape)`` in [0, 1]. Normalisation is part of the model, so a bound on a change of pixels
means the same for every method and device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Self, cast

import torch
from torch import Tensor, nn

from dlfd_fleet.components import lies_in
from dlfd_fleet.exceptions import ModelFileError
from dlfd_fleet.models.card import ModelCard
from dlfd_fleet.models.freezing import stop_gradients, without_gradients

_MEAN, _STD = (0.5,), (0.25,)
_SMALLEST_SIDE = 32
_COLOURS = 3


class FeatureClassifier(nn.Module, ABC):
    """A classifier that returns features and logits in one forward pass.

    Attributes
    ----------
    frozen
        Submodules of :attr:`network`, and single parameters, that are never trained.
    """

    frozen: tuple[str, ...] = ()

    @abstractmethod
    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return features ``(N, F)`` and logits ``(N, C)`` of inputs ``(N, *shape)`` in [0, 1]."""

    def features(self, images: Tensor) -> Tensor:
        """Return the features ``(N, F)`` of inputs ``(N, *shape)``."""
        return self.features_and_logits(images)[0]

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``(N, C)`` of inputs ``(N, *shape)``."""
        return self.features_and_logits(images)[1]

    @property
    def network(self) -> nn.Module:
        """The module whose weights travel and are saved, under its own names."""
        return self

    def freeze(self, layers: Iterable[str] = ()) -> None:
        """Freeze layers, and all parameters that take no gradient already.

        Raises
        ------
        ModelFileError
            If there is no such layer, or nothing is left to train.
        """
        named = tuple(dict.fromkeys((*self.frozen, *layers)))
        self.frozen = (*named, *without_gradients(self.network, named))
        if named:
            stop_gradients(self.network, named)
        self._still()

    def train(self, mode: bool = True) -> Self:
        """Set train or eval mode; frozen layers stay in eval mode, for their batch norm and their dropout."""
        super().train(mode)
        self._still()
        return self

    def _still(self) -> None:
        for module in self.frozen_modules():
            module.training = False

    @contextmanager
    def kept_frozen(self) -> Iterator[None]:
        """Keep frozen layers as they are, while code trains :attr:`network` that does not know of them."""
        before = [(array, array.detach().clone(), array.requires_grad) for array in self.frozen_arrays()]
        hooks = [module.register_forward_pre_hook(_in_eval_mode) for module in self.frozen_modules()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            with torch.no_grad():
                for array, value, trained in before:
                    array.requires_grad_(trained).copy_(value)

    def frozen_modules(self) -> set[nn.Module]:
        """Return every module that is frozen as a whole."""
        if not self.frozen:
            return set()
        return {module for name, module in self.network.named_modules() if lies_in(name, self.frozen)}

    def frozen_arrays(self) -> list[Tensor]:
        """Return the parameters and buffers that are frozen: themselves, no copies."""
        arrays = self.network.state_dict(keep_vars=True)
        return [array for name, array in arrays.items() if lies_in(name, self.frozen)]


def _in_eval_mode(module: nn.Module, _inputs: object) -> None:
    module.training = False


class FaceClassifier(FeatureClassifier):
    """A torchvision backbone with the paper's head, 512-256-128-C with dropout (arXiv 2409.14747, section 4).

    Parameters
    ----------
    card
        Architecture, classes, input, dropout and normalisation.

    Attributes
    ----------
    replaced
        What torchvision calls the classifier that the head replaces.

    Raises
    ------
    ModelFileError
        If the card's input is no image of 1 or 3 channels, or smaller than backbones take.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, card: ModelCard) -> None:
        super().__init__()
        if not card.input.of_files or min(card.input.shape[1:]) < _SMALLEST_SIDE:
            raise ModelFileError(
                f"A {card.architecture} takes grey or RGB images of {_SMALLEST_SIDE} by {_SMALLEST_SIDE} pixels or "
                f"more, not {card.input.sentence()}; name a network of your own in model.architecture."
            )
        self.register_buffer("mean", _broadcast(card.mean or _MEAN, _COLOURS))
        self.register_buffer("std", _broadcast(card.std or _STD, _COLOURS))
        self.backbone, width, self.replaced = _backbone(card.architecture)
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
        """Run backbone and head once; grey images as three channels alike."""
        features = self.backbone((images - self.mean) / self.std)
        return features, self.head(features)


class WrappedClassifier(FeatureClassifier):
    """Anybody's classifier, its features taken from one of its layers.

    Parameters
    ----------
    module
        A module from inputs ``(N, *shape)`` to logits ``(N, C)``.
    feature_layer
        Dotted name of the submodule whose output, flattened to ``(N, F)``, is the feature space. When omitted, it is
        the input of the last linear layer.
    low, high
        Range of the values that the module takes: [0, 1] is mapped to it.
    mean, std
        What the values are normalised by after that, one value or one a channel; as they are when omitted.

    Raises
    ------
    ModelFileError
        If the module has no submodule of that name, or no linear layer.

    Examples
    --------
    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> WrappedClassifier(network, "2").features(torch.rand(5, 3, 4, 4)).shape
    torch.Size([5, 8])
    """

    def __init__(
        self,
        module: nn.Module,
        feature_layer: str | None = None,
        *,
        low: float = 0.0,
        high: float = 1.0,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        dimensions: int = _COLOURS,
    ) -> None:
        super().__init__()
        self.module = module
        self.freeze()
        self._at_input = feature_layer is None
        self.last_linear = _last_linear(module)
        named = self.last_linear if feature_layer is None else feature_layer
        if named is None:
            raise ModelFileError(
                "The model has no linear layer whose input could be its features; name its feature layer "
                "(model.feature_layer)."
            )
        self.feature_layer = named
        if self.feature_layer not in dict(module.named_modules()):
            known = ", ".join(name for name, _ in module.named_modules() if name)
            raise ModelFileError(f"The model has no layer '{feature_layer}' to take features from; it has: {known}.")
        # What the values become: one product and one sum. Not among the weights, which are the module's own.
        means, stds = mean or (0.0,), std or (1.0,)
        channels = max(len(means), len(stds))
        scale = [(high - low) / value for value in stds * (channels // len(stds))]
        offset = [
            (low - value) / by
            for value, by in zip(means * (channels // len(means)), stds * (channels // len(stds)), strict=True)
        ]
        self._changes = any(value != 1.0 for value in scale) or any(value != 0.0 for value in offset)
        for name, values in (("scale", scale), ("offset", offset)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, *[1] * (dimensions - 1)), persistent=False)

    scale: Tensor
    offset: Tensor

    @property
    def network(self) -> nn.Module:
        """The wrapped module."""
        return self.module

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``(N, C)`` of inputs ``(N, *shape)`` in [0, 1]."""
        return cast(Tensor, self.module(self._values(images)))

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Run the module once, and take the layer's output, or the last linear layer's input, on the way.

        Raises
        ------
        ModelFileError
            If the module does not run the layer.
        """
        captured: list[Tensor] = []
        layer = self.module.get_submodule(self.feature_layer)
        # The hook lives for one call only: a copied or exported model must not carry another model's list.
        hook = (
            layer.register_forward_pre_hook(lambda _module, inputs: captured.append(inputs[0]))
            if self._at_input
            else layer.register_forward_hook(lambda _module, _inputs, output: captured.append(output))
        )
        try:
            logits = cast(Tensor, self.module(self._values(images)))
        finally:
            hook.remove()
        if not captured:
            raise ModelFileError(f"The model does not run its layer '{self.feature_layer}'; name another one.")
        return captured[-1].flatten(1), logits

    def _values(self, images: Tensor) -> Tensor:
        values = images * self.scale + self.offset if self._changes else images
        # Somebody's network may read memory as it lies (view). Images that were turned or shifted lie otherwise, and
        # those of one channel call themselves contiguous all the same.
        return values.clone(memory_format=torch.contiguous_format)


def _last_linear(module: nn.Module) -> str | None:
    names: list[str] = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    return names[-1] if names else None


def _broadcast(values: tuple[float, ...], channels: int) -> Tensor:
    whole = values * channels if len(values) == 1 else values
    return torch.tensor(whole).view(1, len(whole), 1, 1)


def _backbone(architecture: str) -> tuple[nn.Module, int, str]:
    """Build a torchvision network without its classifier; return it, its features' width, and the name left out."""
    import torchvision

    network = torchvision.models.get_model(architecture, weights=None)
    name = "fc" if hasattr(network, "fc") else "classifier"
    last = getattr(network, name)
    # MobileNetV3's classifier starts with a hidden layer, EfficientNet's with dropout: the first Linear has the width.
    width = next(layer.in_features for layer in last.modules() if isinstance(layer, nn.Linear))
    setattr(network, name, nn.Identity())
    return network, width, name
