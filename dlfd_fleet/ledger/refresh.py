"""Read the rows of a site's loader again, to find new and missing rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

from dlfd_fleet.data import Row, canonical, write_manifest
from dlfd_fleet.data.decoded import Content
from dlfd_fleet.data.loaded import LoadedRows, digest_of_key, key_of, number_of_key
from dlfd_fleet.exceptions import ConfigurationError
from dlfd_fleet.ledger.site import Site
from dlfd_fleet.ledger.states import FORGOTTEN


def refresh_rows(site: Site) -> tuple[int, int]:
    """Update a site's manifest from its loader; return the numbers of new and missing rows.

    A new row of a known person is of their split; one of a new person is of the split that the loader says, or is
    trained on. Rows of people who were forgotten, and rows that were purged, are not listed again.

    Raises
    ------
    ConfigurationError
        If the site's rows are image files.
    DataError
        If a row cannot be used, or the disk refuses; then the site lists what it did.
    """
    loaded = site.loaded
    if loaded is None:
        raise ConfigurationError(f"{site.folder} lists image files; edit {site.manifest_file} instead.")
    with site.storage_lock():
        return _refresh(site, loaded)


def _refresh(site: Site, loaded: LoadedRows) -> tuple[int, int]:
    ledger = site.ledger
    listed, before = site.manifest().rows, defaultdict[str | None, list[Row]](list)
    for row in reversed(listed):
        before[digest_of_key(row.image)].append(row)
    splits = {canonical(row.identity): row.split for row in listed}
    forgotten, tombstones = ledger.request_of_people(*FORGOTTEN), ledger.tombstones()
    rows, come, name = list[Row](), 0, site.card.name
    first = max((number_of_key(row.image) for row in listed), default=-1)

    def contents() -> Iterator[Content]:
        nonlocal come
        for each in loaded.rows(may_be_empty=not listed):
            person = each.row.identity
            if each.digest in tombstones or site.person_digest(person) in forgotten:
                continue
            if known := before[each.digest]:
                rows.append(replace(known.pop(), identity=person, label=each.row.label, written=None))
            else:
                come += 1
                split = splits.get(canonical(person)) or each.row.split or "train"
                rows.append(replace(each.row, image=key_of(first + come, each.digest), site=name, split=split))
            yield each.digest, each.content

    site.decoded.write(contents())
    write_manifest(rows, site.manifest_file)
    site.decoded.erase(ledger.tombstones())  # a purge may have come between
    return come, len(listed) + come - len(rows)
