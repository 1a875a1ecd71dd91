"""A ledger that was put back from a backup: the site notices it, stops, and says what people have to do.

The coordinator keeps of a site's ledger how many rows its history had, and a digest of the last one. A ledger that was
put back has never been there. Whose requests it lacks nobody can tell: their names were deleted with their images, and
the coordinator has random ids alone. So people must find them, and ask for them again.
"""

from __future__ import annotations

from datetime import UTC, datetime

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from dlfd_fleet.exceptions import LedgerError
from dlfd_fleet.files import whole_file
from dlfd_fleet.ledger.site import Site
from dlfd_fleet.ledger.states import FORGOTTEN, TO_PURGE

_FILE, _DONE_FILE = "restored.json", "reconciled.json"


class Restored(BaseModel):
    """What is known of a ledger that was put back.

    Attributes
    ----------
    sequence, digest
        The head that the ledger once had, as the coordinator was told.
    rows
        Of the history that there is now.
    lost
        Requests that the fleet has forgotten, by their ids in jobs, and the epochs, which the ledger does not know.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    noticed_at: AwareDatetime
    sequence: int
    digest: str
    rows: int
    lost: dict[str, int] = {}

    def sentence(self) -> str:
        """Say it in words that name nobody."""
        many = "1 request" if len(self.lost) == 1 else f"{len(self.lost)} requests"
        return (
            f"The ledger of this site was put back from a backup: it once had {self.sequence} rows of history, and now "
            f"it has {self.rows}, or other ones. {many} that the fleet has forgotten are not in it. The site takes "
            "part in nothing until it is reconciled: dlfd-fleet site reconcile"
        )


class Reconciled(BaseModel):
    """Who has reconciled a ledger, when and how; kept in the site's folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    restored: Restored
    at: AwareDatetime
    done_by: str
    reason: str


class _AllReconciled(BaseModel):
    model_config = ConfigDict(extra="forbid")

    all: list[Reconciled] = []


def restored(site: Site) -> Restored | None:
    """Return what is known of a ledger that was put back and is not reconciled; None of any other.

    Raises
    ------
    LedgerError
        If the note of it cannot be read.
    """
    file = site.folder / _FILE
    try:
        return Restored.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise LedgerError(f"{file} cannot be read ({type(error).__name__}); restore it, or ask for help.") from error


def compare_head(site: Site, sequence: int, job: str, digest: str, forgotten: dict[str, int]) -> Restored | None:
    """Compare a ledger with the head that it once had, and note it if it was put back since.

    Parameters
    ----------
    sequence, job, digest
        The head, and the job that it was told.
    forgotten
        Requests of this site that released models have forgotten, by their ids in jobs, and the epochs.
    """
    if site.ledger.holds(sequence, job, digest) or any(
        done.restored.digest == digest for done in _reconciled(site).all
    ):
        return None
    known = {
        site.job_request_id(request.id, request.job)
        for request in site.ledger.requests(*TO_PURGE, *FORGOTTEN)
        if request.job
    }
    found = Restored(
        noticed_at=datetime.now(UTC),
        sequence=sequence,
        digest=digest,
        rows=site.ledger.head(job)[0],
        lost={request: epoch for request, epoch in forgotten.items() if request not in known},
    )
    with whole_file(site.folder / _FILE, LedgerError) as new:
        new.write_text(found.model_dump_json(indent=1), encoding="utf-8")
    return found


def reconcile(site: Site, reason: str, done_by: str) -> Reconciled:
    """Let a site whose ledger was put back take part again: somebody says that nobody who was forgotten is left.

    Raises
    ------
    LedgerError
        If its ledger was not put back, no reason is given, or the files cannot be written.
    """
    found = restored(site)
    if found is None:
        raise LedgerError(f"The ledger of {site.card.name} was not put back, as far as it was told; nothing is to do.")
    if not reason.strip():
        raise LedgerError("The reason (--reason) is empty: say how the people were found, for whoever asks later.")
    site.ledger.verify()
    done = Reconciled(restored=found, at=datetime.now(UTC), done_by=done_by, reason=reason.strip())
    known = _reconciled(site)
    with whole_file(site.folder / _DONE_FILE, LedgerError) as new:  # first: whoever is killed in between is told again
        new.write_text(_AllReconciled(all=[*known.all, done]).model_dump_json(indent=1), encoding="utf-8")
    (site.folder / _FILE).unlink(missing_ok=True)
    return done


def _reconciled(site: Site) -> _AllReconciled:
    file = site.folder / _DONE_FILE
    try:
        return _AllReconciled.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return _AllReconciled()
    except (OSError, ValidationError) as error:
        raise LedgerError(f"{file} cannot be read ({type(error).__name__}); restore it from a backup.") from error
