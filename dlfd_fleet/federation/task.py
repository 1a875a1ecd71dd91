"""Describe a fleet's model, data and training in one object for both apps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from torch import Tensor, nn

from dlfd_fleet.components import Argument, Component, name_of
from dlfd_fleet.data import PersonDataset
from dlfd_fleet.exceptions import ConfigurationError
from dlfd_fleet.model_input import Fit, ModelInput
from dlfd_fleet.models import ModelCard, build, permit
from dlfd_fleet.settings import Settings
from dlfd_fleet.unlearning import Loss, MakeOptimizer

if TYPE_CHECKING:
    from flwr.app import Context
    from torch.utils.data import Dataset


class Train(Protocol):
    """Your own training loop, for rounds of training and repair."""

    def __call__(
        self, network: nn.Module, data: Dataset[tuple[Tensor, int | Tensor]], *, epochs: int, learning_rate: float
    ) -> float | None:
        """Train a network in place.

        Parameters
        ----------
        network
            The network that the task's factory made, on the best device, in train mode.
        data
            The rows to train on, as :meth:`Task.training_data` returns them.
        epochs
            Passes over them.
        learning_rate
            Of this round. In a repair it is the rate to start with, and should fall to 0: a repair that ends at a large
            rate makes a trained network worse.

        Returns
        -------
        float or None
            The mean loss of the last epoch, if known.
        """


@dataclass(frozen=True, kw_only=True)
class Task:
    """The model, the data and the training of a fleet: one object for its ClientApp and its ServerApp.

    Attributes
    ----------
    model
        Factory of the network: a class or function at the top of a module, its name ``package.module:callable``, or the
        name of a registered network. The network maps inputs ``(N, *shape)`` to logits ``(N, C)``.
    classes
        Names of the classes, in the order of the logits.
    multi_label
        Whether the classes are labels, several of which may apply to an input.
    shape
        Shape of one input: ``(C, H, W)`` for images, any shape for numbers.
    value_range
        Smallest and largest value that the network takes.
    fit
        How image files of another aspect ratio are brought to the shape: ``resize`` or ``crop``.
    arguments
        Arguments of the factory.
    feature_layer
        Submodule whose output is the feature space. Default: the input of the last linear layer.
    data
        Loader of a site's rows, or its name. It returns a :class:`~dlfd_fleet.data.PersonDataset`. It is called with
        the entries of the node's configuration for which it has parameters (``partition-id`` as ``partition_id``). A
        site's folder is made from it when its node first answers. Without a loader, ``site.json`` names the rows.
    validation_people, test_people
        Numbers of people whom each site keeps out of training, for gates and for the audit, if the loader has no
        splits.
    loss
        Maps logits ``(N, C)`` and labels to a scalar. Default: weighted cross-entropy.
    optimizer
        Maps parameters and a learning rate to an optimizer. Default: SGD with momentum.
    train
        The training loop. Default: our loop with this loss and optimizer.

    Raises
    ------
    ConfigurationError
        If a value is not valid.
    ModelFileError
        If the factory has no name that another process can import.

    Examples
    --------
    In a module that the ClientApp and the ServerApp import, for a network ``Net`` and a loader ``load_people``::

        task = Task(model=Net, data=load_people, classes=("cat", "dog"), shape=(3, 32, 32), value_range=(-1.0, 1.0))
    """

    model: Callable[..., nn.Module] | str
    classes: Sequence[str]
    shape: tuple[int, ...]
    value_range: tuple[float, float] = (0.0, 1.0)
    fit: Fit = "resize"
    arguments: Mapping[str, Argument] = field(default_factory=dict)
    feature_layer: str | None = None
    data: Callable[..., PersonDataset] | str | None = None
    validation_people: int = 2
    test_people: int = 2
    loss: Loss | None = None
    optimizer: MakeOptimizer | None = None
    train: Train | None = None
    multi_label: bool = False

    def __post_init__(self) -> None:
        """Refuse values that no process can use, and permit the factory in this process."""
        try:
            _ = self.input, self.network, self.loader
        except ValueError as error:
            raise ConfigurationError(f"The task cannot be used: {_first_line(error)}.") from error
        for name in ("validation_people", "test_people"):
            if getattr(self, name) < 0:
                raise ConfigurationError(f"The task's {name} is {getattr(self, name)}; it is a number of people.")
        if self.network is None and self.value_range != (0.0, 1.0):
            raise ConfigurationError(f"A {self.model} takes values from 0 to 1; leave value_range out.")
        permit(self.model)

    @cached_property
    def input(self) -> ModelInput:
        """The input of the network."""
        low, high = self.value_range
        return ModelInput(shape=self.shape, low=low, high=high, fit=self.fit)

    @cached_property
    def network(self) -> Component | None:
        """The factory's name; None for a registered network."""
        name = self.model if isinstance(self.model, str) else name_of(self.model)
        return Component(name=name, arguments=dict(self.arguments)) if ":" in name else None

    @cached_property
    def loader(self) -> Component | None:
        """The loader's name, without arguments."""
        if self.data is None:
            return None
        return Component(name=self.data if isinstance(self.data, str) else name_of(self.data))

    def settings(self, given: Settings) -> Settings:
        """Return settings whose model is the task's.

        Raises
        ------
        ConfigurationError
            If they normalise inputs, because rows of :meth:`training_data` are not normalised.
        """
        if given.model.mean is not None or given.model.std is not None:
            raise ConfigurationError(
                "model.mean and model.std do not go with a task, whose own training does not see them; normalise in "
                "the network, or by value_range."
            )
        model = given.model.model_copy(
            update={
                "architecture": self.network.name if self.network else str(self.model),
                "arguments": dict(self.arguments),
                "feature_layer": self.feature_layer,
            }
        )
        return given.model_copy(update={"model": model})

    def check(self) -> None:
        """Build the network once.

        Raises
        ------
        ConfigurationError
            If the task makes no valid model card.
        ModelFileError
            If its factory makes no classifier of this input and these classes, or the feature layer is missing.
        """
        try:
            card = ModelCard(
                architecture=self.network.name if self.network else str(self.model),
                arguments=dict(self.arguments),
                feature_layer=self.feature_layer,
                classes=tuple(self.classes),
                multi_label=self.multi_label,
                input=self.input,
            )
        except ValueError as error:
            raise ConfigurationError(f"The task cannot be used: {_first_line(error)}.") from error
        permit(self.model)
        build(card)

    def training_data(self, context: Context) -> Dataset[tuple[Tensor, int | Tensor]]:
        """Return the rows that this node's site may train on, without anybody who ever asked to be forgotten.

        Parameters
        ----------
        context
            Context of the ClientApp's handler, which names the site.

        Raises
        ------
        JobError
            If the node has no usable site. The site's ``site.log`` has details.
        """
        from dlfd_fleet.federation.site.training_data import training_data

        return training_data(self, context)


def _first_line(error: ValueError) -> str:
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return f"{where}: {first['msg'].removeprefix('Value error, ')}" if where else first["msg"]
    return str(error).splitlines()[0]
