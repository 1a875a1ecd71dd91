"""A site keeps the last model that it was sent, so that the coordinator need not send it again, or only what changed.

A model goes to a site to be audited, to be repaired, to be compared with its file: without this, whole each time. The
file on the site's disk goes when an erasure is released, for it may remember
(:meth:`~dlfd_fleet.ledger.site.Site.drop_held_model`).
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
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
from dlfd_fleet.federation.site_of_node import site_folder
from dlfd_fleet.ledger.site import HELD_MODEL_FILE
from dlfd_fleet.settings import Precision

MODEL_NOT_HELD = 1001
"""Code of a site's error reply; none of Flower's own."""
_NAMED, _SHA256, _ORDER = "model-named", "sha256", "order"
_DIFFERENCE, _BASE, _PRECISION = "model-difference", "base", "precision"


class HeldModels:
    """What the coordinator knows of the models that nodes hold."""

    def __init__(self) -> None:
        self._held = dict[int, str]()
        self._offered: tuple[str, str, RecordDict] | None = None

    def note(self, node: int, name: str) -> None:
        """Note the name of the model that a node says it holds; it may be empty."""
        self._held[node] = name

    def offer(self, model: Arrays, base: Arrays, difference: Arrays, precision: Precision) -> None:
        """Let nodes that hold ``base`` be sent ``difference`` in place of ``model``, until the next offer."""
        names = _sha256(ArrayRecord.from_torch_state_dict(model)), _sha256(ArrayRecord.from_torch_state_dict(base))
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


def held_model(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Fill in the model that the coordinator left out of a task, or keep the one that it sent: a Flower mod."""
    name = _name_of(message.content)
    if name:
        file, model = site_folder(context) / HELD_MODEL_FILE, message.content.get(MODEL)
        if isinstance(model, ArrayRecord):
            _keep(file, dict(model.to_torch_state_dict()), name)
        else:
            arrays = _stepped(file, message.content) if _DIFFERENCE in message.content else _read(file, name)
            if arrays is None:
                return Message(Error(MODEL_NOT_HELD, "This site does not hold the model."), reply_to=message)
            message.content[MODEL] = ArrayRecord.from_torch_state_dict(arrays)
    return call_next(message, context)


def held_name(folder: Path) -> str:
    """Return the name of the model that a site holds; empty without one."""
    try:
        with safe_open(folder / HELD_MODEL_FILE, "pt") as arrays:
            return str((arrays.metadata() or {}).get(_SHA256, ""))
    except (OSError, SafetensorError):
        return ""


def _stepped(file: Path, content: RecordDict) -> Arrays | None:
    """Return the model that a difference from the held one comes to, and keep it; None if it is another one."""
    named, difference = content.config_records[_NAMED], arrays_of(content, _DIFFERENCE, COORDINATOR)
    del content[_DIFFERENCE]  # mods of updates expect one record of arrays
    base = _read(file, str(named[_BASE]))
    if base is None:
        return None
    try:
        arrays = model_of(difference, base, cast("Precision", named[_PRECISION]), COORDINATOR)
    except MessageError:
        return None
    if _sha256(ArrayRecord.from_torch_state_dict(arrays)) != named[_SHA256]:
        return None  # another processor may add and multiply otherwise
    _keep(file, arrays, str(named[_SHA256]))
    return arrays


def _name_model(records: RecordDict) -> str:
    model = records.get(MODEL)
    if not isinstance(model, ArrayRecord):
        return ""
    name = _sha256(model)
    records[_NAMED] = ConfigRecord({_SHA256: name})
    return name


def _sha256(model: ArrayRecord) -> str:
    sha = hashlib.sha256()
    for key, array in model.items():
        sha.update(f"{key}|{array.dtype}|{array.shape}|".encode())
        sha.update(array.data)
    return sha.hexdigest()


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
    order = json.dumps(list(arrays))
    try:
        save_file({key: array.contiguous() for key, array in arrays.items()}, new, {_SHA256: name, _ORDER: order})
        new.replace(file)
    except (OSError, SafetensorError):  # a disk that is full costs a message, not a round
        for stale in (new, file):
            stale.unlink(missing_ok=True)


def _read(file: Path, name: str) -> Arrays | None:
    try:
        with safe_open(file, "pt") as arrays:
            kept = arrays.metadata() or {}
            if kept.get(_SHA256) != name:
                return None
            return {key: arrays.get_tensor(key) for key in json.loads(kept[_ORDER])}
    except (OSError, SafetensorError):
        return None
