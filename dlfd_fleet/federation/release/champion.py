"""Find the champion: compare the coordinator's note with the registry's alias."""

from __future__ import annotations

from collections.abc import Callable

from dlfd_fleet.exceptions import TrackingError
from dlfd_fleet.federation.records.job_folders import ONNX_FILE
from dlfd_fleet.federation.records.job_record import Champion
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.tracking import Tracker
from dlfd_fleet.tracking.registry import why_not_published


def agreed_champion(store: Store, tracker: Tracker, say: Callable[[str], None]) -> Champion | None:
    """Return the registry's champion if it may run and we have its model; otherwise our own note.

    The registry is not followed if entries for it wait in the outbox, or if it names a model of another fleet. An alias
    that a person moved is followed, and our note is changed.

    Parameters
    ----------
    say
        Told why the registry is not followed.
    """
    own = store.champions.current()
    try:
        version = tracker.champion()
    except TrackingError as error:
        say(f"{error} Our own note of the champion is used.")
        return own
    if own is None or version is None:
        return own
    if not (store.folders.model(version.job) / ONNX_FILE).exists():
        if version.epoch > own.epoch:
            say(
                f"The registry's champion is of the erasure epoch {version.epoch}, and this coordinator is at "
                f"{own.epoch}, and has not its files: was the state folder put back from a backup? The own champion "
                "is used, and may remember whom the fleet has forgotten since."
            )
        return own
    found = Champion(job=version.job, epoch=version.epoch)
    if found == own or tracker.owes_model(own.job):
        return own
    reason = why_not_published(version, own.epoch)
    if reason is not None:
        say(f"The registry's champion is not followed: {reason}")
        return own
    store.champions.move(found, "the registry", "the alias was moved there")
    return found
