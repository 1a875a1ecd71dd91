"""Delete what a site holds of forgotten people, after a release and whenever it comes back."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from dlfd_fleet.data import (
    Purge,
    PurgePlan,
    Row,
    canonical,
    delete_files,
    drop_rows,
    file_digest,
    image_digest,
    plan_purge,
    returned_images,
)
from dlfd_fleet.ledger.entries import ForgetRequest, Leftover
from dlfd_fleet.ledger.loaded_purge import purge_loaded, requests_in_storage
from dlfd_fleet.ledger.site import LOG_FILE, Site
from dlfd_fleet.ledger.states import FORGOTTEN, TO_PURGE, RequestState

_HEX = "hex:"


def purge_request(site: Site, request: ForgetRequest) -> int:
    """Delete the images of a released request's person, and then the name; return how many images were deleted.

    Images with the same bytes are deleted, too, under any name. Then the request waits until no device holds an older
    model (:func:`complete_requests`). While a file cannot be deleted, the request stays in PURGING, and the ledger
    keeps the file and the reason (:meth:`Ledger.leftovers`).
    """
    ledger, job, epoch = site.ledger, request.job, request.epoch
    if request.state is not RequestState.PURGING:
        ledger.move(request.id, RequestState.PURGING, "deleting the images", job=job, epoch=epoch)
    site.drop_held_model()
    person = None if request.identity is None else canonical(request.identity)
    done = _purge(site, request.id, [row for row in site.manifest().rows if canonical(row.identity) == person])
    words = _in_words(done)
    if done.kept or done.stored:
        if ledger.history(request.id)[-1].reason != words:  # once, however often it is tried again
            ledger.move(request.id, RequestState.PURGING, words, job=job, epoch=epoch)
    else:
        ledger.forget_identity(request.id)
        ledger.move(request.id, RequestState.ROLLING_OUT, words, job=job, epoch=epoch)
    return done.deleted


def complete_requests(site: Site, epoch: int | None, reason: str) -> None:
    """Complete purged requests that no device keeps open.

    Parameters
    ----------
    epoch
        Greatest erasure epoch that has reached every device; None if the fleet has no devices.
    reason
        A sentence about the devices.
    """
    for request in site.ledger.requests(RequestState.ROLLING_OUT):
        if epoch is None or (request.epoch is not None and request.epoch <= epoch):
            site.ledger.move(request.id, RequestState.COMPLETE, reason, job=request.job, epoch=request.epoch)


def purge_site(site: Site) -> tuple[int, int]:
    """Finish interrupted purges, delete images of forgotten people that came back, and delete the held model.

    Files that cannot be deleted are in :meth:`Ledger.leftovers` and tried again each time.

    Returns
    -------
    tuple of int
        Numbers of images deleted for unfinished requests, and of images that had come back (a forgotten person's name,
        or a purged file).
    """
    site.drop_held_model()  # this site may not have been told of a release yet
    ended = sum(purge_request(site, request) for request in site.ledger.requests(*TO_PURGE))
    manifest, ledger = site.manifest(), site.ledger
    people, tombstones = ledger.request_of_people(*FORGOTTEN), ledger.tombstones()
    returned: dict[str, set[Row]] = {leftover.request: set() for leftover in ledger.leftovers()}
    if site.loaded is not None:
        returned |= {request: set() for request in requests_in_storage(site, site.loaded)}
    for row in manifest.rows:
        person = people.get(site.person_digest(row.identity))
        request = person or tombstones.request_of(image_digest(manifest, row))
        if request:
            returned.setdefault(request, set()).add(row)
    waiting = {request.id for request in ledger.requests(*TO_PURGE)}  # these were tried a moment ago
    return ended, sum(
        _purge(site, each, rows).deleted for each, rows in returned.items() if rows or each not in waiting
    )


def _purge(site: Site, request: str, rows: Collection[Row]) -> Purge:
    """Delete the files of some rows and those that an earlier purge of the request has left, and all their rows.

    The ledger is told first, then the rows go, then what was decoded of them and what reference models say of them is
    overwritten, and the files go last. So whatever ends this midway, nobody trains on the images, no row is without a
    file, and the next call knows what is to be deleted.
    """
    if site.loaded is not None:
        return purge_loaded(site, site.loaded, request, rows)
    ledger, manifest, base = site.ledger, site.manifest(), Path(os.path.realpath(site.image_root))
    known = {leftover.file: leftover for leftover in ledger.leftovers(request)}
    files = [file for each in known.values() if each.listed and _may_be(file := _as_file(base, each.file), each.sha256)]
    plan = plan_purge(manifest, rows, files)
    contents = {sha256 for sha256 in plan.files.values() if sha256}
    copied = returned_images(manifest, contents) - plan.rows  # the same bytes, whosever they are said to be
    plan = plan_purge(manifest, plan.rows | copied, files) if copied else plan
    names = {file: _as_text(base, file) for file in plan.files}
    digests = {
        file: sha256 or (known[names[file]].sha256 if names[file] in known else None)
        for file, sha256 in plan.files.items()
    }
    listed = set(names.values())
    copies = [
        each
        for each in known.values()
        if not each.listed and each.file not in listed and file_digest(_as_file(base, each.file)) == each.sha256
    ]
    ledger.purged(request, [sha256 for sha256 in digests.values() if sha256])
    before = [Leftover(request, names[file], digests[file], True, "not deleted yet") for file in plan.files]
    ledger.note_leftovers(request, before + copies)
    drop_rows(site.manifest_file, site.image_root, plan.rows)
    site.decoded.purge(ledger.tombstones())
    site.purge_references()
    done = delete_files(site.image_root, PurgePlan(plan.rows, digests), site.card.links)
    left = {each.file: each for each in copies}
    left |= {
        name: Leftover(request, name, sha256, False, reason)
        for file, (sha256, reason) in done.copies.items()
        if (name := _as_text(base, file))
    }
    left |= {names[file]: Leftover(request, names[file], digests[file], True, why) for file, why in done.kept.items()}
    ledger.note_leftovers(request, list(left.values()))
    _log(site, [each for each in left.values() if known.get(each.file) != each])
    return done


def _as_text(base: Path, file: Path) -> str:
    """Return how the ledger writes a file: under the image folder or absolute; in hexadecimal digits if no text."""
    name = file.relative_to(base).as_posix() if file.is_relative_to(base) else str(file)
    return name if _is_text(name) and not name.startswith(_HEX) else _HEX + os.fsencode(name).hex()


def _as_file(base: Path, text: str) -> Path:
    return base / (os.fsdecode(bytes.fromhex(text.removeprefix(_HEX))) if text.startswith(_HEX) else text)


def _may_be(file: Path, sha256: str | None) -> bool:
    """Tell whether a file may still be the one of this content; another one may have taken its place since."""
    return sha256 is None or file_digest(file) in (sha256, None)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # a name in another encoding than the file system's
        return False
    return "\0" not in name


def _in_words(done: Purge) -> str:
    """Return a sentence about a purge, without names of files, because the history is kept."""
    words = [f"{done.deleted} images purged"]
    words += [f"{count} files not deleted: {reason}" for reason, count in sorted(Counter(done.kept.values()).items())]
    if done.stored:
        words.append(done.stored)
    if done.copies:
        words.append(f"{len(done.copies)} copies found that the manifest does not list under this person")
    if done.unknown_names:
        words.append(f"{done.unknown_names} other names (hard links) of these files are outside the image folder")
    return "; ".join(words)


def _log(site: Site, left: Collection[Leftover]) -> None:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    with suppress(OSError), (site.folder / LOG_FILE).open("a", encoding="utf-8") as log:
        log.writelines(f"{now} request {each.request}: {each.file} is still there: {each.reason}\n" for each in left)
