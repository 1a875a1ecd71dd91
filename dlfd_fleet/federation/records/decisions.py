"""What people decided about jobs and versions: when, who, what and why. Nothing is changed or taken out of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import sqlalchemy as sa

from dlfd_fleet.exceptions import JobError
from dlfd_fleet.federation.records.tables import DECISION, Transaction
from dlfd_fleet.ledger.requests import LONGEST_TEXT
from dlfd_fleet.plain_text import is_text

Act = Literal["plan", "start", "resume", "cancel", "hold", "go on", "abort", "promote", "revoke", "export"]


@dataclass(frozen=True)
class Decision:
    """One decision of a person.

    Attributes
    ----------
    about
        The job, the version of the registry, the publication or the period that it is about.
    who
        As they call themselves.
    """

    at: datetime
    act: Act
    about: str
    who: str
    why: str


class Decisions:
    """The decisions of a coordinator's people, but for promotions, which the champion's history has."""

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction

    def note(self, act: Act, about: str, who: str, why: str) -> None:
        """Append a decision."""
        row = {"at": datetime.now(UTC).isoformat(), "act": act, "about": about, "who": who, "why": why}
        with self._transaction() as connection:
            connection.execute(sa.insert(DECISION).values(row))

    def note_if_known(self, act: Act, about: str, who: str, why: str = "") -> None:
        """Append a decision that needs no reason, unless nobody has said who made it, or why."""
        if who or why:
            self.note(act, about, who, why)

    def all(self) -> list[Decision]:
        """Return every decision, oldest first."""
        return self._read(sa.true())

    def of(self, about: str) -> list[Decision]:
        """Return the decisions about one job, or whatever else they are about, oldest first."""
        return self._read(DECISION.c.about == about)

    def _read(self, condition: sa.ColumnElement[bool]) -> list[Decision]:
        query = sa.select(DECISION).where(condition).order_by(DECISION.c.number)
        with self._transaction() as connection:
            rows = connection.execute(query).mappings().all()
        return [
            Decision(datetime.fromisoformat(row["at"]), row["act"], row["about"], row["who"], row["why"])
            for row in rows
        ]


def require_reason(reason: str) -> str:
    """Return the reason of a decision that needs one.

    Raises
    ------
    JobError
        If it is empty, or cannot be kept.
    """
    reason = accepted_reason(reason)
    if not reason:
        raise JobError("The reason is empty: say why, for whoever asks later.", "reason")
    return reason


def accepted_reason(reason: str) -> str:
    """Return a reason that somebody wrote, or none, without the blanks around it.

    Raises
    ------
    JobError
        If it is too long to be kept, or no text.
    """
    reason = reason.strip()
    if len(reason) > LONGEST_TEXT:
        raise JobError(f"The reason has {len(reason)} characters; write {LONGEST_TEXT} at most.", "reason")
    if not is_text(reason):
        raise JobError("The reason is no text; write it in UTF-8.", "reason")
    return reason
