"""What a fleet is told of its users' world: their model, their data, and how they train."""

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
    """A training loop of one's own, for the rounds of training and repair."""

    def __call__(
        self, network: nn.Module, data: Dataset[tuple[Tensor, int | Tensor]], *, epochs: int, learning_rate: float
    ) -> float | None:
        """Train a network in place.

        Parameters
        ----------
        network
            What the task's factory made, on the best device, in train mode.
        data
            Who may be trained on, as :meth:`Task.training_data` gives them.

        Returns
        -------
        float or None
            The mean loss of the last epoch, where it is known.
        """


@dataclass(frozen=True, kw_only=True)
class Task:
    """The model, the data and the training of a fleet: one object for its ClientApp and its ServerApp.

    Attributes
    ----------
    model
        Factory of the network, a class or a function at the top of a module, or its name ``package.module:callable``;
        or the name of a registered network. It maps inputs ``(N, *shape)`` to logits ``(N, C)``.
    classes
        Names of the classes, in the order of the logits.
    multi_label
        Whether they are labels, of which any number may apply to an input.
    shape
        One input: ``(C, H, W)`` of images, any other shape of numbers.
    value_range
        Smallest and largest value that the network takes.
    fit
        How images of another aspect come to the shape: ``resize`` or ``crop``. Of image files only.
    arguments
        What the factory is called with.
    feature_layer
        Submodule whose output is the feature space; the input of the last linear layer when omitted.
    data
        Loader of a site's rows, or its name: it returns a :class:`~dlfd_fleet.data.PersonDataset`, and is given those
        entries of the node's configuration that it has parameters for (``partition-id`` as ``partition_id``). A site's
        folder is made by it when its node first answers. Without one, ``site.json`` says where the rows are.
    validation_people, test_people
        People whom each site keeps out of training, for gates and for the evidence, where the loader names no splits.
    loss
        From logits ``(N, C)`` and labels to a scalar; weighted cross-entropy when omitted.
    optimizer
        From parameters and a learning rate to an optimizer; SGD with momentum when omitted.
    train
        The training loop; ours, with the loss and the optimizer, when omitted.

    Raises
    ------
    ConfigurationError
        If something of it cannot be used.
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
        """Refuse now what no process could use later, and permit the factory in this one."""
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
        """What the network takes."""
        low, high = self.value_range
        return ModelInput(shape=self.shape, low=low, high=high, fit=self.fit)

    @cached_property
    def network(self) -> Component | None:
        """The factory by its name; None of a registered network."""
        name = self.model if isinstance(self.model, str) else name_of(self.model)
        return Component(name=name, arguments=dict(self.arguments)) if ":" in name else None

    @cached_property
    def loader(self) -> Component | None:
        """The loader by its name, without arguments."""
        if self.data is None:
            return None
        return Component(name=self.data if isinstance(self.data, str) else name_of(self.data))

    def settings(self, given: Settings) -> Settings:
        """Return settings whose model is the task's.

        Raises
        ------
        ConfigurationError
            If they normalise inputs: what trains by :meth:`training_data` would not.
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
            If the task is no card of a model.
        ModelFileError
            If its factory makes no classifier of its input and classes, or it has no such feature layer.
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
        """Return what this node's site may train on: nobody who has ever asked to be forgotten.

        Parameters
        ----------
        context
            Of the ClientApp's handler; it names the site.

        Raises
        ------
        JobError
            If the node has no site that can be used; its ``site.log`` says more.
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
