"""Keep the last model that a site was sent, so that only changes need to be sent.

A site needs one model several times: for an audit, for repair, for comparison with its file. A task names the model by
its digest (:func:`~dlfd_fleet.models.digest`). The site checks the digest of the model that it holds, or that it makes
from the held one and a difference. The file is deleted when the site learns of a release, because it may remember
forgotten people (:meth:`~dlfd_fleet.ledger.site.Site.raise_epoch`).
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import cast

from flwr.app import ArrayRecord, Context, Error, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dlfd_fleet.exceptions import MessageError
from dlfd_fleet.federation.protocol.differences import model_of
from dlfd_fleet.federation.protocol.held_names import (
    BASE,
    DIFFERENCE,
    MODEL_NOT_HELD,
    NAMED,
    PRECISION,
    SHA256,
    is_kept,
    name_of,
)
from dlfd_fleet.federation.protocol.packing import COORDINATOR, MODEL, Arrays, arrays_of
from dlfd_fleet.federation.site.site_of_node import site_of_node
from dlfd_fleet.ledger.site import HELD_MODEL_FILE
from dlfd_fleet.models import digest
from dlfd_fleet.settings import Precision


def held_model(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Add the held model to a task without one, or keep the one that was sent (a Flower mod).

    A model is kept after its task, unless it is a reference model. A handler may refuse it, or the site may learn of a
    release during a long task; then it is not kept.
    """
    name = name_of(message.content)
    if not name:
        return call_next(message, context)
    with site_of_node(context) as site:
        file, epoch = site.folder / HELD_MODEL_FILE, site.ledger.epoch()
        is_held = MODEL not in message.content and DIFFERENCE not in message.content
        keep = is_kept(message.content)
        arrays = _model_of(message.content, file, name)
    if arrays is None:
        return Message(Error(MODEL_NOT_HELD, "This site does not hold the model."), reply_to=message)
    if MODEL not in message.content:
        message.content[MODEL] = ArrayRecord.from_torch_state_dict(arrays)
    reply = call_next(message, context)
    if is_held or not keep or reply.has_error():
        return reply
    with site_of_node(context) as site:  # opened anew: no database keeps a connection for hours
        if site.ledger.epoch() == epoch:
            _keep(file, arrays, name)
    return reply


def held_name(folder: Path) -> str:
    """Return the digest of the model that a site holds; empty without one."""
    try:
        with safe_open(folder / HELD_MODEL_FILE, "pt") as arrays:
            return str((arrays.metadata() or {}).get(SHA256, ""))
    except (OSError, SafetensorError):
        return ""


def _model_of(content: RecordDict, file: Path, name: str) -> Arrays | None:
    """Return the model of a task; None if it is neither sent nor held."""
    if MODEL in content:
        return arrays_of(content, MODEL, COORDINATOR)
    return _stepped(content, file, name) if DIFFERENCE in content else _read(file, name)


def _stepped(content: RecordDict, file: Path, name: str) -> Arrays | None:
    """Return the held model plus a difference; None if the result has another digest."""
    named, difference = content.config_records[NAMED], arrays_of(content, DIFFERENCE, COORDINATOR)
    del content[DIFFERENCE]  # mods of updates expect one record of arrays
    base = _read(file, str(named[BASE]))
    if base is None:
        return None
    changed = {key: array for key, array in base.items() if key in difference}
    try:
        arrays = base | model_of(difference, changed, cast("Precision", named[PRECISION]), COORDINATOR)
    except MessageError:
        return None
    return arrays if digest(arrays) == name else None  # another processor may add and multiply otherwise


def _keep(file: Path, arrays: Mapping[str, Tensor], name: str) -> None:
    # Two jobs may write at once; what a killed process leaves goes with the file (Site.drop_held_model).
    new = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
    try:
        save_file({key: array.contiguous() for key, array in arrays.items()}, new, {SHA256: name})
        new.replace(file)
    except (OSError, SafetensorError):  # a disk that is full costs a message, not a round
        for stale in (new, file):
            with suppress(OSError):
                stale.unlink(missing_ok=True)


def _read(file: Path, name: str) -> Arrays | None:
    """Return the held model if its content has this digest."""
    try:
        with safe_open(file, "pt") as held:
            if (held.metadata() or {}).get(SHA256) != name:
                return None
            arrays = {key: held.get_tensor(key) for key in held.keys()}  # noqa: SIM118 - it is no mapping
        return arrays if digest(arrays) == name else None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
