"""A fleet's records of a period: jobs, requests by the random ids of each job, decisions and certificates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from dlfd_fleet.federation.jobs.reporting import signer_of
from dlfd_fleet.federation.records.job_record import JobRecord
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.plain_text import visible
from dlfd_fleet.report import CERTIFICATE_FILE
from dlfd_fleet.report.archive import Cell, Records, Table, last_day, write_archive
from dlfd_fleet.settings import Settings

CERTIFICATES = "certificates"
_PROMOTE = "promote"


@dataclass(frozen=True)
class _Period:
    begin: date
    end: date

    def holds(self, moment: datetime) -> bool:
        return self.begin <= moment.astimezone(UTC).date() <= self.end


def write_fleet_records(
    store: Store, settings: Settings, file: Path, begin: date, end: date, *, done_by: str, to: str = ""
) -> Records:
    """Write what a coordinator knows of a period as a signed archive, note that, and return its manifest.

    A job belongs to the day on which it began. Days are in UTC, as in reports. A period that goes on ends today. No
    name is in it, for the coordinator has none; a site leads from a request's id in a job to the person.

    Parameters
    ----------
    done_by, to
        Who exports them, and where they go; the file when omitted. Both are kept with the decisions.

    Raises
    ------
    EvidenceError
        If the period is none or has not begun, the key cannot be used, or the archive cannot be written.
    """
    end = last_day(begin, end, datetime.now(UTC).date())
    period = _Period(begin, end)
    jobs = [record for record in store.jobs() if period.holds(record.started_at)]
    where = to or visible(str(file.absolute()))
    return write_archive(
        file,
        {"jobs": _jobs(jobs), "requests": _requests(jobs), "decisions": _decisions(store, period)},
        _certificates(store, jobs),
        holder=settings.tracking.registered_model,
        begin=begin,
        end=end,
        with_names=False,
        signer=signer_of(settings, store),
        note=lambda: store.decisions.note("export", f"{begin} to {end}", done_by, f"to {where}"),
    )


def _jobs(records: Sequence[JobRecord]) -> Table:
    columns = (
        "job",
        "kind",
        "state",
        "began",
        "settled",
        "epoch",
        "requests",
        "forgotten",
        "verdict",
        "verdict_in_words",
        "released",
        "sites",
        "sites_absent",
        "sites_acknowledged",
        "images_purged",
        "seconds",
    )
    rows = [
        _row(
            job=record.job,
            kind=record.kind,
            state=record.step,
            began=_moment(record.started_at),
            settled=_moment(record.proceedings.settled_at),
            epoch=record.epoch,
            requests=record.requests,
            forgotten=len(record.forgotten),
            verdict=record.verdict.outcome.value if record.verdict else None,
            verdict_in_words=record.verdict.sentence() if record.verdict else None,
            released=record.released,
            sites=len(record.proceedings.sites),
            sites_absent=len(record.absent),
            sites_acknowledged=len(record.acknowledged),
            images_purged=record.proceedings.purged_images,
            seconds=round(record.seconds),
        )
        for record in records
    ]
    return Table(columns, rows)


def _requests(records: Iterable[JobRecord]) -> Table:
    rows = [
        _row(
            job=record.job,
            request=asked.request,
            site=asked.site,
            asked=asked.asked_at.isoformat(),
            due=asked.deadline.isoformat(),
            served=asked.request in record.forgotten,
        )
        for record in records
        if record.kind == "erase"
        for asked in record.proceedings.asked
    ]
    return Table(("job", "request", "site", "asked", "due", "served"), rows)


def _decisions(store: Store, period: _Period) -> Table:
    """Return what people decided, and every move of the champion, which a job's verdict may decide, too."""
    made: list[tuple[datetime, str, str, str, str]]
    made = [(each.at, each.act, each.about, each.who, each.why) for each in store.decisions.all()]
    made += [(each.at, _PROMOTE, each.job, each.who, each.why) for each in store.champions.history()]
    rows = [
        _row(at=_moment(at), act=act, about=about, by=who, reason=why)
        for at, act, about, who, why in sorted(made)
        if period.holds(at)
    ]
    return Table(("at", "act", "about", "by", "reason"), rows)


def _certificates(store: Store, records: Iterable[JobRecord]) -> dict[str, bytes]:
    files = {record.job: store.folders.of(record.job) / CERTIFICATE_FILE for record in records}
    return {f"{CERTIFICATES}/{job}.json": file.read_bytes() for job, file in files.items() if file.exists()}


def _row(**cells: Cell) -> dict[str, Cell]:
    return cells


def _moment(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat(timespec="seconds")
