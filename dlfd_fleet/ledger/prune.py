"""Deleting what a site needs no more: rows that were decoded for other models, and what killed processes have left."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from dlfd_fleet.exceptions import DataError
from dlfd_fleet.ledger.site import Site

_WRITTEN_SINCE = 24 * 3600.0
"""Seconds after which nobody writes a file any more that has not got its name."""
_UNFINISHED = 30 * 24 * 3600.0
"""Seconds after which the job of reference models that were never finished is over."""


@dataclass(frozen=True)
class SitePruned:
    """Files that were deleted, or would be, and their bytes."""

    files: tuple[str, ...]
    bytes: int


def prune_site(site: Site, *, dry_run: bool = False) -> SitePruned:
    """Delete decoded rows of other inputs, reference answers that were never finished, and files of killed processes.

    Answers of reference models that have expired are deleted when the coordinator says so, at the start of a job.

    Raises
    ------
    DataError
        If the disk refuses.
    """
    now, folder = time.time(), site.folder
    old = [file for file in folder.glob(".*.new") if now - file.stat().st_mtime > _WRITTEN_SINCE]
    old += [file for file in folder.glob("decoded-*.rows") if file != site.decoded.file]
    unfinished = (*site.references.unfinished(), *site.own_answers.unfinished())
    old += [file for file in unfinished if now - file.stat().st_mtime > _UNFINISHED]
    pruned = SitePruned(tuple(sorted(file.name for file in old)), sum(file.stat().st_size for file in old))
    for file in () if dry_run else old:
        _delete(file)
    return pruned


def _delete(file: Path) -> None:
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"Cannot delete {file}: {error.strerror}; check its rights.") from error
