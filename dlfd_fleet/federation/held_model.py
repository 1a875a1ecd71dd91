"""A site keeps the last model that it was sent, so that the coordinator need not send it again, or only what changed.

A model goes to a site to be audited, to be repaired, to be compared with its file: without this, whole each time. A
task names it by its digest (:func:`~dlfd_fleet.models.digest`), which what a site has read, or made of a held model and
a difference, must have. The file on the site's disk goes when the site learns of a release, for it may remember
(:meth:`~dlfd_fleet.ledger.site.Site.raise_epoch`).
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import cast

from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dlfd_fleet.exceptions import MessageError
from dlfd_fleet.federation.differences import model_of
from dlfd_fleet.federation.messages import COORDINATOR, MODEL, Arrays, arrays_of
from dlfd_fleet.federation.site_of_node import site_of_node
from dlfd_fleet.ledger.site import HELD_MODEL_FILE
from dlfd_fleet.models import digest
from dlfd_fleet.settings import Precision

MODEL_NOT_HELD = 1001
"""Code of a site's error reply; none of Flower's own."""
_NAMED, _SHA256 = "model-named", "sha256"
_DIFFERENCE, _BASE, _PRECISION = "model-difference", "base", "precision"
_MOST_MISSED = 2


class HeldModels:
    """What the coordinator knows of the models that nodes hold."""

    def __init__(self) -> None:
        self._held = dict[int, str]()
        self._missed = dict[int, int]()
        self._offered: tuple[str, str, RecordDict] | None = None

    def note(self, node: int, name: str) -> None:
        """Note the name of the model that a node says it holds; it may be empty."""
        self._held[node] = name

    def offer(self, model: Arrays, base: Arrays, difference: Arrays, precision: Precision) -> None:
        """Let nodes that hold ``base`` be sent ``difference`` in place of ``model``, until the next offer."""
        names = digest(model), digest(base)
        records = RecordDict({_DIFFERENCE: ArrayRecord.from_torch_state_dict(difference)})
        records[_NAMED] = ConfigRecord({_SHA256: names[0], _BASE: names[1], _PRECISION: precision})
        self._offered = *names, records

    def without_held(self, tasks: Mapping[int, RecordDict]) -> dict[int, RecordDict]:
        """Return tasks without the model that a node holds, or with its difference; each is named in ``tasks``, too."""
        # Many nodes are sent one object; its model is hashed once, and left out once.
        names = {id(records): _name_model(records) for records in _distinct(tasks)}
        short = {id(records): _without_model(records) for records in _distinct(tasks)}
        steps = {
            key: RecordDict({**short[key], **self._offered[2]})
            for key, name in names.items()
            if self._offered is not None and self._offered[0] == name
        }

        def shortest(node: int, records: RecordDict) -> RecordDict:
            held, name = self._held.get(node), names[id(records)]
            if self._missed.get(node, 0) >= _MOST_MISSED:
                return records
            if name and held == name:
                return short[id(records)]
            if self._offered is not None and held == self._offered[1]:
                return steps.get(id(records), records)
            return records

        return {node: shortest(node, records) for node, records in tasks.items()}

    def answered(self, node: int, task: RecordDict) -> None:
        """Note that a node has done a task, and so holds its model."""
        name = _name_of(task)
        if name:
            self._held[node] = name

    def gives_up(self, node: int, *, held: bool) -> bool:
        """Note whether a node held what a task left out; tell whether nothing is left out for it any more.

        That is when it did not twice in a row: its disk may be full, or its processor adds otherwise.
        """
        self._missed[node] = 0 if held else self._missed.get(node, 0) + 1
        return self._missed[node] == _MOST_MISSED


def held_model(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Fill in the model that the coordinator left out of a task, or keep the one that it sent: a Flower mod.

    A model is kept once its task is done. A handler refuses one that may remember whom a release has forgotten, and
    during a long task another job may have told the site of a release.
    """
    name = _name_of(message.content)
    if not name:
        return call_next(message, context)
    with site_of_node(context) as site:
        file, epoch = site.folder / HELD_MODEL_FILE, site.ledger.epoch()
        is_held = MODEL not in message.content and _DIFFERENCE not in message.content
        arrays = _model_of(message.content, file, name)
    if arrays is None:
        return Message(Error(MODEL_NOT_HELD, "This site does not hold the model."), reply_to=message)
    if MODEL not in message.content:
        message.content[MODEL] = ArrayRecord.from_torch_state_dict(arrays)
    reply = call_next(message, context)
    if is_held or reply.has_error():
        return reply
    with site_of_node(context) as site:  # opened anew: no database keeps a connection for hours
        if site.ledger.epoch() == epoch:
            _keep(file, arrays, name)
    return reply


def held_name(folder: Path) -> str:
    """Return the name of the model that a site holds; empty without one."""
    try:
        with safe_open(folder / HELD_MODEL_FILE, "pt") as arrays:
            return str((arrays.metadata() or {}).get(_SHA256, ""))
    except (OSError, SafetensorError):
        return ""


def _model_of(content: RecordDict, file: Path, name: str) -> Arrays | None:
    """Return the model of a task; None if it is neither in it nor held."""
    if MODEL in content:
        return arrays_of(content, MODEL, COORDINATOR)
    return _stepped(content, file, name) if _DIFFERENCE in content else _read(file, name)


def _stepped(content: RecordDict, file: Path, name: str) -> Arrays | None:
    """Return the model that a difference from the held one comes to; None if it is another one."""
    named, difference = content.config_records[_NAMED], arrays_of(content, _DIFFERENCE, COORDINATOR)
    del content[_DIFFERENCE]  # mods of updates expect one record of arrays
    base = _read(file, str(named[_BASE]))
    if base is None:
        return None
    try:
        arrays = model_of(difference, base, cast("Precision", named[_PRECISION]), COORDINATOR)
    except MessageError:
        return None
    return arrays if digest(arrays) == name else None  # another processor may add and multiply otherwise


def _name_model(records: RecordDict) -> str:
    if MODEL not in records:
        return ""
    name = digest(arrays_of(records, MODEL, COORDINATOR))
    records[_NAMED] = ConfigRecord({_SHA256: name})
    return name


def _name_of(records: RecordDict) -> str:
    named = records.get(_NAMED)
    return str(named[_SHA256]) if isinstance(named, ConfigRecord) else ""


def _without_model(records: RecordDict) -> RecordDict:
    return RecordDict({name: record for name, record in records.items() if name != MODEL})


def _distinct(tasks: Mapping[int, RecordDict]) -> list[RecordDict]:
    return list({id(records): records for records in tasks.values()}.values())


def _keep(file: Path, arrays: Mapping[str, Tensor], name: str) -> None:
    # Two jobs may write at once; what a killed process leaves goes with the file (Site.drop_held_model).
    new = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
    try:
        save_file({key: array.contiguous() for key, array in arrays.items()}, new, {_SHA256: name})
        new.replace(file)
    except (OSError, SafetensorError):  # a disk that is full costs a message, not a round
        for stale in (new, file):
            with suppress(OSError):
                stale.unlink(missing_ok=True)


def _read(file: Path, name: str) -> Arrays | None:
    """Return the held model if it is the one of this name, whatever the file says of itself."""
    try:
        with safe_open(file, "pt") as held:
            if (held.metadata() or {}).get(_SHA256) != name:
                return None
            arrays = {key: held.get_tensor(key) for key in held.keys()}  # noqa: SIM118 - it is no mapping
        return arrays if digest(arrays) == name else None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
