"""What a ledger gives to read: requests, what happened to them, and files that are still there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Self

from dlfd_fleet.ledger.states import CLOSED, Action, Ground, RequestState

PURGED_TEXT = "(purged)"
"""What a purge leaves of a text that people wrote about a request."""


@dataclass(frozen=True)
class ForgetRequest:
    """One person's request.

    Attributes
    ----------
    identity
        The person's name; None once the person has been purged.
    requested_at
        When it was written into the ledger.
    received
        The site's day on which it came in; the deadline counts from it.
    deadline, first_deadline
        The end of the day by which it must be served, and of that before any extension.
    verified_by, note
        How the person's identity was verified, and a note; empty if nobody said, and "(purged)" after the purge.
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
        """The day by which it must be served, as its site and the person call it."""
        return self.deadline.date()

    @property
    def is_open(self) -> bool:
        """Whether it is neither complete nor withdrawn nor refused."""
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
        Of the request from then on.
    reason
        Why, in words of this program: no name is in them.
    done_by
        Who did it, as they call themselves; empty if it was a job or the site's own process.
    ground
        Of a refusal.
    due, noticed
        Of an extension: the new deadline's day, and the day on which the person was told.
    remark
        What somebody wrote about it; "(purged)" after the person's purge.
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
class Leftover:
    """A file with an image of a forgotten person that is still there.

    Attributes
    ----------
    request
        Id of the person's request.
    file
        Under the site's image folder, or absolute if a link led out of it. A name that is no text stands as ``hex:``
        and the hexadecimal digits of its bytes.
    sha256
        Of its content; None if it could not be read.
    listed
        Whether it was the person's in the manifest: then each purge tries again to delete it, and the request waits.
        If not, it is a copy that a purge has found, and the site's people decide about it.
    reason
        Why it is still there, in words.
    """

    request: str
    file: str
    sha256: str | None
    listed: bool
    reason: str
