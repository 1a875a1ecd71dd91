"""Decide which devices may take a new release: canaries, then growing shares, each step by a person's decision.

The rules are functions from one :class:`~dlfd_fleet.device.contract.Rollout` to the next. The floor rises in the last
step, which needs the releases' keys. Until then devices outside the ring keep the earlier model.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from pydantic import ValidationError
from tuf.api.exceptions import RepositoryError

from dlfd_fleet.delivery import releases
from dlfd_fleet.delivery.contents import Contents
from dlfd_fleet.delivery.devices import Device, DeviceStore
from dlfd_fleet.delivery.repository import Repository
from dlfd_fleet.device.contract import ROLLOUT_TARGET, Rollout
from dlfd_fleet.exceptions import DeliveryError
from dlfd_fleet.settings import DeliverySettings

_SILENT = timedelta(days=2)
"""Devices report once a day. A rollout does not wait for a device that is silent for this long."""

# ---------------------------------------------------------------------- the rules


def planned(sequence: int) -> Rollout:
    """Return the rollout of a release that no device may take yet."""
    return Rollout(name=secrets.token_hex(8), sequence=sequence, share=0.0, state="paused")


def for_everybody(sequence: int) -> Rollout:
    """Return the rollout of a release that is for every device at once."""
    return Rollout(name=secrets.token_hex(8), sequence=sequence, share=1.0, state="complete")


def started(rollout: Rollout, canaries: Iterable[str], shares: Sequence[float]) -> Rollout:
    """Offer a planned release to the canaries, or to the first share if there are none."""
    if rollout.state != "paused" or rollout.share or rollout.canaries:
        raise DeliveryError(f"The rollout of publication {rollout.sequence} is {rollout.state} and has begun already.")
    canaries = tuple(sorted(canaries))
    share = 0.0 if canaries else shares[0]
    return rollout.model_copy(update={"state": "running", "canaries": canaries, "share": share})


def widened(rollout: Rollout, shares: Sequence[float]) -> Rollout:
    """Offer it to the next share of the devices."""
    _must_be(rollout, "widened", "running")
    wider = [share for share in shares if share > rollout.share]
    if not wider:
        raise DeliveryError("Every device may take the release: complete the rollout.")
    return rollout.model_copy(update={"share": wider[0]})


def paused(rollout: Rollout) -> Rollout:
    """Stop more devices from taking it; devices that have it keep it."""
    _must_be(rollout, "paused", "running")
    return rollout.model_copy(update={"state": "paused"})


def resumed(rollout: Rollout) -> Rollout:
    """Continue after a pause."""
    _must_be(rollout, "resumed", "paused")
    if not rollout.share and not rollout.canaries:
        raise DeliveryError("The rollout has not begun: start it.")
    return rollout.model_copy(update={"state": "running"})


def aborted(rollout: Rollout) -> Rollout:
    """Withdraw it from the devices that have it; they return to the earlier release."""
    _must_be(rollout, "aborted", "running", "paused")
    return rollout.model_copy(update={"state": "aborted"})


def completed(rollout: Rollout) -> Rollout:
    """End the rollout: all devices may take the release."""
    _must_be(rollout, "completed", "running")
    if rollout.share < 1.0:
        raise DeliveryError(
            f"Only {rollout.share:.0%} of the devices may take publication {rollout.sequence} yet: widen the rollout."
        )
    return rollout.model_copy(update={"state": "complete"})


def _must_be(rollout: Rollout, done: str, *states: str) -> None:
    if rollout.state not in states:
        raise DeliveryError(
            f"The rollout of publication {rollout.sequence} is {rollout.state}: it cannot be {done}; "
            "publish another version to begin one."
        )


@dataclass(frozen=True)
class Health:
    """Numbers of devices in a rollout, and how many of them failed.

    Attributes
    ----------
    ring
        Number of devices that may take it, without those silent for days.
    tried
        How many of these run it or failed to.
    failed
        How many of these do not answer with it.
    """

    ring: int
    tried: int
    failed: int

    def why_abort(self, settings: DeliverySettings) -> str | None:
        """Return why a rollout must be aborted; None if it can go on."""
        least = max(1, min(settings.least_reports, self.ring))
        if self.tried < least or self.failed <= settings.failed_share * self.tried:
            return None
        return (
            f"{self.failed} of {self.tried} devices that tried it failed, more than the {settings.failed_share:.0%} "
            "of delivery.failed_share"
        )


def health(rollout: Rollout, devices: Iterable[Device], since: datetime | None, now: datetime) -> Health:
    """Count devices that a rollout has reached. Reports of other devices do not count.

    Parameters
    ----------
    since
        Time of publication; earlier reports do not count.
    """
    ring = tried = failed = 0
    for device in devices:
        # One that has the release, and should not, is no witness; nor is one whose key two machines have.
        if device.retired is not None or device.alarms or not rollout.has_in_its_ring(device.id):
            continue
        ring += now - (device.received_at or device.enrolled_at) <= _SILENT
        if device.report is None or since is None or device.received_at is None or device.received_at < since:
            continue
        runs, in_vain = (device.report.sequence == rollout.sequence, rollout.sequence in device.report.failed)
        tried += runs or in_vain
        failed += in_vain or (runs and not device.report.healthy)
    return Health(ring, tried, failed)


# ---------------------------------------------------------------------- the repository


def read(repository: Repository, contents: Contents) -> Rollout | None:
    """Return the rollout that a repository has for devices."""
    target = contents.rollout.signed.targets.get(ROLLOUT_TARGET)
    if target is None:
        return None
    try:
        content = (repository.served / "targets" / target.get_prefixed_paths()[0]).read_bytes()
        target.verify_length_and_hashes(content)
        return Rollout.model_validate_json(content)
    except (OSError, RepositoryError, ValidationError) as error:
        raise DeliveryError(f"The rollout in {repository.served} cannot be read: {error}.") from error


def put(repository: Repository, contents: Contents, rollout: Rollout) -> None:
    """Set the rollout for the next commit of the role ``rollout``."""
    target = repository.store(ROLLOUT_TARGET, rollout.model_dump_json(indent=1).encode())
    contents.rollout.signed.targets[ROLLOUT_TARGET] = target


def change(repository: Repository, rule: Callable[[Rollout], Rollout]) -> Rollout:
    """Apply one of the rules to the rollout, and sign it.

    Raises
    ------
    DeliveryError
        If there is no rollout, the rule does not allow it, or a key is missing.
    """
    with repository.lock():
        contents = repository.read()
        rollout = rule(_current(repository, contents))
        put(repository, contents, rollout)
        repository.commit(contents, ("rollout",))
    return rollout


def complete(repository: Repository, devices: DeviceStore) -> Rollout:
    """End a rollout: forbid models under the release's epoch, and delete them.

    Raises
    ------
    DeliveryError
        If not every device may take it yet, or the releases' keys are missing.
    """
    with repository.lock():
        contents = repository.read()
        rollout = completed(_current(repository, contents))
        epochs = [each.epoch for each in releases.listed(contents).values() if each.sequence == rollout.sequence]
        releases.raise_floor(contents, max(epochs, default=0))
        put(repository, contents, rollout)
        repository.commit(contents, ("targets", "rollout"))
        devices.raise_floor(releases.floor(contents))
    return rollout


def _current(repository: Repository, contents: Contents) -> Rollout:
    rollout = read(repository, contents)
    if rollout is None:
        raise DeliveryError("There is no rollout: `dlfd-fleet publish VERSION --rings` begins one.")
    return rollout
