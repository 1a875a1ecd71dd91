"""Deleting what a site holds of forgotten people: after a release, and whenever it comes back."""

from __future__ import annotations

from dlfd_fleet.data import canonical, image_digest, purge_rows, returned_images
from dlfd_fleet.ledger.ledger import ForgetRequest
from dlfd_fleet.ledger.site import Site
from dlfd_fleet.ledger.states import FORGOTTEN, TO_PURGE, RequestState


def purge_request(site: Site, request: ForgetRequest) -> int:
    """Delete the images of a released request's person, and then the name; return how many images were deleted.

    Images with the same bytes go too, whatever they are called and whosever they are said to be. The request waits
    then until no device holds a model from before: :func:`complete_requests`.

    The tombstones are written before the files go: killed midway, the next call ends it and nothing is without one.
    """
    ledger, job, epoch = site.ledger, request.job, request.epoch
    ledger.move(request.id, RequestState.PURGING, "deleting the images", job=job, epoch=epoch)
    manifest = site.manifest()
    person = None if request.identity is None else canonical(request.identity)
    rows = {row for row in manifest.rows if canonical(row.identity) == person}
    digests = [image_digest(manifest, row) for row in rows]
    site.drop_held_model()
    ledger.purged(request.id, [digest for digest in digests if digest])
    rows |= returned_images(manifest, ledger.tombstones())
    deleted = purge_rows(site.manifest_file, site.image_root, rows)
    ledger.forget_identity(request.id)
    ledger.move(request.id, RequestState.ROLLING_OUT, f"{deleted} images purged", job=job, epoch=epoch)
    return deleted


def complete_requests(site: Site, epoch: int | None, reason: str) -> None:
    """Close the purged requests that no device keeps open any more.

    Parameters
    ----------
    epoch
        Greatest erasure epoch that has reached every device; None if the fleet has no devices.
    reason
        How the devices stand, in words.
    """
    for request in site.ledger.requests(RequestState.ROLLING_OUT):
        if epoch is None or (request.epoch is not None and request.epoch <= epoch):
            site.ledger.move(request.id, RequestState.COMPLETE, reason, job=request.job, epoch=request.epoch)


def purge_site(site: Site) -> tuple[int, int]:
    """End purges that were interrupted, delete images of forgotten people that came back, and the held model.

    Returns
    -------
    tuple of int
        Images deleted of requests that were not complete, and images deleted that had come back: under the name of
        somebody who was forgotten, or a file that was purged once.
    """
    site.drop_held_model()  # this site may not have been told of a release yet
    ended = sum(purge_request(site, request) for request in site.ledger.requests(*TO_PURGE))
    manifest, forgotten = site.manifest(), site.ledger.person_digests(*FORGOTTEN)
    named = {row for row in manifest.rows if site.person_digest(row.identity) in forgotten}
    returned = named | returned_images(manifest, site.ledger.tombstones())
    return ended, purge_rows(site.manifest_file, site.image_root, returned) if returned else 0
