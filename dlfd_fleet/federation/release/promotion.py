"""List, promote and revoke registered versions, and keep the coordinator's note and the registry in agreement."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

from rich.table import Table
from rich.text import Text

from dlfd_fleet.exceptions import JobError, TrackingError
from dlfd_fleet.federation.records.decisions import require_reason
from dlfd_fleet.federation.records.job_folders import ONNX_FILE
from dlfd_fleet.federation.records.job_record import Champion
from dlfd_fleet.federation.records.store import Store, require_folder
from dlfd_fleet.federation.release.purge import delete_model, purge_remembering
from dlfd_fleet.plain_text import narrow_table, plain
from dlfd_fleet.settings import Settings
from dlfd_fleet.tracking import Tracker, open_registry, open_tracker
from dlfd_fleet.tracking.purge import Purged, purge, purged_versions, revoke_remembering
from dlfd_fleet.tracking.registry import (
    CHAMPION,
    KIND_TAG,
    ORIGINAL,
    VERDICT_TAG,
    RegisteredVersion,
    Registry,
    why_not_promoted,
    why_not_published,
)

_SEND_PATIENCE = 60.0


def registry_table(settings: Settings) -> Table:
    """Return every registered version, also purged ones, and what may be done with it."""
    require_folder(settings.state_folder)
    epoch = fleet_epoch(settings)
    with open_registry(settings.tracking, settings.state_folder) as registry:
        versions, purged = registry.versions(), purged_versions(registry)
    last = "job, and may it run?"
    table = narrow_table("version", "alias", "epoch", "verdict", last, folded={"alias", last})
    for gone in purged:
        said = Text("\n").join([plain(gone.job), plain(f"No, it is purged: {gone.reason}.")])
        table.add_row(plain(gone.version), "", str(gone.epoch), "", said)
    for version in versions:
        reason = why_not_published(version, epoch)
        verdict = version.tags.get(VERDICT_TAG, "")
        aliases = ", ".join(version.aliases)
        said = Text("\n").join([plain(version.job or "-"), plain(f"No. {reason}" if reason else "Yes.")])
        table.add_row(*map(plain, (version.version, aliases, str(version.epoch), verdict)), said)
    return table


def promotion_table(settings: Settings) -> Table:
    """Return every change of the champion: when, which model, by whom and why."""
    table = narrow_table("at", "job", "epoch", "by", "why", folded={"by", "why"})
    require_folder(settings.state_folder)
    with closing(Store(settings.state_folder)) as store:
        for move in store.champions.history():
            cells = (f"{move.at:%Y-%m-%d %H:%M:%S}", move.job, str(move.epoch), move.who, move.why)
            table.add_row(*map(plain, cells))
    return table


def fleet_epoch(settings: Settings) -> int:
    """Return the fleet's erasure epoch: of the coordinator's champion; 0 before there is one."""
    with closing(Store(settings.state_folder)) as store:
        champion = store.champions.current()
        return champion.epoch if champion else 0


def promote(settings: Settings, number: str, who: str, why: str) -> RegisteredVersion:
    """Make a registered version the champion, here and in the registry.

    As after a release, versions that may remember people whom it has forgotten are revoked.

    Raises
    ------
    JobError
        If it may not run (under the fleet's epoch, revoked, or FAIL), or we do not have its files.
    TrackingError
        If there is no such version, MLflow does not answer, or bytes of a revoked version are still there.
    """
    why = require_reason(why)
    with _alone(settings) as (store, tracker):
        with tracker.registry() as registry:
            version = _may_be_promoted(store, registry, number)
            # The note first: if the registry cannot be told now, the next try tells it.
            store.champions.move(Champion(job=version.job, epoch=version.epoch), who, why)
            registry.promote(version, who, why)
            if version.tags.get(KIND_TAG, "original") != "original":
                purging = settings.release.purge_revoked
                revoke_remembering(registry, version.job, version.epoch, also_purge=purging)
        if settings.release.purge_revoked:
            purge_remembering(store)
        return version


def _may_be_promoted(store: Store, registry: Registry, number: str) -> RegisteredVersion:
    version = registry.version(number)
    reason = why_not_promoted(version, store.champions.epoch())
    if reason is None and not (store.folders.model(version.job) / ONNX_FILE).exists():
        reason = f"This coordinator has no files of {version.job}; promote version {number} where it was made."
    if reason is not None:
        raise JobError(reason)
    return version


def what_promoting_does(settings: Settings, number: str) -> list[str]:
    """Say what happens if a version is promoted; it is not.

    Raises
    ------
    JobError, TrackingError
        As :func:`promote`.
    """
    with (
        closing(Store(settings.state_folder)) as store,
        open_registry(settings.tracking, settings.state_folder) as registry,
    ):
        version, champion = _may_be_promoted(store, registry, number), store.champions.current()
        said = [f"Version {number} of {version.job}, erasure epoch {version.epoch}, becomes the champion."]
        if champion is not None:
            said.append(f"It takes the place of {champion.job}, epoch {champion.epoch}.")
        erased = version.tags.get(KIND_TAG, ORIGINAL) != ORIGINAL
        gone = [one.version for one in registry.versions() if erased and one.remembers(version.epoch, version.job)]
        gone = [each for each in gone if each != number]
    if gone:
        purging = ", and their files are deleted" if settings.release.purge_revoked else ""
        said.append(f"What may remember people whom it has forgotten is revoked{purging}: version {', '.join(gone)}.")
    return said


def revoke(settings: Settings, number: str, reason: str, *, also_purge: bool, who: str = "") -> Purged | None:
    """Revoke a version permanently, and optionally delete its files in MLflow and the state folder.

    Returns
    -------
    Purged
        What was deleted; None if nothing was.

    Raises
    ------
    JobError
        If it is the champion, because a fleet without one cannot forget anybody.
    TrackingError
        If there is no such version, MLflow does not answer, or the bytes are still there.
    """
    reason = require_reason(reason)
    with _alone(settings) as (store, tracker), tracker.registry() as registry:
        version = _may_be_revoked(store, registry, number)
        revoked = registry.revoke(version, reason)
        store.decisions.note("revoke", f"version {number} of {version.job}", who, reason)
        if not also_purge:
            return None
        (purged,) = purge(registry, [revoked])
        delete_model(store, version.job)
        return purged


def _may_be_revoked(store: Store, registry: Registry, number: str) -> RegisteredVersion:
    version, champion = registry.version(number), store.champions.current()
    if CHAMPION in version.aliases or (champion is not None and champion.job == version.job):
        raise JobError(f"Version {number} is the champion; promote another version first, or run a job that makes one.")
    return version


def what_revoking_does(settings: Settings, number: str) -> list[str]:
    """Say what happens if a version is revoked; it is not.

    Raises
    ------
    JobError, TrackingError
        As :func:`revoke`.
    """
    with (
        closing(Store(settings.state_folder)) as store,
        open_registry(settings.tracking, settings.state_folder) as registry,
    ):
        version = _may_be_revoked(store, registry, number)
    said = [f"Version {number} of {version.job}, erasure epoch {version.epoch}, never runs again."]
    if settings.release.purge_revoked:
        said.append("Its files are deleted, here and in MLflow.")
    return said


@contextmanager
def _alone(settings: Settings) -> Iterator[tuple[Store, Tracker]]:
    """Yield the store and a tracker that has sent waiting records, while no job runs."""
    require_folder(settings.state_folder)
    with (
        closing(Store(settings.state_folder)) as store,
        store.lock(),
        open_tracker(settings.tracking, settings.state_folder) as tracker,
    ):
        champion = store.champions.current()
        _send(tracker, champion.job if champion else None)
        yield store, tracker


def _send(tracker: Tracker, champion: str | None) -> None:
    tracker.try_again(champion)
    waiting = tracker.flush(_SEND_PATIENCE) if tracker.waiting else 0
    if waiting:
        raise TrackingError(
            f"MLflow at {tracker.uri} does not answer, and {waiting} records wait to be sent first ({tracker.problem})."
        )
    if champion is not None and (owed := tracker.owed(champion)):
        raise TrackingError(
            f"MLflow at {tracker.uri} refused what it must know first, {owed[0]} (`dlfd-fleet outbox list` shows it)."
        )
