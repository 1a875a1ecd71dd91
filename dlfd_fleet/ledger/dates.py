"""Compute the days of a request: receipt, deadline, and the longest extension.

Days are those of the site's time zone (``TZ``). A deadline is the end of a day.
"""

from __future__ import annotations

import re
from calendar import monthrange
from datetime import date, datetime, timedelta
from datetime import time as clock_time

from dlfd_fleet.exceptions import LedgerError

MOST_MONTHS = 2
"""Most months of an extension (GDPR, Article 12(3))."""
OLDEST_YEARS = 3
"""An earlier day of receipt is treated as a typing error."""


def site_day(moment: datetime) -> date:
    """Return the day of a moment in the site's time zone."""
    return moment.astimezone().date()


def end_of(day: date) -> datetime:
    """Return the last moment of a day in the site's time zone."""
    return datetime.combine(day, clock_time.max).astimezone()


def add_months(day: date, months: int) -> date:
    """Return the same day some months later, or the last day of that month if it is shorter.

    Examples
    --------
    >>> add_months(date(2027, 12, 31), 2)
    datetime.date(2028, 2, 29)
    """
    years, month = divmod(day.month - 1 + months, 12)
    year = day.year + years
    return date(year, month + 1, min(day.day, monthrange(year, month + 1)[1]))


def day_of(text: str, what: str) -> date:
    """Parse a day.

    Parameters
    ----------
    what
        Name of the day in errors.

    Raises
    ------
    LedgerError
        If it is no day.
    """
    try:
        if not re.fullmatch(r"\d{4}-\d\d-\d\d", text, re.ASCII):
            raise ValueError
        return date.fromisoformat(text)
    except ValueError:
        raise LedgerError(
            f"{what} is '{text}', not a day; write it as YEAR-MONTH-DAY, such as 2026-11-20.", what.lstrip("-")
        ) from None


def first_deadline(received: date, days: int, today: date) -> date:
    """Return the day by which a request must be served.

    Parameters
    ----------
    days
        Calendar days from the day of receipt, which does not count itself.

    Raises
    ------
    LedgerError
        If the request cannot have been received on that day.
    """
    if received > today:
        raise LedgerError(f"The day of receipt, {received}, is in the future; today is {today}.", "received")
    if received < add_months(today, -12 * OLDEST_YEARS):
        raise LedgerError(
            f"The day of receipt, {received}, is more than {OLDEST_YEARS} years ago; check its year (--received).",
            "received",
        )
    return received + timedelta(days=days)


def latest_deadline(first: date) -> date:
    """Return the last day to which a request may be extended, by the deadline before any extension."""
    return add_months(first, MOST_MONTHS)


def refuse_extension(due: date, first: date, current: date) -> None:
    """Refuse a new deadline that is not later, or later than the law allows.

    Parameters
    ----------
    due, first, current
        The new deadline, the one before any extension, and the current one.

    Raises
    ------
    LedgerError
        If the new one is refused.
    """
    latest = latest_deadline(first)
    if due <= current:
        raise LedgerError(
            f"The request is due on {current} already; an extension must end after that, not on {due}.", "until"
        )
    if due > latest:
        raise LedgerError(
            f"The request may be extended to {latest} at most, {MOST_MONTHS} months after its first deadline {first}; "
            f"{due} is later.",
            "until",
        )


def refuse_notice(noticed: date, received: date, current: date, today: date) -> None:
    """Refuse a day of notice that was not in time.

    Raises
    ------
    LedgerError
        If the day is in the future, before the request, or after the deadline that is extended.
    """
    if noticed > today:
        raise LedgerError(f"The day of the notice, {noticed}, is in the future; tell the person first.", "noticed")
    if noticed < received:
        raise LedgerError(
            f"The day of the notice, {noticed}, is before the request was received, on {received}.", "noticed"
        )
    if noticed > current:
        raise LedgerError(
            f"The day of the notice, {noticed}, is after the deadline {current}: a person must be told of an extension "
            "before that, so this deadline stands.",
            "noticed",
        )
