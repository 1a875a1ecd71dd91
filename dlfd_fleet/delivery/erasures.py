"""Decide when an erasure is over on devices: each has purged older models, is retired, or has lost its lease."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from dlfd_fleet.delivery.devices import Device, DeviceStore


@dataclass(frozen=True)
class Standing:
    """Whether a device keeps an erasure open, and why."""

    device: Device
    kind: Literal["open", "purged", "retired", "excepted"]
    """``excepted``: it has not purged, but its lease is over, so it does not keep the erasure open."""
    reason: str

    @property
    def open(self) -> bool:
        """Whether the erasure waits for this device."""
        return self.kind == "open"


def published_epochs(store: DeviceStore) -> list[int]:
    """Return the erasure epochs that devices know of."""
    return sorted({file.epoch for file in store.files() if file.epoch})


def standings(store: DeviceStore, epoch: int, now: datetime | None = None) -> list[Standing]:
    """Return the standing of every device in the erasure of an epoch."""
    epochs: dict[str, int] = {}
    for file in store.files():
        epochs[file.sha256] = max(file.epoch, epochs.get(file.sha256, 0))
    return [_standing(device, epoch, epochs, now or datetime.now(UTC)) for device in store.devices()]


def open_devices(store: DeviceStore, epoch: int, now: datetime | None = None) -> list[Standing]:
    """Return the devices that may still hold a model from before the erasure of an epoch."""
    return [standing for standing in standings(store, epoch, now) if standing.open]


def reached(store: DeviceStore, epoch: int, now: datetime | None = None) -> tuple[int | None, str]:
    """Return the greatest erasure epoch, up to this one, that no device keeps open, and a sentence about devices.

    Returns
    -------
    tuple
        The epoch (None if no device was ever enrolled), and a sentence with counts only, because sites receive it.
    """
    stand = standings(store, epoch, now)
    if not stand:
        return None, "no device is registered with this fleet"
    over = epoch
    while over and open_devices(store, over, now):
        over -= 1
    kinds = Counter(each.kind for each in stand)
    alarms = sum(each.open and bool(each.device.alarms) for each in stand)
    return over, (
        f"epoch {epoch} on {len(stand)} devices: {kinds['purged']} have purged, {kinds['retired']} are retired, "
        f"{kinds['excepted']} have not purged and may not answer any more (an exception), {kinds['open']} keep it open"
        + (f", {alarms} of them with an alarm" if alarms else "")
    )


def _standing(device: Device, epoch: int, epochs: dict[str, int], now: datetime) -> Standing:
    report = device.report
    if device.retired is not None:
        return Standing(device, "retired", f"retired: {device.retired}")
    if device.alarms:
        first = device.alarms[0]
        return Standing(
            device,
            "open",
            f"ALARM since {first.at:%Y-%m-%d %H:%M}: {first.said}; find the cause, then retire the device",
        )
    old = [digest for digest in report.installed if epochs.get(digest, -1) < epoch] if report else []
    if report is not None and report.floor >= epoch and not old:
        return Standing(device, "purged", f"has purged, as it reported on {report.time:%Y-%m-%d %H:%M}")
    if report is not None and report.floor >= epoch:
        return Standing(device, "open", f"still holds {len(old)} older or unknown files")
    if device.lease_is_over(now):
        return Standing(device, "excepted", "EXCEPTION: has not purged; its lease is over, so it no longer answers")
    said = f"was at epoch {report.floor} when it last reported, {report.time:%Y-%m-%d %H:%M}" if report else ""
    return Standing(device, "open", said or "has never reported")
