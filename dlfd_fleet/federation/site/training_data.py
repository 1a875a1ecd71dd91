"""Give a ClientApp's own training its filtered rows, and refuse training that does not use them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable, Mod
from torch import Tensor
from torch.utils.data import Dataset

from dlfd_fleet.data import Use
from dlfd_fleet.data.dataset import IdentityDataset
from dlfd_fleet.exceptions import JobError
from dlfd_fleet.federation.site.images import used_images
from dlfd_fleet.federation.site.site_of_node import site_of_node
from dlfd_fleet.federation.task import Task
from dlfd_fleet.model_input import ModelInput


@dataclass
class _Asked:
    """Whether the current message's handler has asked for its training rows."""

    asked: bool = False


_HANDLER: ContextVar[_Asked | None] = ContextVar("handler", default=None)


class TrainingRows(Dataset[tuple[Tensor, int | Tensor]]):
    """Rows of a site as its network takes them: values in its range, and the class number.

    With labels, the class number is replaced by 0 and 1 for each label, ``(L,)``, float32.
    """

    def __init__(self, rows: IdentityDataset, model_input: ModelInput) -> None:
        self._rows, self._input = rows, model_input
        self.classes = rows.classes

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int | Tensor]:
        index = range(len(self))[index]
        values, low, high = self._rows.images[index : index + 1][0], self._input.low, self._input.high
        unit = values.float().div_(255.0) if self._input.is_image else values
        label = self._rows.labels[index]
        return unit * (high - low) + low, label.float() if label.ndim else int(label)


def training_data(task: Task | None, context: Context) -> TrainingRows:
    """Return the rows that a node's site may train on; see :meth:`~dlfd_fleet.federation.Task.training_data`."""
    if handler := _HANDLER.get():
        handler.asked = True
    with site_of_node(context, task) as site:
        images = used_images(site)
        images.note_trained(site)
        return TrainingRows(images.retain(), site.card.input)


def refuse_unfiltered(task: Task | None) -> Mod:
    """Return a mod that refuses updates of training that has not called :func:`training_data`.

    Training on all rows would bring back people who asked to be forgotten, and nobody would be unseen. It is allowed
    only if all rows may be trained on.
    """

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        with _watched() as handler:
            reply = call_next(message, context)
        if not handler.asked:
            with site_of_node(context, task) as site:
                left_out = sum(use.use is not Use.TRAIN for use in used_images(site).uses)
                gone = len(site.ledger.person_digests())
            if left_out or gone:
                raise JobError(
                    "This app's @app.train did not take its data from task.training_data(context), which leaves out "
                    f"who has asked to be forgotten ({gone} people) and who is kept out of training ({left_out} rows): "
                    "its update is not sent."
                )
        return reply

    return mod


@contextmanager
def _watched() -> Iterator[_Asked]:
    handler = _Asked()
    token = _HANDLER.set(handler)
    try:
        yield handler
    finally:
        _HANDLER.reset(token)
