"""Decide what a device may run and what it installs next, without disk or network."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

from dlfd_fleet.device.contract import Release, Rollout
from dlfd_fleet.device.state import DeviceState, Refusal, Slot
from dlfd_fleet.exceptions import UpdateRefusedError

Offer = tuple[str, Release]
"""A target's name and its signed release."""

NOTHING_NEW = Rollout(name="", sequence=0, share=0.0, state="paused")
"""Used while the rollout cannot be read: it admits only what a device under its floor needs."""
RETRY_AFTER = timedelta(days=1)
_MOST_DOUBLINGS = 4
_JITTER = 0.2


def check_may_run(release: Release, file_epoch: int, floor: int) -> None:
    """Refuse a model under the floor, by its signed release and by its file's metadata.

    Raises
    ------
    UpdateRefusedError
        If they differ or are under the floor.
    """
    if file_epoch != release.epoch:
        raise UpdateRefusedError(
            f"The model {release.version} is signed as epoch {release.epoch}, and its file says {file_epoch}: old "
            "model bytes in newer metadata."
        )
    if release.epoch < floor:
        raise UpdateRefusedError(
            f"The model {release.version} has epoch {release.epoch}, under this device's floor {floor}: it remembers "
            "people who were forgotten since."
        )


def choose(
    offers: Sequence[Offer],
    rollout: Rollout | None,
    *,
    device: str,
    formats: Sequence[str],
    floor: int,
    current: Release | None,
    refused: Collection[str] = (),
) -> Offer | None:
    """Return the release to install; None to change nothing.

    Parameters
    ----------
    offers
        Releases that the repository lists.
    rollout
        Which devices may take the newest release; None for all.
    formats
        Formats that this device takes, best first.
    current
        The current release.
    refused
        Targets that failed.

    Notes
    -----
    A newer release is taken if the rollout admits this device. An older one is taken only instead of one whose rollout
    was aborted. A device whose model is under the floor takes the newest release that is open to all, or the newest of
    any if the floor forbids all of these.
    """

    def rank(release: Release) -> tuple[int, int, int]:
        place = formats.index(release.format) if release.format in formats else len(formats)
        return release.epoch, release.sequence, -place

    def admitted(release: Release, *, under_floor: bool) -> bool:
        has_it = current is not None and current.sequence == release.sequence
        return rollout is None or rollout.admits(device, release.sequence, under_floor=under_floor, has_it=has_it)

    allowed = sorted(
        (
            (target, release)
            for target, release in offers
            if release.epoch >= floor and release.format in formats and target not in refused
        ),
        key=lambda offer: rank(offer[1]),
        reverse=True,
    )
    if current is None or current.epoch < floor:
        open_to_all = [offer for offer in allowed if admitted(offer[1], under_floor=False)]
        return next(iter(open_to_all or [offer for offer in allowed if admitted(offer[1], under_floor=True)]), None)
    best = next((offer for offer in allowed if admitted(offer[1], under_floor=False)), None)
    if best is None:
        return None
    is_newer = rank(best[1]) > rank(current)
    is_taken_back = rank(best[1]) < rank(current) and not admitted(current, under_floor=False)
    return best if is_newer or is_taken_back else None


def slots_after(state: DeviceState, new: Slot, floor: int) -> DeviceState:
    """Return the state with a new current model; the earlier one stays if the floor allows it."""
    older = [slot for slot in state.slots if slot.sha256 != new.sha256 and slot.release.epoch >= floor]
    return state.but(current=new, previous=older[0] if older else None)


def slots_at_floor(state: DeviceState, floor: int) -> DeviceState:
    """Return the state without the models that the floor forbids."""
    current, previous = (
        slot if slot and slot.release.epoch >= floor else None for slot in (state.current, state.previous)
    )
    return state.but(current=current, previous=previous)


def without(state: DeviceState, slot: Slot) -> DeviceState:
    """Return the state without a model that is damaged."""
    current, previous = (None if kept == slot else kept for kept in (state.current, state.previous))
    return state.but(current=current, previous=previous)


def standing(refusals: Sequence[Refusal], listed: Collection[tuple[str, str]], now: datetime) -> tuple[Refusal, ...]:
    """Return the refusals of these targets and digests that are less than a day old."""
    return tuple(
        refusal
        for refusal in refusals
        if (refusal.target, refusal.sha256) in listed and timedelta(0) <= now - refusal.time < RETRY_AFTER
    )


def delay(interval: float, failures: int, generator: random.Random) -> float:
    """Return the seconds until the next poll: spread over the fleet, and longer after failures."""
    spread = generator.uniform(1.0 - _JITTER, 1.0 + _JITTER)
    return float(interval * 2 ** min(failures, _MOST_DOUBLINGS) * spread)
