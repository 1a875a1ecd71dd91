"""Where each site's ledger was when it was last heard of: a number and a digest, which tell of nobody."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from dlfd_fleet.exceptions import JobError
from dlfd_fleet.federation.protocol.messages import LedgerHead
from dlfd_fleet.files import whole_file

SITE_LEDGERS_FILE = "site-ledgers.json"
_HEADS = TypeAdapter(dict[str, LedgerHead])


class SiteLedgers:
    """The heads of sites' ledgers, by the sites' pseudonyms.

    Parameters
    ----------
    file
        Where they are kept; in memory alone when omitted.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file, self._heads = file, dict[str, LedgerHead]()
        if file is not None and file.exists():
            try:
                self._heads = _HEADS.validate_json(file.read_bytes())
            except (OSError, ValidationError) as error:
                raise JobError(f"{file} cannot be read: restore it from a backup, or move it away.") from error

    def known(self) -> Mapping[str, LedgerHead]:
        """Return what is known."""
        return self._heads

    def note(self, heads: Mapping[str, LedgerHead | None]) -> None:
        """Keep what sites have said last."""
        new = self._heads | {site: head for site, head in heads.items() if head is not None}
        if new == self._heads:
            return
        self._heads = new
        if self._file is not None:
            with whole_file(self._file, JobError) as written:
                written.write_bytes(_HEADS.dump_json(new, indent=1))
