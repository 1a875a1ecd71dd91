"""Report what a site holds and the state of its requests."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from dlfd_fleet.data import Manifest, Use, canonical, image_digests, names_of, unknown_label
from dlfd_fleet.ledger.dates import site_day
from dlfd_fleet.ledger.entries import ForgetRequest, Leftover
from dlfd_fleet.ledger.references import UnseenAccuracy
from dlfd_fleet.ledger.site import Site
from dlfd_fleet.ledger.site_uses import remarks, site_uses
from dlfd_fleet.ledger.states import TO_PURGE, UNDER_WAY, Action, RequestState


@dataclass(frozen=True)
class SiteStatus:
    """The state of a site.

    Attributes
    ----------
    people, images
        Counts by split.
    requests
        Counts by state.
    open_requests, overdue
        Open requests, and those whose deadline has passed.
    left_out
        Images that are not used for their split: of people who asked, copies of these, purged images that came back,
        and images that are no longer unseen.
    purged
        Number of purged images.
    leftovers
        Files of purged people that still exist, with the reason.
    undeletable
        Sentences about folders from which images cannot be deleted.
    unknown_labels
        Numbers of images by label, for labels that are not among the site's classes.
    references
        Number of reference models with answers, and their job; empty if there are none.
    references_unseen
        A sentence about their accuracy; empty if not known.
    fleet_secret
        Whether the site has the fleet's secret, to recognise people who ask at other sites.
    remarks
        Sentences about the manifest for the operator.
    """

    people: Mapping[str, int]
    images: Mapping[str, int]
    requests: Mapping[str, int]
    open_requests: tuple[ForgetRequest, ...]
    overdue: tuple[ForgetRequest, ...]
    left_out: int
    purged: int
    leftovers: tuple[Leftover, ...]
    undeletable: tuple[str, ...]
    unknown_labels: Mapping[str, int]
    references: str
    references_unseen: str
    fleet_secret: bool
    remarks: tuple[str, ...]


def site_status(site: Site, now: datetime) -> SiteStatus:
    """Check the ledger's seals, and return the state of a site.

    Raises
    ------
    LedgerError
        If the ledger was tampered with.
    DataError
        If the manifest cannot be read.
    """
    site.ledger.verify()
    manifest, requests = site.manifest(), site.ledger.requests()
    uses = site_uses(site, manifest.rows, image_digests(manifest))
    classes, answers = {canonical(name) for name in site.card.classes}, site.references.current()
    return SiteStatus(
        people=Counter(rows[0].split for rows in manifest.by_person().values()),
        images=Counter(row.split for row in manifest.rows),
        requests=Counter(request.state.value for request in requests),
        open_requests=tuple(request for request in requests if request.is_open),
        overdue=tuple(request for request in requests if request.overdue(now)),
        left_out=sum(use.use in (Use.FORGET, Use.NOTHING) for use in uses),
        purged=site.ledger.count_purged(),
        leftovers=tuple(site.ledger.leftovers()),
        undeletable=_undeletable(manifest),
        unknown_labels=Counter(
            unknown
            for row in manifest.rows
            if (unknown := unknown_label(row.label, classes, multi_label=site.card.multi_label)) is not None
        ),
        references=f"{answers.models} of {answers.job}" if answers else "",
        references_unseen=_how_good(answers.unseen) if answers and answers.unseen else "",
        fleet_secret=site.fleet_pseudonym("", "") is not None,
        remarks=remarks(manifest, uses, multi_label=site.card.multi_label),
    )


def _how_good(unseen: UnseenAccuracy) -> str:
    sentence = unseen.sentence()
    said = sentence[0].upper() + sentence[1:]
    return f"{said}: too low, so an erasure does not use the references." if unseen.too_poor else f"{said}."


def _undeletable(manifest: Manifest) -> tuple[str, ...]:
    """Return sentences about folders in which this process may not delete images."""
    if manifest.loaded is not None:
        return ()
    known = dict[Path, Path]()
    images = {file.parent: file for row in manifest.rows for file in names_of(manifest.root, row.image, known)}
    closed = sorted(folder for folder in images if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK))
    if not closed:
        return ()
    more = f" and {len(closed) - 1} more folders" if len(closed) > 1 else ""
    return (
        f"Images in {closed[0]}{more} cannot be deleted by the user of this command: who asks to be forgotten stays in "
        "PURGING until somebody deletes the files. Let the user of the SuperNode write there.",
    )


def find_requests(
    site: Site,
    now: datetime,
    *,
    states: Collection[RequestState] = (),
    due_within: int | None = None,
    search: str = "",
) -> list[ForgetRequest]:
    """Return a site's requests by urgency: open ones first, by deadline.

    Parameters
    ----------
    states
        Only requests in these states.
    due_within
        Only open requests that are overdue or due within this many days.
    search
        Only requests with this text in the name, the note, the way of verification or the id, in any spelling.
    """
    words, today = canonical(search), site_day(now)

    def is_asked_for(request: ForgetRequest) -> bool:
        texts = (request.identity or "", request.note, request.verified_by, request.id)
        return (
            (not states or request.state in states)
            and (due_within is None or (request.is_open and (request.due - today).days <= due_within))
            and any(words in canonical(text) for text in texts)
        )

    found = [request for request in site.ledger.requests() if is_asked_for(request)]
    return sorted(found, key=lambda request: (not request.is_open, request.due, request.received, request.id))


def request_record(request: ForgetRequest, now: datetime) -> dict[str, Any]:
    """Return a request as values of JSON."""
    return {
        "id": request.id,
        "person": request.identity,
        "state": request.state.value,
        "received": request.received.isoformat(),
        "due": request.due.isoformat(),
        "first_due": request.first_deadline.date().isoformat(),
        "days_left": (request.due - site_day(now)).days if request.is_open else None,
        "overdue": request.overdue(now),
        "verified_by": request.verified_by,
        "note": request.note,
        "job": request.job,
        "epoch": request.epoch,
    }


def what_keeps_open(site: Site, request: ForgetRequest) -> str:
    """Return sentences about what an open request waits for; none for a closed one."""
    if request.state is RequestState.ACCEPTED:
        last = [event for event in site.ledger.history(request.id) if event.action is Action.RETURNED][-1:]
        why = f" The job {last[0].job} gave it back: {last[0].reason}." if last and last[0].job else ""
        return f"It waits for the next erasure job of the fleet.{why}"
    if request.state in UNDER_WAY:
        return f"The job {request.job} works on it."
    if request.state in TO_PURGE:
        left = Counter(each.reason for each in site.ledger.leftovers(request.id) if each.listed)
        files = "; ".join(f"{count} files: {reason}" for reason, count in sorted(left.items()))
        said = f" Not deleted yet: {files}." if files else ""
        return f"Its images are not deleted yet; to delete them: dlfd-fleet site purge {site.folder}.{said}"
    if request.is_open:
        return "Its images are deleted. Devices may still hold an older model; the next job tells whether any does."
    return ""
