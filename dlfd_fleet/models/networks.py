"""The registry of networks: torchvision backbones with the paper's head, and permitted factories.

A card names a network. Only registered networks are built, so no card or message can run other code. Settings
(``model.architecture``), a site's ``site.json`` and a task name a factory as ``package.module:callable``, and
:func:`permit` registers it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dlfd_fleet.components import COMPONENT, name_of, resolved
from dlfd_fleet.exceptions import ModelFileError
from dlfd_fleet.models.card import ARCHITECTURE, ModelCard
from dlfd_fleet.models.classifiers import FaceClassifier, FeatureClassifier, WrappedClassifier
from dlfd_fleet.registry import Registry

Factory = Callable[..., nn.Module]


@dataclass(frozen=True)
class Network:
    """A network that cards can name.

    Attributes
    ----------
    name
        Name in cards and settings.
    build
        Maps a card to the network with fresh weights from torch's generator.
    starts_random
        Whether only its weights use random numbers; then it can be built without them.
    channels_last
        Whether it supports images in channels-last order.
    """

    name: str
    build: Callable[[ModelCard], FeatureClassifier]
    starts_random: bool = False
    channels_last: bool = False


NETWORKS = Registry(
    "network",
    Network,
    "dlfd_fleet.networks",
    tuple(
        Network(name, FaceClassifier, starts_random=True, channels_last=True)
        for name in ("resnet18", "densenet121", "efficientnet_b0", "mobilenet_v3_small")
    ),
    name=ARCHITECTURE,
)
"""Every registered network by name."""

ARCHITECTURES: tuple[str, ...] = ("resnet18", "densenet121", "efficientnet_b0", "mobilenet_v3_small")
"""The built-in ones."""


def permit(factory: Factory | str) -> str:
    """Allow this process to build networks by a factory, and return its name ``package.module:callable``.

    Parameters
    ----------
    factory
        A function or class at the top of a module, or its name. A name is imported on first use.

    Raises
    ------
    ModelFileError
        If it cannot be imported by name, such as a lambda.
    """
    try:
        name = factory if isinstance(factory, str) else name_of(factory)
    except ValueError as error:
        raise ModelFileError(f"The network {error}.") from error
    if name in NETWORKS:
        return name
    if not re.fullmatch(COMPONENT, name):
        raise ModelFileError(
            f"There is no network '{name}'; name one of {', '.join(NETWORKS)}, or a factory as package.module:callable."
        )
    NETWORKS.register(Network(name, lambda card: _of_factory(card, factory)))
    return name


def build(card: ModelCard) -> FeatureClassifier:
    """Build the network of a card with fresh weights from torch's generator.

    Raises
    ------
    ModelFileError
        If it is not permitted, cannot be imported, raises, or does not make a trainable classifier of the card's input
        and classes.
    """
    return _frozen(_network_of(card).build(card), card)


def with_frozen(card: ModelCard) -> ModelCard:
    """Return a card that lists all frozen layers: those that it names, and those that its factory froze.

    It is made once, and all sides use it.

    Raises
    ------
    ModelFileError
        If it names an unknown layer, or nothing is left to train.
    """
    if not card.of_factory and not card.frozen:
        return card
    return card.model_copy(update={"frozen": build_empty(card).frozen})


def build_empty(card: ModelCard) -> FeatureClassifier:
    """Build the network of a card without weights, to load them."""
    network = _network_of(card)
    if not network.starts_random:
        return _frozen(network.build(card), card)
    with _WithoutRandomWeights():
        return _frozen(network.build(card), card)


def _frozen(model: FeatureClassifier, card: ModelCard) -> FeatureClassifier:
    model.frozen = ()  # a card may freeze the parameters alone of a layer that takes no gradient
    model.freeze(card.frozen)
    return model


def to_best_device(model: FeatureClassifier) -> FeatureClassifier:
    """Move a model to the GPU if there is one; built-in ones use channels last, which is faster on CPUs, too."""
    moved = model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    # A network of somebody else's may read its activations as they lie in memory.
    return moved.to(memory_format=torch.channels_last) if isinstance(model, FaceClassifier) else moved


def _network_of(card: ModelCard) -> Network:
    if card.architecture in NETWORKS:
        return NETWORKS[card.architecture]
    raise ModelFileError(
        f"The model is a {card.architecture}, which nobody has permitted here; name it in model.architecture of the "
        "settings (DLFD_FLEET_MODEL__ARCHITECTURE), at a site in its site.json, or give its factory to the app's task."
    )


def _of_factory(card: ModelCard, factory: Factory | str) -> WrappedClassifier:
    """Call somebody's factory, and make sure that what it returns can learn and forget."""
    module = _called(card, factory)
    spec = card.input
    model = WrappedClassifier(
        module,
        card.feature_layer,
        low=spec.low,
        high=spec.high,
        mean=card.mean,
        std=card.std,
        dimensions=len(spec.shape),
    )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelFileError(f"No parameter of {card.architecture} takes a gradient: it can neither learn nor forget.")
    if next(model.parameters()).device.type != "meta":
        _check(model, card)
    return model


def _called(card: ModelCard, factory: Factory | str) -> nn.Module:
    name = card.architecture
    try:
        make = resolved(factory) if isinstance(factory, str) else factory
    except ImportError as error:
        raise ModelFileError(f"The network {name} cannot be imported: {error}; install its package here.") from error
    except Exception as error:  # whatever its module raises
        raise ModelFileError(f"The module of {name} raised {type(error).__name__}: {error}") from error
    try:
        made = make(**card.arguments)
    except Exception as error:  # whatever somebody's factory raises
        raise ModelFileError(f"The factory {name} raised {type(error).__name__}: {error}") from error
    if not isinstance(made, nn.Module):
        raise ModelFileError(f"The factory {name} returned a {type(made).__name__}, which is no torch.nn.Module.")
    return made


def _check(model: WrappedClassifier, card: ModelCard) -> None:
    """Refuse a network whose answer is not ``(N, C)``, or whose answer no gradient comes back from."""
    name, wanted = card.architecture, (2, len(card.classes))
    training, state = model.training, torch.get_rng_state()
    model.eval()
    try:
        with torch.enable_grad():
            features, logits = model.features_and_logits(torch.zeros(2, *card.input.shape))
    except ModelFileError:
        raise
    except Exception as error:  # whatever somebody's network raises
        raise ModelFileError(
            f"The network {name} does not take inputs of {card.input.sentence()}: {type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else ''}"
        ) from error
    finally:
        model.train(training)
        torch.set_rng_state(state)
    if not isinstance(logits, Tensor) or tuple(logits.shape) != wanted:
        shown = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelFileError(
            f"The network {name} answers two inputs by {shown}; that must be logits {wanted}, one for each class."
        )
    if features.shape[0] != 2 or not features.shape[1]:
        raise ModelFileError(
            f"The feature layer '{model.feature_layer}' of {name} gives {tuple(features.shape)} for two inputs; name "
            "a layer whose output has one row for each input."
        )
    if not logits.requires_grad:
        raise ModelFileError(f"No gradient comes back from the answers of {name}, so it can neither learn nor forget.")


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
