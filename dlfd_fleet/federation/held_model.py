"""A site keeps the last model that it was sent, so that the coordinator need not send it again.

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

from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dlfd_fleet.federation.messages import MODEL
from dlfd_fleet.federation.site_of_node import site_folder
from dlfd_fleet.ledger.site import HELD_MODEL_FILE

MODEL_NOT_HELD = 1001
"""Code of a site's error reply; none of Flower's own."""
_NAMED, _SHA256, _ORDER = "model-named", "sha256", "order"


class HeldModels:
    """What the coordinator knows of the models that nodes hold."""

    def __init__(self) -> None:
        self._held = dict[int, str]()

    def without_held(self, tasks: Mapping[int, RecordDict]) -> dict[int, RecordDict]:
        """Return tasks in which the model that a node holds is named only; in ``tasks`` each model is named, too."""
        # Many nodes are sent one object; its model is hashed once, and left out once.
        names = {id(records): _name_model(records) for records in _distinct(tasks)}
        short = {id(records): _without_model(records) for records in _distinct(tasks)}
        return {
            node: short[id(records)] if self._held.get(node) == (names[id(records)] or None) else records
            for node, records in tasks.items()
        }

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
            arrays = _read(file, name)
            if arrays is None:
                return Message(Error(MODEL_NOT_HELD, "This site does not hold the model."), reply_to=message)
            message.content[MODEL] = ArrayRecord.from_torch_state_dict(arrays)
    return call_next(message, context)


def _name_model(records: RecordDict) -> str:
    model = records.get(MODEL)
    if not isinstance(model, ArrayRecord):
        return ""
    sha = hashlib.sha256()
    for key, array in model.items():
        sha.update(f"{key}|{array.dtype}|{array.shape}|".encode())
        sha.update(array.data)
    records[_NAMED] = ConfigRecord({_SHA256: sha.hexdigest()})
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


def _read(file: Path, name: str) -> dict[str, Tensor] | None:
    try:
        with safe_open(file, "pt") as arrays:
            kept = arrays.metadata() or {}
            if kept.get(_SHA256) != name:
                return None
            return {key: arrays.get_tensor(key) for key in json.loads(kept[_ORDER])}
    except (OSError, SafetensorError):
        return None
