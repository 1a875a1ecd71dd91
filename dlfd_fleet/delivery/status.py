"""Show the state of a delivery as tables for a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table

from dlfd_fleet.delivery import releases, rollout
from dlfd_fleet.delivery.contents import ROLES, Contents
from dlfd_fleet.delivery.delivery import Delivery
from dlfd_fleet.delivery.devices import Device
from dlfd_fleet.delivery.erasures import published_epochs, standings
from dlfd_fleet.device.contract import Rollout
from dlfd_fleet.plain_text import narrow_table, plain

_ID_SHOWN = 12


def delivery_status(delivery: Delivery) -> RenderableType:
    """Return all tables: signatures and expiry, allowed models, devices, and open erasures."""
    contents = delivery.repository.read()
    parts: list[RenderableType] = [_roles(delivery, contents), _releases(contents)]
    parts.append(rollout_status(delivery, contents))
    devices = delivery.devices.devices()
    parts.append(_devices(devices) if devices else "No device is enrolled.")
    parts += [_erasure(delivery, epoch) for epoch in published_epochs(delivery.devices)]
    parts += [
        plain(f"ALARM {alarm.at:%Y-%m-%d %H:%M} {device.name}: {alarm.said}.")
        for device in devices
        if device.retired is None
        for alarm in device.alarms
    ]
    names = {device.id: device.name for device in devices}
    parts += [
        plain(f"{attack.at:%Y-%m-%d %H:%M} {names[attack.device]} refused: {attack.said}")
        for attack in delivery.devices.attacks()
    ]
    return Group(*parts)


def rollout_status(delivery: Delivery, contents: Contents | None = None) -> RenderableType:
    """Return the progress of a rollout and the state of devices."""
    current = rollout.read(delivery.repository, contents or delivery.repository.read())
    if current is None:
        return "No rollout."
    health = delivery.health(current)
    return f"{rollout_line(current)} Tried by {health.tried} devices, failed on {health.failed}."


def rollout_line(current: Rollout) -> str:
    """Return a rollout as a sentence."""
    return (
        f"Rollout of publication {current.sequence}: {current.state}, {current.share:.0%} of the devices"
        + (f" and {len(current.canaries)} canaries" if current.canaries else "")
        + "."
    )


def _roles(delivery: Delivery, contents: Contents) -> Table:
    table = Table("role", "version", "expires", "keys", "signs with", "found here", title="Signed metadata")
    for role in ROLES:
        delegator = contents.targets.signed if role == "rollout" else contents.root.signed
        wanted, signed = delegator.get_delegated_role(role), contents.of(role).signed
        here = delivery.repository.keys.count(role, delegator)
        late = " EXPIRED" if signed.is_expired(delivery.clock()) else ""
        expires = f"{signed.expires:%Y-%m-%d %H:%M}{late}"
        table.add_row(role, str(signed.version), expires, str(len(wanted.keyids)), str(wanted.threshold), str(here))
    return table


def _releases(contents: Contents) -> Table:
    table = Table("target", "version", "format", "epoch", "least epoch", "MB", title="What devices may run")
    for name, release in releases.listed(contents).items():
        megabytes = contents.targets.signed.targets[name].length / 1e6
        epochs = (str(release.epoch), str(release.minimum_epoch))
        table.add_row(name, release.version, release.format, *epochs, f"{megabytes:.2f}")
    return table


def _devices(devices: list[Device]) -> Table:
    folded = {"device", "runs", "last report", ""}
    table = narrow_table("device", "id", "runs", "epoch", "floor", "healthy", "last report", "", folded=folded)
    table.title = "Devices"
    for device in devices:
        report = device.report
        said = (
            (report.version, str(report.epoch), str(report.floor), "yes" if report.healthy else "NO")
            if report
            else ("-", "-", "-", "-")
        )
        when = f"{device.received_at:%Y-%m-%d %H:%M}" if device.received_at else "never"
        note = f"retired: {device.retired}" if device.retired else "canary" if device.canary else ""
        note = "ALARM" if device.alarms and not device.retired else note
        table.add_row(plain(device.name), device.id[:_ID_SHOWN], *map(plain, said), when, plain(note))
    return table


def _erasure(delivery: Delivery, epoch: int) -> RenderableType:
    stand = standings(delivery.devices, epoch, delivery.clock())
    waiting = [each for each in stand if each.open]
    exceptions = [each for each in stand if each.kind == "excepted"]
    title = f"Erasure epoch {epoch}: " + (f"kept open by {len(waiting)} of {len(stand)} devices" if waiting else "over")
    if not waiting and not exceptions:
        return f"{title} on {len(stand)} devices."
    table = narrow_table("device", "id", "why", folded={"device", "why"})
    for each in (*waiting, *exceptions):
        table.add_row(plain(each.device.name), each.device.id[:_ID_SHOWN], plain(each.reason))
    return Group(f"{title}.", table)
