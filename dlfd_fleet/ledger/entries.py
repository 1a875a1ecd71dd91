"""Define the entries of a ledger: requests, their history, and files that could not be deleted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Self

from dlfd_fleet.ledger.states import CLOSED, Action, Ground, RequestState

PURGED_TEXT = "(purged)"
"""What replaces a text that people wrote about a request, after a purge."""


@dataclass(frozen=True)
class ForgetRequest:
    """One person's request.

    Attributes
    ----------
    identity
        The person's name; None once the person has been purged.
    requested_at
        Time at which it was written to the ledger.
    received
        Day of receipt, from which the deadline counts.
    deadline, first_deadline
        End of the day by which it is due, and of the day before any extension.
    verified_by, note
        How the person's identity was verified, and a note; empty if not given, "(purged)" after the purge.
    """

    id: str
    identity: str | None
    state: RequestState
    requested_at: datetime
    received: date
    deadline: datetime
    first_deadline: datetime
    verified_by: str
    note: str
    job: str | None
    epoch: int | None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """Return the request of a row."""
        return cls(
            id=row["id"],
            identity=row["identity"],
            state=RequestState(row["state"]),
            requested_at=datetime.fromisoformat(row["requested_at"]),
            received=date.fromisoformat(row["received"]),
            deadline=datetime.fromisoformat(row["deadline"]),
            first_deadline=datetime.fromisoformat(row["first_deadline"]),
            verified_by=row["verified_by"],
            note=row["note"],
            job=row["job"],
            epoch=row["epoch"],
        )

    @property
    def due(self) -> date:
        """The day by which it is due, in the site's time zone."""
        return self.deadline.date()

    @property
    def is_open(self) -> bool:
        """Whether it is neither complete nor answered in another way."""
        return self.state not in CLOSED

    def overdue(self, now: datetime) -> bool:
        """Tell whether the deadline has passed and the request is open."""
        return now > self.deadline and self.is_open


@dataclass(frozen=True)
class Event:
    """One row of the history: what happened to a request, when, by whom and why.

    Attributes
    ----------
    state
        State of the request after the event.
    reason
        Reason given by this program, without names.
    done_by
        Who did it, as they call themselves; empty for a job or the site's process.
    ground
        Ground of a refusal.
    due, noticed
        For an extension: the new due day, and the day on which the person was told.
    remark
        Text that somebody wrote; "(purged)" after the person's purge.
    """

    sequence: int
    request: str
    at: datetime
    action: Action
    state: RequestState
    reason: str
    done_by: str
    ground: Ground | None
    due: date | None
    noticed: date | None
    remark: str
    job: str | None
    epoch: int | None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """Return the event of a row."""
        return cls(
            sequence=row["sequence"],
            request=row["request"],
            at=datetime.fromisoformat(row["at"]),
            action=Action(row["action"]),
            state=RequestState(row["state"]),
            reason=row["reason"],
            done_by=row["done_by"],
            ground=Ground(row["ground"]) if row["ground"] else None,
            due=date.fromisoformat(row["due"]) if row["due"] else None,
            noticed=date.fromisoformat(row["noticed"]) if row["noticed"] else None,
            remark=row["remark"],
            job=row["job"],
            epoch=row["epoch"],
        )


@dataclass(frozen=True)
class Export:
    """A site's records of a period that somebody took out of the ledger.

    Attributes
    ----------
    done_by
        Who did it, as they call themselves.
    begin, end
        First and last day of the period.
    destination
        The file that was written, or "download" at the desk.
    with_names
        Whether names and texts were in it.
    """

    at: datetime
    done_by: str
    begin: date
    end: date
    destination: str
    with_names: bool

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """Return the export of a row."""
        return cls(
            at=datetime.fromisoformat(row["at"]),
            done_by=row["done_by"],
            begin=date.fromisoformat(row["first_day"]),
            end=date.fromisoformat(row["last_day"]),
            destination=row["destination"],
            with_names=row["with_names"],
        )


@dataclass(frozen=True)
class Leftover:
    """A file with an image of a forgotten person that still exists.

    Attributes
    ----------
    request
        Id of the person's request.
    file
        Path under the image folder, or absolute if a link led out of it. A name that is no text is ``hex:`` with
        hexadecimal digits.
    sha256
        SHA-256 of its content; None if it could not be read.
    listed
        True if the manifest listed it for the person: each purge tries again, and the request waits. False if it is a
        copy that a purge found: the site decides.
    reason
        Why it still exists.
    """

    request: str
    file: str
    sha256: str | None
    listed: bool
    reason: str
