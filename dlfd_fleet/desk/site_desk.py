"""A site's desk: its requests with names, and what its officers decide about them, by the functions of the command."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from dlfd_fleet.desk.access import DOCUMENT_POLICY
from dlfd_fleet.desk.letters import Stage, print_letter, stages_of
from dlfd_fleet.desk.pages import Pages
from dlfd_fleet.desk.records import DOWNLOAD, KEY_FILE, write_records
from dlfd_fleet.desk.routes import application, archive_answer, refused
from dlfd_fleet.desk.waiting import what_the_fleet_says
from dlfd_fleet.exceptions import FleetError, LedgerError
from dlfd_fleet.ledger import Site, extend, plan_extension, refuse, request_forgetting, withdraw
from dlfd_fleet.ledger.dates import day_of, latest_deadline, site_day
from dlfd_fleet.ledger.entries import ForgetRequest
from dlfd_fleet.ledger.requests import has_joined, is_unknown
from dlfd_fleet.ledger.restored import restored
from dlfd_fleet.ledger.site import SHORTEST_ID
from dlfd_fleet.ledger.site_uses import what_a_request_means
from dlfd_fleet.ledger.states import GROUNDS, Ground, RequestState
from dlfd_fleet.ledger.status import find_requests, what_keeps_open
from dlfd_fleet.report.keys import public_key_file
from dlfd_fleet.settings import Settings

SOON_DAYS = 7
_MOST_CLOSED, _MOST_EXPORTS = 50, 30
_LINKS = {"/": "Requests", "/take-in": "Take one in", "/records": "Records"}
_STATE_WORDS = {
    RequestState.ACCEPTED: "waits for a job",
    RequestState.UNLEARNING: "a job works on it",
    RequestState.EVALUATING: "a job works on it",
    RequestState.RELEASED: "images to be deleted",
    RequestState.PURGING: "images to be deleted",
    RequestState.ROLLING_OUT: "waits for devices",
    RequestState.COMPLETE: "complete",
    RequestState.WITHDRAWN: "withdrawn",
    RequestState.REFUSED: "refused",
    RequestState.NO_DATA: "no data held",
}


class SiteDesk:
    """The pages of one site. Its ledger is opened for each of them: a job may work on it at the same time."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder, self.settings = folder, settings
        with Site(folder) as site:
            self.pages = Pages(site.card.name, _LINKS)

    def application(self) -> Starlette:
        """Return the ASGI application, without what lets people in."""
        both = ["GET", "POST"]
        return application(
            self.pages,
            [
                Route("/", self.requests),
                Route("/search", self.search, methods=["POST"]),
                Route("/take-in", self.take_in, methods=both),
                Route("/requests/{id}", self.request),
                Route("/requests/{id}/extend", self.extend, methods=both),
                Route("/requests/{id}/refuse", self.refuse, methods=both),
                Route("/requests/{id}/withdraw", self.withdraw, methods=both),
                Route("/requests/{id}/letter", self.letter, methods=both),
                Route("/records", self.records, methods=both),
            ],
        )

    def requests(self, request: Request) -> Response:
        """Show what is overdue and due soon, then the rest."""
        now = datetime.now(UTC)
        with Site(self.folder) as site:
            found = find_requests(site, now)
            rows, put_back = [self._row(site, each, now) for each in found], restored(site)
        late = [row for row in rows if row["overdue"]]
        soon = [row for row in rows if row["open"] and not row["overdue"] and row["days"] <= SOON_DAYS]
        later = [row for row in rows if row["open"] and row not in late and row not in soon]
        closed = sorted((row for row in rows if not row["open"]), key=lambda row: row["received"], reverse=True)
        return self.pages.show(
            request,
            "site/requests.html",
            groups={"Overdue": late, f"Due within {SOON_DAYS} days": soon, "Due later": later},
            closed=closed[:_MOST_CLOSED],
            more=max(0, len(closed) - _MOST_CLOSED),
            put_back=put_back.sentence() if put_back else "",
        )

    def search(self, request: Request) -> Response:
        """Show the requests in which a name or another text stands; it is posted, so that no URL has it."""
        text, now = request.state.form.get("search", "").strip(), datetime.now(UTC)
        with Site(self.folder) as site:
            rows = [self._row(site, each, now) for each in find_requests(site, now, search=text)]
        return self.pages.show(request, "site/search.html", rows=rows, values={"search": text})

    def take_in(self, request: Request) -> Response:
        """Take a request in."""
        values, error = request.state.form, None
        if request.method == "POST":
            try:
                with Site(self.folder) as site:
                    made = request_forgetting(
                        site,
                        values.get("identity", ""),
                        deadline_days=self.settings.erasure.deadline_days,
                        received=day_of(values["received"], "--received") if values.get("received") else None,
                        verified_by=values.get("verified_by", ""),
                        note=values.get("note", ""),
                        done_by=request.state.user,
                        no_data=values.get("no_data") == "yes",
                    )
                return _to(made)
            except FleetError as refusal:
                error = refusal
        return self._form(
            request,
            "site/take_in.html",
            error,
            {},
            today=_today(),
            days=self.settings.erasure.deadline_days,
            may_be_unknown=error is not None and self._may_be_unknown(values, error),
        )

    def _may_be_unknown(self, values: Mapping[str, str], error: FleetError) -> bool:
        """Tell whether the form offers to record that the site has no image of the person."""
        identity = values.get("identity", "").strip()
        if not identity or (error.field != "identity" and "no_data" not in values):
            return False
        with Site(self.folder) as site:
            return is_unknown(site, identity)

    def request(self, request: Request) -> Response:
        """Show one request: what keeps it open, and everything that happened to it."""
        now = datetime.now(UTC)
        with Site(self.folder) as site:
            found = self._found(site, request)
            events = site.ledger.history(found.id)
            is_new = len(events) == 1 and found.state is RequestState.ACCEPTED
            return self.pages.show(
                request,
                "site/request.html",
                one=self._row(site, found, now),
                found=found,
                events=events,
                ids={event.job: site.job_request_id(found.id, event.job) for event in events if event.job},
                waits=(what_keeps_open(site, found), *what_the_fleet_says(self.settings, found)),
                means=what_a_request_means(site, found) if is_new and found.identity else (),
                done=events[-1] if request.query_params.get("done") else None,
                may=self._may(site, found),
                spent=_why_not_extended(found) if not has_joined(site, found) else "",
            )

    def extend(self, request: Request) -> Response:
        """Extend the deadline of a request."""
        values, error = request.state.form, None
        with Site(self.folder) as site:
            found = self._found(site, request)
            if request.method == "POST":
                months, until = values.get("months", ""), values.get("until", "")
                try:
                    asked: dict[str, Any] = {
                        "until": day_of(until, "--until") if until else None,
                        "months": int(months) if months in {"1", "2"} else None,
                        "reason": values.get("reason", ""),
                    }
                    if values.get("draft"):
                        planned = plan_extension(site, found.id, **asked)
                        return _document(print_letter(site, found, self.settings.desk, planned=planned))
                    noticed = day_of(values.get("noticed", ""), "--noticed")
                    extend(site, found.id, **asked, noticed=noticed, done_by=request.state.user)
                    return _to(found)
                except FleetError as refusal:
                    error = refusal
            facts = {
                "latest": latest_deadline(found.first_deadline.date()),
                "today": _today(),
                "spent": _why_not_extended(found),
            }
            return self._form(request, "site/extend.html", error, {"months": "1"}, one=self._of(site, found), **facts)

    def refuse(self, request: Request) -> Response:
        """Refuse a request."""
        values, error = request.state.form, None
        with Site(self.folder) as site:
            found = self._found(site, request)
            if request.method == "POST":
                try:
                    refuse(
                        site,
                        found.id,
                        _ground(values.get("ground", "")),
                        reason=values.get("reason", ""),
                        done_by=request.state.user,
                    )
                    return _to(found)
                except FleetError as refusal:
                    error = refusal
            return self._form(request, "site/refuse.html", error, {}, one=self._of(site, found), grounds=GROUNDS)

    def withdraw(self, request: Request) -> Response:
        """Take a request back."""
        values, error = request.state.form, None
        with Site(self.folder) as site:
            found = self._found(site, request)
            if request.method == "POST":
                try:
                    withdraw(site, found.id, reason=values.get("reason", ""), done_by=request.state.user)
                    return _to(found)
                except FleetError as refusal:
                    error = refusal
            return self._form(request, "site/withdraw.html", error, {}, one=self._of(site, found))

    def letter(self, request: Request) -> Response:
        """Make a letter to print; the history notes it."""
        values, error = request.state.form, None
        with Site(self.folder) as site:
            found = self._found(site, request)
            stages = stages_of(site, found)
            if request.method == "POST":
                try:
                    page = print_letter(
                        site,
                        found,
                        self.settings.desk,
                        stage=_stage(values.get("stage", "")),
                        name=values.get("name", "").strip() or None,
                        done_by=request.state.user,
                    )
                    return _document(page)
                except FleetError as refusal:
                    error = refusal
            last = stages[-1].value if stages else ""
            return self._form(
                request, "site/letter.html", error, {"stage": last}, one=self._of(site, found), stages=stages
            )

    def records(self, request: Request) -> Response:
        """Export the records of a period as a signed archive."""
        values, error = request.state.form, None
        if request.method == "POST":
            try:
                begin, end = day_of(values.get("from", ""), "--from"), day_of(values.get("to", ""), "--to")
                with Site(self.folder) as site, tempfile.TemporaryDirectory() as folder:
                    file = Path(folder) / "records.zip"
                    records = write_records(
                        site,
                        file,
                        begin,
                        end,
                        with_names=values.get("with_names") == "yes",
                        done_by=request.state.user,
                        to=DOWNLOAD,
                    )
                    return archive_answer(file, f"{begin}-{records.predicate.end}.zip")
            except FleetError as refusal:
                error = refusal
        key = public_key_file(self.folder / KEY_FILE)
        with Site(self.folder) as site:
            exports = site.ledger.exports()[: -_MOST_EXPORTS - 1 : -1]
        return self._form(request, "site/records.html", error, {"to": str(_today())}, key=key, exports=exports)

    def _form(
        self, request: Request, template: str, error: FleetError | None, defaults: Mapping[str, str], **facts: Any
    ) -> Response:
        """Show a form: what was typed stays, and what is wrong stands beside the field that is wrong."""
        form = request.state.form
        values = form if request.method == "POST" else defaults
        status, errors = refused(error) if error else (200, {})
        return self.pages.show(request, template, status=status, values=values, errors=errors, **facts)

    @staticmethod
    def _found(site: Site, request: Request) -> ForgetRequest:
        wanted = request.path_params["id"]
        found = next((each for each in site.ledger.requests() if each.id == wanted), None)
        if found is None:
            raise HTTPException(404, f"There is no such request at {site.card.name}.")
        return found

    def _of(self, site: Site, found: ForgetRequest) -> dict[str, Any]:
        return self._row(site, found, datetime.now(UTC))

    @staticmethod
    def _row(site: Site, found: ForgetRequest, now: datetime) -> dict[str, Any]:
        days = (found.due - site_day(now)).days
        return {
            "id": found.id,
            "short": found.id[:SHORTEST_ID],
            "person": found.identity,
            "state": found.state.value,
            "words": _STATE_WORDS[found.state],
            "received": found.received,
            "due": found.due,
            "open": found.is_open,
            "overdue": found.overdue(now),
            "days": days,
            "job": found.job,
            "waits": what_keeps_open(site, found),
        }

    @staticmethod
    def _may(site: Site, found: ForgetRequest) -> dict[str, str]:
        """Return what can be done with a request now, by the last part of its path; the ledger has the last word."""
        here, waits = not has_joined(site, found), found.state is RequestState.ACCEPTED
        may = {
            "letter": "Letter" if stages_of(site, found) else "",
            "extend": "Extend" if here and found.is_open and not _why_not_extended(found) else "",
            "refuse": "Refuse" if here and waits else "",
            "withdraw": "Withdraw" if waits else "",
        }
        return {name: title for name, title in may.items() if title}


def _to(found: ForgetRequest) -> Response:
    return RedirectResponse(f"/requests/{found.id}?done=yes", 303)


def _document(page: str) -> Response:
    return HTMLResponse(page, headers={"Content-Security-Policy": DOCUMENT_POLICY})


def _why_not_extended(found: ForgetRequest) -> str:
    """Say why an open request cannot be extended; nothing if it can, or is closed."""
    first = found.first_deadline.date()
    if not found.is_open or found.due < latest_deadline(first):
        return ""
    return f"It cannot be extended any more: {found.due} is two months after its first deadline, {first}."


def _today() -> Any:
    return site_day(datetime.now(UTC))


def _ground(text: str) -> Ground:
    if text not in list(Ground):
        raise LedgerError("No ground is chosen; choose one of these.", "ground")
    return Ground(text)


def _stage(text: str) -> Stage | None:
    if text and text not in list(Stage):
        raise LedgerError("There is no such letter; choose one of these.", "stage")
    return Stage(text) if text else None
