"""Delete rows of forgotten people at a site with a loader."""

from __future__ import annotations

from collections.abc import Callable, Collection

from dlfd_fleet.data import Purge, Row, drop_rows, image_digest
from dlfd_fleet.data.loaded import LoadedRows
from dlfd_fleet.exceptions import DataError
from dlfd_fleet.ledger.entries import Leftover
from dlfd_fleet.ledger.site import Site
from dlfd_fleet.ledger.states import FORGOTTEN, TO_PURGE


def purge_loaded(site: Site, loaded: LoadedRows, request: str, rows: Collection[Row]) -> Purge:
    """Remove rows from the manifest, overwrite their decoded copies, and delete them from the loader's storage.

    Rows with the same content are deleted, too, whoever's they are. The ledger is written first. So if this is
    interrupted, nobody trains on the rows, and the next call finishes it.
    """
    with site.storage_lock():
        return _purge(site, loaded, request, rows)


def _purge(site: Site, loaded: LoadedRows, request: str, rows: Collection[Row]) -> Purge:
    ledger, manifest = site.ledger, site.manifest()
    tried = any(leftover.listed for leftover in ledger.leftovers(request))
    digests = {digest for row in rows if (digest := image_digest(manifest, row))}
    gone = frozenset(row for row in manifest.rows if row in rows or image_digest(manifest, row) in digests)
    is_asking = _people_of(site, request)
    copies = {digest for row in gone if not is_asking(row.identity) and (digest := image_digest(manifest, row))}
    ledger.purged(request, sorted(digests))
    ledger.note_leftovers(request, [Leftover(request, str(loaded), None, True, "not deleted yet")])
    drop_rows(site.manifest_file, site.image_root, gone)
    site.decoded.purge(ledger.tombstones())
    site.purge_references()
    purged = ledger.tombstones().of_request(request)
    others = bool(site.manifest().rows)
    try:
        left, why = loaded.delete(is_asking, copies, others=others)
        if tried and not left:  # which of them were copies is not known any more
            left, why = loaded.delete(is_asking, purged, others=others)
    except DataError as error:
        sentence = "its own storage may still hold rows, for it does not answer"
        ledger.note_leftovers(request, [Leftover(request, str(loaded), None, True, f"{sentence}: {error}"[:-1])])
        return Purge(len(gone), {}, {}, 0, f"{loaded}: {sentence}")
    sentence = f"its own storage still holds {left} rows, and {why}" if left else ""
    ledger.note_leftovers(request, [Leftover(request, str(loaded), None, True, sentence)] if left else [])
    return Purge(len(gone), {}, {}, 0, f"{loaded}: {sentence}" if left else "")


def requests_in_storage(site: Site, loaded: LoadedRows) -> set[str]:
    """Return the requests of forgotten people with rows in the loader's storage.

    Raises
    ------
    DataError
        If the loader does not answer.
    """
    people = site.ledger.request_of_people(*FORGOTTEN)
    names = {str(name) for name in loaded.open(may_be_empty=not site.manifest().rows).people} if people else set()
    return {people[digest] for name in names if (digest := site.person_digest(name)) in people}


def _people_of(site: Site, request: str) -> Callable[[str], bool]:
    """Return what tells whether somebody has made a request, also once their name is forgotten."""
    digests = {
        digest for digest, owner in site.ledger.request_of_people(*FORGOTTEN, *TO_PURGE).items() if owner == request
    }
    return lambda name: site.person_digest(name) in digests
