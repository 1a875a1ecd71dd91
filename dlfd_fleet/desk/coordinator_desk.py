"""A coordinator's desk: jobs, live, the champion's lineage, devices; and what people decide about them, and why."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from dlfd_fleet.delivery import rollout
from dlfd_fleet.delivery.delivery import Delivery, has_delivery
from dlfd_fleet.delivery.delivery import opened as opened_delivery
from dlfd_fleet.delivery.erasures import open_devices, published_epochs
from dlfd_fleet.delivery.status import rollout_line
from dlfd_fleet.desk.access import DOCUMENT_POLICY
from dlfd_fleet.desk.coordinator_actions import Actions
from dlfd_fleet.desk.fleet_records import write_fleet_records
from dlfd_fleet.desk.lineage import Ancestor, lineage
from dlfd_fleet.desk.pages import Pages
from dlfd_fleet.desk.records import DOWNLOAD
from dlfd_fleet.desk.routes import application, archive_answer, refused
from dlfd_fleet.desk.starts import Starts
from dlfd_fleet.exceptions import FleetError
from dlfd_fleet.federation.jobs import command
from dlfd_fleet.federation.jobs.reporting import signer_file
from dlfd_fleet.federation.records.decisions import require_reason
from dlfd_fleet.federation.records.job_record import JobRecord
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.federation.release.publication import has_registry
from dlfd_fleet.ledger.dates import day_of
from dlfd_fleet.report import CERTIFICATE_FILE, PAGE_FILE
from dlfd_fleet.report.keys import public_key_file
from dlfd_fleet.settings import Settings
from dlfd_fleet.tracking import open_registry
from dlfd_fleet.tracking.registry import RegisteredVersion

_LINKS = {"/": "Fleet", "/jobs": "Jobs", "/lineage": "Lineage", "/devices": "Devices", "/records": "Records"}
_MOST_JOBS, _MOST_DECISIONS = 200, 30
_GOES_ON = "X-Goes-On"


class CoordinatorDesk:
    """The pages of one coordinator; it knows requests by the random ids of each job, and no name."""

    def __init__(self, settings: Settings, starts: Starts) -> None:
        self.settings, self.starts, self.actions = settings, starts, Actions(settings, starts)
        self.pages = Pages("Coordinator", _LINKS)

    def application(self) -> Starlette:
        """Return the ASGI application, without what lets people in."""
        both = ["GET", "POST"]
        return application(
            self.pages,
            [
                Route("/", self.fleet),
                Route("/jobs", self.jobs),
                Route("/jobs/{job}", self.job),
                Route("/jobs/{job}/live", self.job_live),
                Route("/jobs/{job}/{file:path}", self.job_file),
                Route("/starts/{name}", self.start),
                Route("/starts/{name}/live", self.start_live),
                Route("/lineage", self.lineage),
                Route("/devices", self.devices),
                Route("/records", self.records, methods=both),
                Route("/do/{act}", self.decide, methods=both),
                Route("/do/{act}/{about}", self.decide, methods=both),
            ],
        )

    # ------------------------------------------------------------------ what is shown

    def fleet(self, request: Request) -> Response:
        """Show what is due, what goes on, and what may be done."""
        with self._store() as store:
            records, running = store.jobs(), store.is_locked()
            champion, unfinished = store.champions.current(), store.unfinished()
            last = next((each for each in reversed(records) if each.proceedings.asked), None)
            facts: dict[str, Any] = {
                "champion": champion,
                "current": self._facts(store, unfinished[-1]) if unfinished else None,
                "running": running,
                "last": last,
                "due": _due(records),
                "answer": command.last_answer(store, self.settings.erasure.due),
                "today": datetime.now(UTC).date(),
                "away": last.absent if last else {},
                "planned": next((each for each in reversed(records) if each.kind == "plan"), None),
                "decisions": store.decisions.all()[: -_MOST_DECISIONS - 1 : -1],
            }
        starts = [self.starts.read(name) for name in self.starts.names()[:5]]
        return self.pages.show(request, "coordinator/fleet.html", starts=starts, waiting=self._waiting(), **facts)

    def jobs(self, request: Request) -> Response:
        """Show all jobs, newest first."""
        with self._store() as store:
            records, running = store.jobs()[::-1], store.is_locked()
            rows = [_job_row(record, command.state_of(store, record, running)) for record in records[:_MOST_JOBS]]
        return self.pages.show(request, "coordinator/jobs.html", jobs=rows, more=max(0, len(records) - _MOST_JOBS))

    def job(self, request: Request) -> Response:
        """Show one job: how far it is, what each site does, and what came of it."""
        with self._store() as store:
            record, facts = self._job(store, request)
            folder = store.folders.of(record.job)
            files = {"report": PAGE_FILE, "certificate": CERTIFICATE_FILE}
            found = {name: file for name, file in files.items() if (folder / file).exists()}
            may_cancel = record.step not in {"settled", "failed", "cancelled"}
        return self.pages.show(
            request, "coordinator/job.html", record=record, files=found, may_cancel=may_cancel, **facts
        )

    def job_live(self, request: Request) -> Response:
        """Return the part of a job's page that changes."""
        with self._store() as store:
            _, facts = self._job(store, request)
        return self._part(request, "coordinator/job_live.html", **facts)

    def job_file(self, request: Request) -> Response:
        """Return a job's report, in which nothing runs, or its certificate."""
        file = request.path_params["file"]
        if file not in {PAGE_FILE, CERTIFICATE_FILE}:
            raise HTTPException(404)
        with self._store() as store:
            path = store.folders.of(store.load(request.path_params["job"]).job) / file
        if not path.exists():
            raise HTTPException(404, f"This job has no {file}.")
        if file == PAGE_FILE:
            return HTMLResponse(path.read_bytes(), headers={"Content-Security-Policy": DOCUMENT_POLICY})
        name = {"Content-Disposition": f'attachment; filename="{file}"'}
        return Response(path.read_bytes(), media_type="application/json", headers=name)

    def start(self, request: Request) -> Response:
        """Show what a job that was started here prints."""
        one = self.starts.read(request.path_params["name"])
        with self._store() as store:
            decision = next((each for each in store.decisions.all() if each.about == one.name), None)
        return self.pages.show(request, "coordinator/start.html", one=one, decision=decision)

    def start_live(self, request: Request) -> Response:
        """Return the part of that page that changes."""
        one = self.starts.read(request.path_params["name"])
        return self._part(request, "coordinator/start_live.html", goes_on=one.running, one=one)

    def lineage(self, request: Request) -> Response:
        """Show which model came after which, with verdicts."""
        versions, problem = self._versions()
        with self._store() as store:
            found = lineage(store.jobs(), store.champions.current(), store.champions.history(), versions)
        may_revoke = {each.job: self._may_revoke(each) for each in found}
        return self.pages.show(
            request, "coordinator/lineage.html", ancestors=found, problem=problem, may_revoke=may_revoke
        )

    def devices(self, request: Request) -> Response:
        """Show what each device holds, and what keeps erasures open."""
        with self._delivery() as delivery:
            if delivery is None:
                return self.pages.show(request, "coordinator/devices.html", devices=None)
            now, current = delivery.clock(), rollout.read(delivery.repository, delivery.repository.read())
            epochs = published_epochs(delivery.devices)
            open_by_epoch = {epoch: open_devices(delivery.devices, epoch, now) for epoch in epochs[::-1]}
            return self.pages.show(
                request,
                "coordinator/devices.html",
                devices=delivery.devices.devices(),
                open_by_epoch=open_by_epoch,
                line=rollout_line(current) if current else "No rollout.",
                state=current.state if current else "",
            )

    def records(self, request: Request) -> Response:
        """Export what the coordinator knows of a period as a signed archive."""
        values, status, errors = request.state.form, 200, dict[str, str]()
        if request.method == "POST":
            try:
                begin, end = day_of(values.get("from", ""), "--from"), day_of(values.get("to", ""), "--to")
                with self._store() as store, tempfile.TemporaryDirectory() as folder:
                    file = Path(folder) / "records.zip"
                    records = write_fleet_records(
                        store, self.settings, file, begin, end, done_by=request.state.user, to=DOWNLOAD
                    )
                    return archive_answer(file, f"fleet-{begin}-{records.predicate.end}.zip")
            except FleetError as error:
                status, errors = refused(error)
        else:
            values = {"to": str(datetime.now(UTC).date())}
        key = public_key_file(signer_file(self.settings, self.settings.state_folder / "coordinator"))
        return self.pages.show(
            request, "coordinator/records.html", status=status, values=values, errors=errors, key=key
        )

    # ------------------------------------------------------------------ what is decided

    def decide(self, request: Request) -> Response:
        """Ask for the reason, say what will happen, and do it: three steps, and nothing happens before the last."""
        act, about = request.path_params["act"], request.path_params.get("about", "")
        action = self.actions.find(act, about)
        if action is None:
            raise HTTPException(404)
        form, errors, status, foreseen = request.state.form, dict[str, str](), 200, list[str]()
        sure = False
        try:
            foreseen = action.foresee()
            if request.method == "POST":
                require_reason(form.get("reason", ""))
                sure = True
                if form.get("sure") == "yes":
                    return RedirectResponse(action.act(request.state.user, form["reason"].strip()), 303)
        except FleetError as error:
            status, errors = refused(error)
            sure = sure and not error.field
        return self.pages.show(
            request,
            "coordinator/sure.html" if sure else "coordinator/reason.html",
            status=status,
            values=form,
            errors=errors,
            title_of_action=action.title,
            foreseen=foreseen,
        )

    # ------------------------------------------------------------------ what is known

    @contextmanager
    def _store(self) -> Iterator[Store]:
        with closing(Store(self.settings.state_folder)) as store:
            yield store

    @contextmanager
    def _delivery(self) -> Iterator[Delivery | None]:
        if not has_delivery(self.settings):
            yield None
            return
        with opened_delivery(self.settings) as delivery:
            yield delivery

    def _waiting(self) -> dict[str, str]:
        """Return the devices that keep the last erasure open, and why."""
        try:
            with self._delivery() as delivery:
                epochs = published_epochs(delivery.devices) if delivery else []
                if delivery is None or not epochs:
                    return {}
                found = open_devices(delivery.devices, epochs[-1], delivery.clock())
        except FleetError as error:
            return {"": str(error)}
        return {each.device.name: each.reason for each in found}

    def _job(self, store: Store, request: Request) -> tuple[JobRecord, dict[str, Any]]:
        record = store.load(request.path_params["job"])
        return record, self._facts(store, record)

    @staticmethod
    def _facts(store: Store, record: JobRecord) -> dict[str, Any]:
        """Return what changes while a job goes on."""
        now = datetime.now(UTC)
        return {
            "job": record.job,
            "state": command.state_of(store, record, store.is_locked()),
            "lines": command.status_lines(store, record.job)[1:],
            "sites": [
                {"site": each.site, "doing": each.doing, "seconds": int((now - each.since).total_seconds())}
                for each in command.activities(store, record.job)
            ],
            "goes_on": command.goes_on(store, record.job),
        }

    def _versions(self) -> tuple[Mapping[str, RegisteredVersion], str]:
        """Return the registry's versions by job, and why they are not known."""
        if not has_registry(self.settings):
            return {}, ""
        try:
            with open_registry(self.settings.tracking, self.settings.state_folder) as registry:
                return {version.job: version for version in registry.versions() if version.job}, ""
        except FleetError as error:
            return {}, str(error)

    @staticmethod
    def _may_revoke(one: Ancestor) -> bool:
        return bool(one.version) and one.standing != "champion" and not one.revoked

    def _part(self, request: Request, template: str, *, goes_on: bool, **facts: Any) -> Response:
        text = self.pages.text(request, template, goes_on=goes_on, **facts)
        return HTMLResponse(text, headers={_GOES_ON: "yes" if goes_on else "no"})


def _due(records: list[JobRecord]) -> list[dict[str, Any]]:
    """Return the requests of the last erasure that no model has forgotten yet, the first due ones first."""
    last = next((each for each in reversed(records) if each.kind == "erase" and each.proceedings.asked), None)
    if last is None:
        return []
    rows = [
        {"request": each.request, "site": each.site, "asked": each.asked_at, "due": each.deadline, "job": last.job}
        for each in last.proceedings.asked
        if each.request not in last.forgotten
    ]
    return sorted(rows, key=lambda row: (row["due"], row["request"]))


def _job_row(record: JobRecord, state: str) -> dict[str, Any]:
    return {
        "job": record.job,
        "state": state,
        "began": record.started_at,
        "requests": record.requests,
        "verdict": record.verdict.outcome.value if record.verdict else "",
        "epoch": record.epoch if record.released else None,
        "minutes": f"{record.seconds / 60:.1f}",
    }
