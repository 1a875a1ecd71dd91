"""The erasure report and the certificate of a job: made of its record when it settles, and again whenever asked for."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner

from dlfd_fleet.configuration import flatten
from dlfd_fleet.exceptions import DeliveryError, JobError
from dlfd_fleet.federation.jobs.coordinator import Coordinator
from dlfd_fleet.federation.records.job_record import FINAL_STEPS, JobRecord
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.federation.release.publication import delivery_progress
from dlfd_fleet.files import whole_file
from dlfd_fleet.progress import ProgressDisplay
from dlfd_fleet.report import (
    CERTIFICATE_FILE,
    PAGE_FILE,
    REPORT_FILE,
    DeliveryProgress,
    ErasureReport,
    InShort,
    in_short,
    issue,
    load_signer,
    render,
)
from dlfd_fleet.report.contents import Revoked
from dlfd_fleet.report.page import without_moment
from dlfd_fleet.report.procedure import tried
from dlfd_fleet.settings import Settings
from dlfd_fleet.tracking import Tracker

_SOFTWARE = ("dlfd-fleet", "torch", "flwr", "onnxruntime", "mlflow")
_GOVERNING = ("seed", "model", "training", "audit", "erasure", "fleet", "release", "export")
"""Settings that bear on an erasure; the others are paths and addresses of the coordinator."""
_DRAWN = ".drawn"
"""Suffix of the note beside a page that says of what it was drawn."""
_LEFT_OUT = ("release.certificate_key",)


def record_report(job: Coordinator, store: Store, tracker: Tracker) -> None:
    """Write the report into the job's folder and into MLflow; of a released model also its signed certificate."""
    noted = job.record.proceedings
    job.note(
        phases=store.steps.phases(job.record.job),
        software={name: version(name) for name in _SOFTWARE} | {"python": platform.python_version()},
        # A job that is resumed here settled when it first came here.
        settled_at=noted.settled_at or datetime.now(UTC),
    )
    # Nothing but its last step is left of the job, and a report that said otherwise would say so for ever.
    report = report_of(store, job.record.model_copy(update={"step": "settled"}))
    content = report.to_json()
    files = {REPORT_FILE: content, PAGE_FILE: render(content, _delivery(job.settings, job.record)).encode()}
    if report.released:
        files[CERTIFICATE_FILE] = issue(report, signer_of(job.settings, store))
    for name, content in files.items():
        _write(store.folders.made(job.record.job) / name, content)
        tracker.log_file(job.record.job, f"erasure/{name}", content)


def signer_of(settings: Settings, store: Store) -> CryptoSigner:
    """Return what signs the coordinator's certificates, or raise an :class:`EvidenceError` if it cannot be used."""
    return load_signer(signer_file(settings, store.folder))


def signer_file(settings: Settings, folder: Path) -> Path:
    """Return where the key of a coordinator is that works in a folder."""
    return settings.release.certificate_key or folder / "keys" / "certificate.pem"


def report_of(store: Store, record: JobRecord) -> ErasureReport:
    """Return the report of an erasure job, from what its record and its store know.

    Raises
    ------
    JobError
        If it is another kind of job, or nobody asked to be forgotten in it.
    """
    if record.kind != "erase":
        raise JobError(f"{record.job} is no erasure, and a report is of one: `dlfd-fleet job list` shows them.")
    if not record.requests:
        raise JobError(f"In {record.job} nobody asked to be forgotten, so there is nothing to report.")
    noted = record.proceedings
    earlier = [job for job in store.jobs() if job.released and job.started_at < record.started_at]
    settings, verdict = store.settings_as_written(record.job), record.verdict
    # Training anew is no procedure that was tried: nothing is unlearned.
    judged = verdict is not None and not noted.retrained
    aim = noted.attempts_made[0].aim if noted.attempts_made else None
    return ErasureReport(
        **dict(noted.model_copy(update={} if noted.phases else {"phases": store.steps.phases(record.job)})),
        job=record.job,
        state=record.step,
        note=record.note,
        started_at=record.started_at,
        released=record.released,
        epoch=record.epoch if record.released else max((job.epoch for job in earlier), default=0),
        requests=record.requests,
        served=record.forgotten,
        verdict=record.verdict,
        models=record.models,
        released_files=record.formats if record.released else (),
        absent=record.absent,
        acknowledged=record.acknowledged,
        revoked=tuple(
            Revoked(job=job.job, epoch=job.epoch) for job in earlier if record.released and job.epoch < record.epoch
        ),
        settings=_governing(settings),
        seconds=record.seconds,
        e_product=e_product(store, record),
        procedure=tried(store.folder.parent, settings, verdict.evidence, aim) if judged and verdict else "",
    )


def e_product(store: Store, record: JobRecord) -> float | None:
    """Return the product of the e-values of all erasures up to this one; None if references did not judge it.

    People whose job released nothing are in the next job as well, with the same references. Their evidence is not new,
    so of a job that released something and those without a release before it the lowest value counts.
    """
    if record.verdict is None or record.verdict.e_value is None:
        return None
    product, of_same_people = 1.0, list[float]()
    for job in (*store.jobs(), record):
        if job is not record and (job.job == record.job or job.started_at >= record.started_at):
            continue
        if job.verdict is not None and job.verdict.e_value is not None:
            of_same_people.append(job.verdict.e_value)
        if job is record or (job.kind == "erase" and job.released):
            product, of_same_people = product * min(of_same_people, default=1.0), []
    return product


def redraw_reports(store: Store, tracker: Tracker, settings: Settings, progress: ProgressDisplay, after: str) -> None:
    """Draw the pages of releases before a job again that say less than is known by now, here and in MLflow.

    Sites that were away have purged since, and devices; ``report.json`` and the certificate stay as they are. What
    cannot be drawn holds no job: it is said, and the next job tries again.
    """
    jobs = store.jobs()
    for record in jobs:
        file = store.folders.of(record.job) / PAGE_FILE
        if not (record.released and record.requests and record.step == "settled" and file.exists()):
            continue
        if record.job == after:  # drawn a moment ago
            continue
        try:
            known = _content(store, record), _delivery(settings, record), _acknowledged_later(jobs, record)
            if _is_drawn(file, record.epoch, *known):
                continue
            page = render(*known)
            if without_moment(page) != without_moment(file.read_text(encoding="utf-8")):
                _write(file, page.encode())
                tracker.log_file(record.job, f"erasure/{PAGE_FILE}", page.encode())
            _write(file.with_suffix(_DRAWN), _digest_of(file, record.epoch, *known).encode())
        except Exception as error:  # whatever is wrong with an old job, this one is over
            progress.say(f"The report of {record.job} is not drawn again: {error}")


def _is_drawn(
    file: Path, epoch: int, content: bytes, delivery: DeliveryProgress | str | None, acknowledged: Mapping[str, str]
) -> bool:
    """Tell whether a page was drawn of what is known now; drawing it takes about a second."""
    note = file.with_suffix(_DRAWN)
    drawn = note.read_text(encoding="utf-8") if note.exists() else ""
    return drawn == _digest_of(file, epoch, content, delivery, acknowledged)


def _digest_of(
    file: Path, epoch: int, content: bytes, delivery: DeliveryProgress | str | None, acknowledged: Mapping[str, str]
) -> str:
    """Return a digest of a page and of what it was drawn of, but for the moment that was.

    A later release raises the least epoch that may run. Of a release that has that epoch already nothing is new by it:
    else each release would draw the pages of all before it.
    """
    stand: object = delivery
    if isinstance(delivery, DeliveryProgress):
        least = min(delivery.minimum_epoch, epoch)
        stand = delivery.model_copy(update={"minimum_epoch": least}).model_dump(exclude={"as_of"})
    return sha256(file.read_bytes() + content + repr((stand, acknowledged)).encode()).hexdigest()


def _delivery(settings: Settings, record: JobRecord) -> DeliveryProgress | str | None:
    """Return how far the model of a job has come to devices, or why that is not known."""
    if not record.released:
        return None
    try:
        return delivery_progress(settings, record.epoch)
    except DeliveryError as error:
        return str(error)


def write_report(store: Store, job: str | None, output: Path | None, settings: Settings) -> tuple[Path, Path]:
    """Write the report of a job, of the latest erasure by default, and return the page and its JSON.

    Parameters
    ----------
    output
        The page; ``report.html`` in the job's folder by default. The JSON goes beside it under the same name.
    settings
        Where this coordinator's delivery is: the page tells how far the model has come to devices.

    Raises
    ------
    JobError
        If there is nothing to report, or the files cannot be written.
    """
    record = store.load(job) if job is not None else latest_erasure(store)
    content = _content(store, record)
    page = output or store.folders.made(record.job) / PAGE_FILE
    data = page.with_suffix(".json")
    if data == page:
        raise JobError(f"{page} is to be an HTML page; name it with .html, and the JSON goes beside it.")
    delivery = delivery_progress(settings, record.epoch) if record.released else None
    _write(page, render(content, delivery, _acknowledged_later(store.jobs(), record)).encode())
    _write(data, content)
    return page, data


def _write(file: Path, content: bytes) -> None:
    with whole_file(file, JobError) as new:
        new.write_bytes(content)


def _content(store: Store, record: JobRecord) -> bytes:
    """Return ``report.json`` as it was when the job settled, byte for byte; of any other job what is known now."""
    file = store.folders.made(record.job) / REPORT_FILE
    if record.step == "settled" and file.exists():
        return file.read_bytes()
    return report_of(store, record).to_json()


def _acknowledged_later(jobs: Sequence[JobRecord], record: JobRecord) -> dict[str, str]:
    """Return the sites that a later job told of the release, and the first such job."""
    return {
        site: job.job
        for job in reversed(jobs)
        if job.started_at > record.started_at
        for site, epoch in job.acknowledged.items()
        if record.released and epoch >= record.epoch
    }


def latest_erasure(store: Store) -> JobRecord:
    """Return the latest job in which somebody asked to be forgotten, or raise a :class:`JobError`."""
    for record in reversed(store.jobs()):
        if record.kind == "erase" and record.requests:
            return record
    raise JobError(f"There is no erasure in {store.folder.parent} yet; `dlfd-fleet job start erase` does one.")


def said_in_short(store: Store, record: JobRecord) -> InShort | None:
    """Say an erasure in three lines; None of any other job, and of one in which nobody asked."""
    if record.kind != "erase" or not record.proceedings.asked:
        return None
    return in_short(report_of(store, record), _acknowledged_later(store.jobs(), record))


def outcome_sentence(record: JobRecord) -> str:
    """Say in one line how an erasure ended, or that it has not."""
    what = f"a model of epoch {record.epoch} was released" if record.released else "nothing was released"
    state = record.step if record.step in FINAL_STEPS else "not ended"
    verdict = f" {record.verdict.sentence()}" if record.verdict else f" {record.note}" if record.note else ""
    return f"{record.job} is {state}: {what}.{verdict}"


def _governing(settings: dict[str, Any]) -> dict[str, Any]:
    known = flatten({name: value for name, value in settings.items() if name in _GOVERNING})
    return {name: value for name, value in known.items() if name not in _LEFT_OUT}
