"""Asking the sites what waits there, before there is a job: nothing is taken up, and nothing changes."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from flwr.serverapp import Grid

from dlfd_fleet.federation.protocol.messages import PendingQuery, PendingReply
from dlfd_fleet.federation.records.due import Due, SiteWaiting, Waiting, erasure_due
from dlfd_fleet.federation.records.job_record import JobRecord
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.federation.rounds.fleet import Fleet
from dlfd_fleet.federation.rounds.requests import ask_pending
from dlfd_fleet.federation.rounds.site_keys import SITE_KEYS_FILE, SiteKeys
from dlfd_fleet.settings import Settings


def ask_whether_due(grid: Grid, settings: Settings) -> Due:
    """Ask the sites what waits, and tell whether an erasure is due; a job that was interrupted always is.

    Raises
    ------
    JobError
        If no site answers.
    """
    with closing(Store(settings.state_folder)) as store:
        if store.is_locked():
            return Due(False, "Nothing is started: another job works on this state folder.")
        if interrupted := store.interrupted():
            return Due(True, f"{interrupted[-1].job} was interrupted, and goes on.")
        earlier, now = store.jobs(), datetime.now(UTC)
        keys = SiteKeys(store.folder / SITE_KEYS_FILE, settings.fleet.registered_keys)
        fleet = Fleet.under(settings.fleet, grid, keys)
        expected = _expected(store.folder, earlier)
        fleet.wait_for_nodes(max(settings.fleet.least_sites, len(expected)), settings.fleet.connect_seconds)
        # A name that no other question has: sites make what they say under the name of the job that asks.
        query = PendingQuery(job=f"due-{secrets.token_hex(8)}", plan=True, epoch=store.champions.epoch())
        waiting = waiting_at(fleet, ask_pending(fleet, query), expected, now)
        waiting.write(store.folder)
        return erasure_due(settings.erasure.due, waiting, earlier, now.astimezone().date())


def waiting_at(fleet: Fleet, replies: Mapping[int, PendingReply], expected: Sequence[str], now: datetime) -> Waiting:
    """Return what the sites have said to a question of a plan, and which of those that are expected have not answered.

    Parameters
    ----------
    expected
        Sites by their pseudonyms.
    """
    sites = {
        fleet.name(node): SiteWaiting(requests=reply.waiting + reply.begun, first_due=reply.first_due)
        for node, reply in replies.items()
    }
    away = dict.fromkeys((site for site in expected if site not in sites), "does not answer") | fleet.absent
    return Waiting(asked_at=now, sites=sites, away={site: why for site, why in away.items() if site not in sites})


def _expected(folder: Path, earlier: Sequence[JobRecord]) -> list[str]:
    """Return the sites of the last job that had any, and those where requests waited when they were last asked."""
    last = next((record.proceedings.sites for record in reversed(earlier) if record.proceedings.sites), ())
    known = Waiting.read(folder)
    waited = {site for site, said in known.sites.items() if said.requests} if known else set()
    return sorted({share.site for share in last} | waited)
