"""Read a device's folder without being its agent: its model and its state."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from dlfd_fleet.device import install, rules
from dlfd_fleet.device.answering import NoAnswerError, check_lease
from dlfd_fleet.device.clock import Clock
from dlfd_fleet.device.folder import DeviceFolder
from dlfd_fleet.device.inference import DeviceModel
from dlfd_fleet.device.lease import lease_in_force, offered_lease
from dlfd_fleet.device.state import DeviceState
from dlfd_fleet.exceptions import DeviceError


def allowed_model(folder: DeviceFolder) -> DeviceModel:
    """Load the model that this device may run now, with or without a running agent.

    Raises
    ------
    NoAnswerError
        If the lease has run out, or there is no such model.
    DeviceError
        If the model is damaged, or the floor is lost.
    """
    clock, state, floor = Clock(folder.clock), folder.read_state(), folder.floor.read()
    check_lease(_lease(folder, state), clock.now())
    clock.keep()
    current = rules.slots_at_floor(state, floor).current
    if current is None:
        raise NoAnswerError(
            f"This device has no model that may run: {state.problem or 'nothing is installed at or above its floor.'}"
        )
    try:
        return install.load(folder, current, floor)
    except DeviceError:
        if folder.read_state().current == current:
            raise
        return allowed_model(folder)  # the agent has exchanged it meanwhile


def describe(folder: DeviceFolder) -> dict[str, Any]:
    """Return the state of a device as JSON values."""
    clock, state, floor = Clock(folder.clock), folder.read_state(), folder.floor.read()
    current = state.current.release if state.current else None
    lease = _lease(folder, state)
    answers = current is not None and current.epoch >= floor and (lease is None or clock.now() < lease)
    return {
        "device": folder.device,
        "url": folder.settings.url,
        "version": current.version if current else "",
        "format": current.format if current else "",
        "epoch": current.epoch if current else None,
        "floor": floor,
        "answers": answers,
        "healthy": state.healthy and answers,
        "previous": state.previous.release.version if state.previous else "",
        "heard": str(state.heard or ""),
        "lease_until": str(lease or ""),
        "problem": state.problem,
        "refused": [refusal.reason for refusal in state.refusals],
        "unreported": state.unreported,
        "purged_unreported": list(state.purged),
    }


def _lease(folder: DeviceFolder, state: DeviceState) -> datetime | None:
    return lease_in_force(offered_lease(state.heard, folder.settings.lease_days), state.acknowledged_lease)
