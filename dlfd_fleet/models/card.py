"""Describe a model: its network, input, classes and origin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dlfd_fleet.components import COMPONENT, Arguments, LayerName, LayerNames, lies_in
from dlfd_fleet.model_input import ModelInput
from dlfd_fleet.registry import ENTRY_NAME

Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[[^\p{Cc}\p{Cf}\p{Zl}\p{Zp}]\x{200C}\x{200D}]+$")]
"""One line of text without control characters."""

ARCHITECTURE = f"^({COMPONENT}|{ENTRY_NAME.strip('^$')})$"
Architecture = Annotated[str, Field(max_length=200, pattern=ARCHITECTURE)]
"""A registered network, or a factory ``package.module:callable``."""

_Channel = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
_Channels = Annotated[tuple[_Channel, ...], Field(min_length=1, max_length=1024)]
_Array = TypeVar("_Array")


class ModelCard(BaseModel):
    """The card of a model: how to build its network, and where its weights come from.

    Attributes
    ----------
    architecture
        One of :data:`~dlfd_fleet.models.NETWORKS`.
    arguments
        Arguments of its factory.
    feature_layer
        Name of the submodule whose output is the feature space; the input of the last linear layer when omitted. A
        registered network has its own.
    frozen
        Submodules and parameters that are not trained, and sent to a site only once. They must not have learned from
        the fleet's people.
    input
        Shape and range of one input.
    dropout
        Of the registered networks' head.
    mean, std
        Mean and standard deviation that normalise inputs in the model, one value or one for each channel. Default: 0.5
        and 0.25 for a registered network, and none for a factory's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: Architecture
    arguments: Arguments = Field(default_factory=dict)
    feature_layer: LayerName | None = None
    frozen: LayerNames = ()
    classes: Annotated[tuple[Name, ...], Field(min_length=1, max_length=10_000)]
    input: ModelInput
    multi_label: bool = False
    """Whether an input has labels, each of the classes applying or not by itself, in place of one class of two or more.
    """
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.3
    mean: _Channels | None = None
    std: _Channels | None = None
    kind: Literal["original", "unlearned", "retrained"] = "original"
    epoch: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Erasure epoch: how many released erasures this model has behind it."""
    parent: Name | None = None
    """SHA-256 of the weights from which this model was unlearned or trained further."""
    began_with: Name | None = None
    """A sentence about the weights with which its first training started; None if unknown."""
    job: Name | None = None

    @model_validator(mode="after")
    def _answers_something(self) -> ModelCard:
        if len(self.classes) < 2 and not self.multi_label:
            raise ValueError("a classifier needs at least two classes, or labels")
        return self

    @property
    def labels(self) -> int | None:
        """Number of labels, or None if an input has one class."""
        return len(self.classes) if self.multi_label else None

    @model_validator(mode="after")
    def _one_value_a_channel(self) -> ModelCard:
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is not None and len(values) not in (1, self.input.shape[0]):
                raise ValueError(f"{name} has {len(values)} values, and the input {self.input.shape[0]} channels")
        if self.std is not None and 0.0 in self.std:
            raise ValueError("std has a 0; use values above 0")
        return self

    def freezes(self, array: str) -> bool:
        """Tell whether the array of this name is frozen."""
        return lies_in(array, self.frozen)

    def trained(self, arrays: Mapping[str, _Array]) -> dict[str, _Array]:
        """Return the arrays that are not frozen, in their order."""
        return {name: array for name, array in arrays.items() if not self.freezes(name)}

    def frozen_of(self, arrays: Mapping[str, _Array]) -> dict[str, _Array]:
        """Return the frozen arrays, in their order."""
        return {name: array for name, array in arrays.items() if self.freezes(name)}

    @property
    def of_factory(self) -> bool:
        """Whether the network comes from its users' own factory."""
        return ":" in self.architecture
