"""What a site holds and how its requests stand, for the people who run it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from dlfd_fleet.data import Manifest, Use, canonical, image_digests, names_of, unknown_label
from dlfd_fleet.ledger.ledger import ForgetRequest, Leftover
from dlfd_fleet.ledger.references import UnseenAccuracy
from dlfd_fleet.ledger.site import Site
from dlfd_fleet.ledger.site_uses import remarks, site_uses
from dlfd_fleet.ledger.states import CLOSED


@dataclass(frozen=True)
class SiteStatus:
    """A site at a moment.

    Attributes
    ----------
    people, images
        Counts by split.
    requests
        Counts by state.
    open_requests, overdue
        Requests that are neither complete nor withdrawn, and those of them whose deadline has passed.
    left_out
        Images in the manifest that are used for nothing but forgetting: of people who asked to be forgotten, copies of
        those, images that were purged and came back, and unseen ones that are no longer unseen.
    purged
        Images that were purged so far, and are gone.
    leftovers
        Files of purged people that are still there, and why.
    undeletable
        Sentences about image folders that a purge could not delete from.
    unknown_labels
        Images in the manifest by label, of labels that are none of the site's classes.
    references
        How many reference models the site has answers of, and of which job; empty if it has none.
    references_unseen
        How good these models are, in one sentence; empty if that is not known.
    fleet_secret
        Whether the site can recognise people who ask at other sites.
    remarks
        What whoever runs the site should know of its manifest, in one sentence each.
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
    """Return how a site stands, after checking its ledger's seals.

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
        open_requests=tuple(request for request in requests if request.state not in CLOSED),
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
    return f"{said}: too little to aim at, so an erasure takes the long way." if unseen.too_poor else f"{said}."


def _undeletable(manifest: Manifest) -> tuple[str, ...]:
    """Say in which folders this process may not delete images; a purge needs to."""
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
