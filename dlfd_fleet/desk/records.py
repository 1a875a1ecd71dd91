"""A site's records of a period: requests, history, decisions, jobs and certificates, as they stood at its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from dlfd_fleet.ledger.dates import site_day
from dlfd_fleet.ledger.entries import Event, Export, ForgetRequest
from dlfd_fleet.ledger.site import Site
from dlfd_fleet.ledger.states import CLOSED, Action
from dlfd_fleet.plain_text import visible
from dlfd_fleet.report.archive import Cell, Records, Table, last_day, write_archive
from dlfd_fleet.report.certificate import read
from dlfd_fleet.report.keys import load_signer

KEY_FILE, CERTIFICATES = "records.pem", "certificates"
"""In a site's folder: the key that signs its archives, and the certificates that the coordinator gave it."""
DOWNLOAD = "download"
"""Where records go that are taken away by a browser."""
_DECISIONS = (Action.EXTENDED, Action.REFUSED, Action.WITHDRAWN, Action.NO_DATA)


@dataclass(frozen=True)
class _Period:
    begin: date
    end: date

    def holds(self, event: Event | Export) -> bool:
        return self.begin <= site_day(event.at) <= self.end


def write_records(
    site: Site, file: Path, begin: date, end: date, *, with_names: bool = False, done_by: str = "", to: str = ""
) -> Records:
    """Write a site's records of a period as a signed archive, note that in the ledger, and return its manifest.

    They are as the ledger stood at the end of the last day, so they are the same bytes whenever they are written. A
    period that goes on ends today. Names and what people wrote are left out: the archive outlives the purge that
    deletes them.

    Parameters
    ----------
    with_names
        Write them all the same, of everybody who is not purged yet.
    done_by, to
        Who exports them, and where they go; the file when omitted.

    Raises
    ------
    LedgerError
        If the ledger was tampered with.
    EvidenceError
        If the period is none or has not begun, a certificate cannot be read, or the archive cannot be written.
    """
    end = last_day(begin, end, site_day(datetime.now(UTC)))
    site.ledger.verify()
    period, history = _Period(begin, end), site.ledger.history()
    inside = [event for event in history if period.holds(event)]
    jobs = _jobs(inside)
    exports = [export for export in site.ledger.exports() if period.holds(export)]
    where = to or visible(str(file.absolute()))
    return write_archive(
        file,
        {
            "requests": _requests(site.ledger.requests(), history, period, with_names=with_names),
            "history": _events(inside, with_names=with_names),
            "decisions": _events((each for each in inside if each.action in _DECISIONS), with_names=with_names),
            "jobs": jobs,
            "exports": _exports(exports, with_names=with_names),
        },
        _certificates(site, {str(row["job"]) for row in jobs.rows}),
        holder=site.card.name,
        begin=begin,
        end=end,
        with_names=with_names,
        signer=load_signer(site.folder / KEY_FILE),
        note=lambda: site.ledger.note_export(begin, end, where, with_names=with_names, done_by=done_by),
    )


def _requests(
    requests: Sequence[ForgetRequest], history: Sequence[Event], period: _Period, *, with_names: bool
) -> Table:
    """Return the requests that were open on a day of the period, as they stood at its end."""
    known = dict[str, list[Event]]()
    for event in history:
        if site_day(event.at) <= period.end:
            known.setdefault(event.request, []).append(event)
    columns = (
        "request",
        "received",
        "recorded",
        "recorded_by",
        "identity_verified",
        "first_due",
        "due",
        "state",
        "ground",
        "released",
        "purged",
        "closed",
        "overdue",
        *(("person", "verified_by", "note") if with_names else ()),
    )
    rows = list[dict[str, Cell]]()
    for request in sorted(requests, key=lambda each: (each.received, each.id)):
        events = known.get(request.id)
        if not events:
            continue
        closed = next((site_day(event.at) for event in events if event.state in CLOSED), None)
        if closed is not None and closed < period.begin:
            continue
        days = {event.action: site_day(event.at) for event in events}
        due = next((each.due for each in reversed(events) if each.due), request.first_deadline.date())
        ground = next((event.ground for event in events if event.ground), None)
        rows.append(
            {
                "request": request.id,
                "received": request.received.isoformat(),
                "recorded": site_day(events[0].at).isoformat(),
                "recorded_by": events[0].done_by,
                "identity_verified": bool(request.verified_by),
                "first_due": request.first_deadline.date().isoformat(),
                "due": due.isoformat(),
                "state": events[-1].state.value,
                "ground": ground.value if ground else None,
                "released": _written(days.get(Action.FORGOTTEN)),
                "purged": _written(days.get(Action.PURGED)),
                "closed": _written(closed),
                "overdue": (closed or period.end) > due,
                "person": request.identity,
                "verified_by": request.verified_by,
                "note": request.note,
            }
        )
    return Table(columns, rows)


def _events(events: Iterable[Event], *, with_names: bool) -> Table:
    columns = (
        "sequence",
        "request",
        "at",
        "action",
        "state",
        "by",
        "reason",
        "ground",
        "due",
        "noticed",
        "job",
        "epoch",
    )
    rows: list[dict[str, Cell]] = [
        {
            "sequence": event.sequence,
            "request": event.request,
            "at": event.at.astimezone(UTC).isoformat(timespec="seconds"),
            "action": event.action.value,
            "state": event.state.value,
            "by": event.done_by,
            "reason": event.reason,
            "ground": event.ground.value if event.ground else None,
            "due": _written(event.due),
            "noticed": _written(event.noticed),
            "job": event.job,
            "epoch": event.epoch,
            "remark": event.remark,
        }
        for event in events
    ]
    return Table((*columns, "remark") if with_names else columns, rows)


def _exports(exports: Iterable[Export], *, with_names: bool) -> Table:
    columns = ("at", "by", "first_day", "last_day", "with_names")
    rows: list[dict[str, Cell]] = [
        {
            "at": export.at.astimezone(UTC).isoformat(timespec="seconds"),
            "by": export.done_by,
            "first_day": _written(export.begin),
            "last_day": _written(export.end),
            "with_names": export.with_names,
            "to": export.destination,
        }
        for export in exports
    ]
    return Table((*columns, "to") if with_names else columns, rows)


def _jobs(events: Iterable[Event]) -> Table:
    """Return the jobs that worked on requests, in the order in which they began here."""
    of_job = dict[str, list[Event]]()
    for event in events:
        if event.job:
            of_job.setdefault(event.job, []).append(event)
    rows = list[dict[str, Cell]]()
    for job, own in of_job.items():
        counts = Counter(event.action for event in own)
        rows.append(
            {
                "job": job,
                "first_day": site_day(own[0].at).isoformat(),
                "last_day": site_day(own[-1].at).isoformat(),
                "requests": len({event.request for event in own}),
                "forgotten": counts[Action.FORGOTTEN],
                "returned": counts[Action.RETURNED],
                "purged": counts[Action.PURGED],
                "epoch": max((event.epoch for event in own if event.epoch is not None), default=None),
            }
        )
    return Table(("job", "first_day", "last_day", "requests", "forgotten", "returned", "purged", "epoch"), rows)


def _certificates(site: Site, jobs: set[str]) -> dict[str, bytes]:
    """Return the certificates of some jobs that lie in the site's folder, by their names in the archive."""
    files = sorted((site.folder / CERTIFICATES).glob("*.json"))
    return {f"{CERTIFICATES}/{file.name}": file.read_bytes() for file in files if read(file).predicate.job in jobs}


def _written(day: date | None) -> str | None:
    return None if day is None else day.isoformat()
