"""What a site holds and how its requests stand, for the people who run it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from dlfd_fleet.data import Use, canonical, image_digests
from dlfd_fleet.ledger.ledger import ForgetRequest
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
        Images that were purged so far.
    unknown_labels
        Images in the manifest by label, of labels that are none of the site's classes.
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
    unknown_labels: Mapping[str, int]
    fleet_secret: bool
    remarks: tuple[str, ...]


def site_status(site: Site, now: datetime) -> SiteStatus:
    """Return how a site stands, after checking its ledger's history.

    Raises
    ------
    LedgerError
        If the history was tampered with.
    DataError
        If the manifest cannot be read.
    """
    site.ledger.verify()
    manifest, requests, tombstones = site.manifest(), site.ledger.requests(), site.ledger.tombstones()
    uses = site_uses(site, manifest.rows, image_digests(manifest))
    classes = {canonical(name) for name in site.card.classes}
    return SiteStatus(
        people=Counter(rows[0].split for rows in manifest.by_person().values()),
        images=Counter(row.split for row in manifest.rows),
        requests=Counter(request.state.value for request in requests),
        open_requests=tuple(request for request in requests if request.state not in CLOSED),
        overdue=tuple(request for request in requests if request.overdue(now)),
        left_out=sum(use.use in (Use.FORGET, Use.NOTHING) for use in uses),
        purged=len(tombstones),
        unknown_labels=Counter(row.label for row in manifest.rows if canonical(row.label) not in classes),
        fleet_secret=site.fleet_pseudonym("", "") is not None,
        remarks=remarks(manifest, uses),
    )
