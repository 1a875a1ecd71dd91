"""Whether an erasure is due: a rule on what the sites said when they were asked, and on the fleet's earlier jobs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from dlfd_fleet.exceptions import JobError
from dlfd_fleet.federation.records.job_record import JobRecord
from dlfd_fleet.files import whole_file
from dlfd_fleet.settings import DueSettings

_FILE = "waiting.json"


class SiteWaiting(BaseModel):
    """How many requests wait at one site, and the first day by which one of them is due."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    requests: int
    first_due: date | None


class Waiting(BaseModel):
    """What waits at the sites of a fleet, by their pseudonyms; those that did not answer, and why."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    asked_at: AwareDatetime
    sites: dict[str, SiteWaiting]
    away: dict[str, str] = {}

    @property
    def requests(self) -> int:
        """Of all sites that answered."""
        return sum(site.requests for site in self.sites.values())

    @property
    def first_due(self) -> date | None:
        """The first day by which one of them is due."""
        return min((site.first_due for site in self.sites.values() if site.first_due), default=None)

    def write(self, folder: Path) -> None:
        """Keep it in a coordinator's folder, in the place of what was known before."""
        with whole_file(folder / _FILE, JobError) as new:
            new.write_text(self.model_dump_json(indent=1), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Waiting | None:
        """Return what was known when the sites were last asked; None if they never were."""
        try:
            return cls.model_validate_json((folder / _FILE).read_text(encoding="utf-8"))
        except (OSError, ValidationError):
            return None


@dataclass(frozen=True)
class Due:
    """Whether an erasure is due, and why, or why not, in words."""

    is_due: bool
    why: str


def erasure_due(settings: DueSettings, waiting: Waiting, earlier: Iterable[JobRecord], today: date) -> Due:
    """Tell whether an erasure is due.

    It is if somebody waits, and either the first of them is due soon, or enough of them wait, or the last erasure is
    long enough ago. Before the first erasure the fleet's first model counts in its place.

    Parameters
    ----------
    earlier
        The fleet's jobs so far, oldest first.
    """
    unknown = _unknown(waiting)
    if not waiting.requests:
        return Due(False, f"Nothing is due: nobody asks to be forgotten.{unknown}")
    many = "1 request waits" if waiting.requests == 1 else f"{waiting.requests} requests wait"
    first, last = waiting.first_due, _last_day(earlier)
    by_deadline = None if first is None else _before(first, settings.days_left)
    by_interval = None if last is None else _after(last, settings.interval_days)
    reasons = []
    if first is not None and by_deadline is not None and by_deadline <= today:
        reasons.append(f"the first is due on {first}, at most {settings.days_left} days from now")
    if waiting.requests >= settings.batch:
        reasons.append(f"a job is started for {settings.batch}")
    if by_interval is not None and by_interval <= today:
        reasons.append(f"the last job for requests, or the first model, is of {last}")
    if reasons:
        return Due(True, f"An erasure is due: {many}, and {', and '.join(reasons)}.{unknown}")
    days = [day for day in (by_deadline, by_interval) if day is not None]
    next_one = f" An erasure of them starts from {min(days)} on." if days else ""
    return Due(False, f"Nothing is due: {many}, the first is due on {first}.{next_one}{unknown}")


def _last_day(earlier: Iterable[JobRecord]) -> date | None:
    """Return when the last job began that had requests; one that a person cancelled does not count."""
    day = None
    for record in earlier:
        served = record.kind == "erase" and record.requests and record.step != "cancelled"
        if served or (day is None and record.released):
            day = record.started_at.astimezone().date()
    return day


def _before(day: date, days: int) -> date:
    return day - timedelta(days=days)


def _after(day: date, days: int) -> date | None:
    try:
        return day + timedelta(days=days)
    except OverflowError:  # of an interval that never ends
        return None


def _unknown(waiting: Waiting) -> str:
    if not waiting.away:
        return ""
    one = len(waiting.away) == 1
    sites = ", ".join(sorted(waiting.away))
    return f" What waits at {sites} is not known: {'it does' if one else 'they do'} not answer."
