"""Every route of a site's desk: what it does is what the command does, and no name is in any URL."""

from __future__ import annotations

import io
import json
import re
import zipfile
from datetime import UTC, datetime, timedelta

import pytest

from dlfd_fleet.desk.access import rules_of
from dlfd_fleet.desk.serving import guarded
from dlfd_fleet.desk.site_desk import SiteDesk
from dlfd_fleet.ledger import Action, RequestState, Site
from dlfd_fleet.ledger.dates import add_months
from dlfd_fleet.ledger.requests import join_requests
from dlfd_fleet.ledger.restored import Restored
from dlfd_fleet.report import load_public_key
from dlfd_fleet.report.archive import verify_archive
from dlfd_fleet.settings import Settings
from tests.clinic import ask, forget, give_to_job, make_clinic, on_day
from tests.command import run_command
from tests.desk_client import Visitor, wrong
from tests.desk_fleet import add_devices, fleet_settings, make_fleet

TODAY = datetime.now(UTC).astimezone().date()
HOSTILE = "<script>alert('a')</script>"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_clinic(tmp_path_factory.mktemp("made") / "clinic", ("anna", "bert", "cleo", HOSTILE), bytes(range(32)))


@pytest.fixture
def folder(tmp_path, made):
    import shutil

    return shutil.copytree(made, tmp_path / "clinic")


@pytest.fixture
def site(folder):
    with Site(folder) as opened:
        yield opened


@pytest.fixture
def visitor(folder, tmp_path):
    desk = SiteDesk(folder, settings := Settings(state_folder=tmp_path / "state"))
    rules = rules_of(settings.desk, "127.0.0.1", "M. Ode", over_tls=False)
    one = Visitor(guarded(desk.application(), rules, desk.pages, 8400))
    yield one
    assert not [url for url in one.urls if re.search("anna|bert|cleo|script|passport", url, re.IGNORECASE)]


def test_a_request_is_taken_in_with_everything_that_the_officer_says(visitor, site):
    received = TODAY - timedelta(3)
    answer = visitor.post(
        "/take-in", identity="ANNA", received=str(received), verified_by="passport", note="by phone\r\ntwice"
    )
    assert answer.status_code == 303
    request = site.find_request("anna")
    assert answer.headers["location"] == f"/requests/{request.id}?done=yes"
    assert (request.received, request.verified_by, request.note) == (received, "passport", "by phone\ntwice")
    assert request.due == received + timedelta(28)
    assert site.ledger.history(request.id)[0].done_by == "M. Ode"
    page = visitor.get(answer.headers["location"]).text
    assert "Noted: asked" in page
    assert "The request is about 2 images" in page
    assert "by phone\ntwice" in page


@pytest.mark.parametrize(
    ("form", "field", "command"),
    [
        ({"identity": "annna"}, "identity", ["annna"]),
        ({"identity": "anna", "received": "2031-01-01"}, "received", ["anna", "--received", "2031-01-01"]),
        ({"identity": "anna", "received": "soon"}, "received", ["anna", "--received", "soon"]),
        ({"identity": "anna", "note": "x" * 2001}, "note", ["anna", "--note", "x" * 2001]),
        ({"identity": "anna", "verified_by": "\0"}, "verified_by", ["anna", "--verified-by", "\0"]),
    ],
)
def test_what_is_wrong_is_the_commands_sentence_beside_its_field_and_what_was_typed_stays(
    visitor, folder, site, form, field, command
):
    answer = visitor.post("/take-in", **form, **({} if "note" in form else {"note": "a <note>"}))
    assert answer.status_code == 422
    assert wrong(answer).keys() == {field}
    said = run_command("forget", "request", *command, "--site", folder).stderr
    # A field is called by its label, and not by its option.
    assert (
        re.sub(r"--[a-z-]+ is", "This is", said)
        == f"Error: {wrong(answer)[field]} See docs/how-to/requests.md (dlfd-fleet explain forget).\n"
    )
    assert "note" in form or "a &lt;note&gt;</textarea>" in answer.text
    assert f'value="{form["identity"]}"' in answer.text
    assert not site.ledger.requests()


def test_who_is_unknown_is_recorded_as_answered_once_the_officer_says_so(visitor, site):
    assert 'name="no_data"' not in visitor.get("/take-in").text
    form = {"identity": "zoe", "verified_by": "passport", "received": str(TODAY - timedelta(3))}
    answer = visitor.post("/take-in", **form)
    assert "There is no person 'zoe'" in wrong(answer)["identity"]
    assert 'name="no_data"' in answer.text
    answer = visitor.post("/take-in", **form | {"received": "soon"}, no_data="yes")
    assert wrong(answer).keys() == {"received"}
    assert 'value="yes" checked' in answer.text  # what was ticked stays
    answer = visitor.post("/take-in", **form, no_data="yes")
    assert answer.status_code == 303
    request = site.find_request("zoe")
    assert (request.state, request.verified_by) == (RequestState.NO_DATA, "passport")
    assert [(event.action, event.done_by) for event in site.ledger.history(request.id)] == [
        (Action.ASKED, "M. Ode"),
        (Action.NO_DATA, "M. Ode"),
    ]
    page = visitor.get(answer.headers["location"]).text
    assert "Noted: no data held" in page
    assert re.findall(rf'class="button" href="/requests/{request.id}/(\w+)"', page) == ["letter"]
    assert f"/requests/{request.id}" in visitor.get("/").text
    assert "found no image of you" in visitor.post(f"/requests/{request.id}/letter", stage="no-data").text
    answer = visitor.post("/take-in", identity="anna", no_data="yes")
    assert "take the request in" in wrong(answer)["identity"]
    assert 'name="no_data"' not in answer.text


def test_who_has_asked_already_is_told_at_the_name(visitor, site):
    ask(site)
    assert "has asked already" in wrong(visitor.post("/take-in", identity="anna"))["identity"]


def test_the_list_has_overdue_and_soon_due_requests_at_the_top(visitor, site):
    with on_day(TODAY - timedelta(40)):
        late = ask(site, "cleo")
    with on_day(TODAY - timedelta(22)):
        soon = ask(site, "bert")
    later = ask(site, "anna")
    text = visitor.get("/").text
    places = [text.index(f"/requests/{each.id}") for each in (late, soon, later)]
    assert places == sorted(places)
    assert places[0] < text.index(">OVERDUE<") < places[1]
    assert text.count(">OVERDUE<") == 1
    assert "6 days" in text
    assert "waits for the next erasure job" in text


def test_a_person_is_found_by_a_posted_name_alone(visitor, site):
    request = ask(site, "bert", note="by phone")
    for text in ("BERT", "phone", request.id[:8]):
        assert f"/requests/{request.id}" in visitor.post("/search", search=text).text
    assert "No request found" in visitor.post("/search", search="nobody").text
    assert visitor.client.get("/search?search=bert").status_code == 405


def test_a_request_is_extended_refused_and_withdrawn(visitor, site):
    one, two, three = (ask(site, name) for name in ("anna", "bert", "cleo"))
    for request, path, form in (
        (one, "extend", {"months": "1", "reason": "many <requests>", "noticed": str(TODAY)}),
        (two, "refuse", {"ground": "archiving", "reason": "a book"}),
        (three, "withdraw", {"reason": "a <friend> asked"}),
    ):
        assert visitor.get(f"/requests/{request.id}/{path}").status_code == 200
        assert visitor.post(f"/requests/{request.id}/{path}", **form).status_code == 303
    extended, refused, withdrawn = (site.ledger.get(each.id) for each in (one, two, three))
    assert extended.due > one.due
    assert (refused.state, withdrawn.state) == (RequestState.REFUSED, RequestState.WITHDRAWN)
    last = [site.ledger.history(each.id)[-1] for each in (one, two, three)]
    assert {event.done_by for event in last} == {"M. Ode"}
    assert "a &lt;friend&gt; asked" in visitor.get(f"/requests/{three.id}?done=yes").text
    page = visitor.get(f"/requests/{one.id}").text
    assert "many &lt;requests&gt;" in page
    assert f"told {TODAY}" in page
    site.ledger.verify()


@pytest.mark.parametrize(
    ("path", "form", "field", "sentence"),
    [
        ("extend", {"months": "1", "noticed": str(TODAY)}, "reason", "The reason (--reason) is empty"),
        ("extend", {"months": "1", "reason": "r"}, "noticed", "This is empty, not a day"),
        ("extend", {"months": "", "reason": "r", "noticed": str(TODAY)}, "until", "either --until DAY or --months"),
        ("extend", {"months": "1", "until": "2026-01-01", "noticed": str(TODAY)}, "until", "either --until DAY"),
        ("extend", {"months": "", "until": "2099-01-01", "reason": "r", "noticed": str(TODAY)}, "until", "at most"),
        ("refuse", {"reason": "r"}, "ground", "No ground is chosen; choose one of these"),
        ("refuse", {"ground": "archiving"}, "reason", "The reason (--reason) is empty"),
        ("withdraw", {"reason": "x" * 2001}, "reason", "has 2001 characters"),
        ("letter", {"stage": "forgotten"}, "form", "was not forgotten"),
        ("letter", {"stage": "x"}, "stage", "There is no such letter; choose one of these"),
    ],
)
def test_a_decision_that_is_refused_changes_nothing(visitor, site, path, form, field, sentence):
    request = ask(site)
    answer = visitor.post(f"/requests/{request.id}/{path}", **form)
    assert answer.status_code == 422
    assert sentence in wrong(answer)[field]
    assert len(site.ledger.history(request.id)) == 1


def test_a_request_that_a_job_works_on_is_not_withdrawn_and_says_what_it_waits_for(visitor, site):
    request = ask(site)
    give_to_job(site, request)
    page = visitor.get(f"/requests/{request.id}").text
    assert "The job erase-1 works on it." in page
    assert site.job_request_id(request.id, "erase-1") in page
    assert f"/requests/{request.id}/withdraw" not in page
    for path, form in (("withdraw", {}), ("refuse", {"ground": "archiving", "reason": "r"})):
        answer = visitor.post(f"/requests/{request.id}/{path}", **form)
        assert "the job erase-1 works on it" in wrong(answer)["form"]


def test_a_letter_opens_as_a_page_in_which_nothing_runs_and_is_noted(visitor, site):
    request = ask(site, HOSTILE)
    answer = visitor.post(f"/requests/{request.id}/letter", stage="received")
    assert "Dear <bdi>&lt;script&gt;" in answer.text
    policy = answer.headers["content-security-policy"]
    assert policy.endswith("sandbox")
    assert "script-src" not in policy
    assert site.ledger.history(request.id)[-1].action is Action.LETTER
    assert site.ledger.history(request.id)[-1].done_by == "M. Ode"
    named = visitor.post(f"/requests/{request.id}/letter", stage="", name="Somebody <else>")
    assert "Somebody &lt;else&gt;" in named.text


def test_the_letter_of_an_extension_is_drawn_before_anything_is_recorded(visitor, site):
    request = ask(site)
    path = f"/requests/{request.id}/extend"
    answer = visitor.post(path, months="1", reason="many <requests>", draft="yes")
    assert "We need more time" in answer.text
    assert "many &lt;requests&gt;" in answer.text
    assert answer.headers["content-security-policy"].endswith("sandbox")
    assert "is empty" in wrong(visitor.post(path, months="1", draft="yes"))["reason"]
    assert [event.action for event in site.ledger.history(request.id)] == [Action.ASKED]
    assert "after the deadline" not in visitor.get(path).text


def test_an_extension_is_not_offered_once_its_two_months_are_used_up(visitor, site):
    request = ask(site)
    path, latest = f"/requests/{request.id}/extend", add_months(request.due, 2)
    told = {"reason": "many requests", "noticed": str(TODAY)}
    visitor.post(path, months="1", **told)
    assert path in visitor.get(f"/requests/{request.id}").text
    visitor.post(path, months="", until=str(latest), **told)
    due = site.find_request("anna").due
    why = f"It cannot be extended any more: {due} is two months after its first deadline, {request.due}."
    page = visitor.get(f"/requests/{request.id}").text
    assert path not in page
    assert why in page
    assert why in visitor.get(path).text
    assert '<form method="post" novalidate' not in visitor.get(path).text
    answer = visitor.post(path, months="1", **told)
    assert answer.status_code == 422
    assert why in answer.text


def test_after_the_purge_there_is_no_name_and_a_letter_says_that_it_is_done(visitor, site):
    request = forget(site, ask(site, "bert", note="a friend"))
    page = visitor.get(f"/requests/{request.id}").text
    assert "bert" not in page
    assert "a friend" not in page
    assert "Devices may still hold an older model" in page
    assert "bert" not in visitor.get("/").text
    assert "Dear Sir or Madam" in visitor.post(f"/requests/{request.id}/letter", stage="forgotten").text


def test_a_request_of_another_site_is_answered_there(visitor, site):
    asked = {site.fleet_pseudonym("anna", "job-1"): ask(site, "bert").deadline}
    (joined,) = join_requests(site, "job-1", asked)
    assert "that site writes to the person" in visitor.get(f"/requests/{joined.id}/letter").text
    answer = visitor.post(f"/requests/{joined.id}/extend", months="1", reason="r", noticed=str(TODAY))
    assert "was made at another site; it is extended there" in wrong(answer)["form"]


def test_with_the_coordinator_on_this_machine_devices_are_named_and_sites_that_were_away(visitor, site, tmp_path):
    settings = fleet_settings(tmp_path / "state")
    make_fleet(settings).close()
    add_devices(settings)
    request = forget(site, ask(site, "bert"), job="erase-2", epoch=2)
    text = visitor.get(f"/requests/{request.id}").text
    assert "erase-2 is settled." in text
    assert "Site site-9 was away: it did not answer &lt;script&gt;" in text
    assert "Device camera-old was at epoch 1 when it last reported" in text
    assert "Device camera-silent has never reported." in text
    other = forget(site, ask(site, "cleo"), job="erase-of-another-fleet", epoch=1)
    assert "erase-of-another-fleet is" not in visitor.get(f"/requests/{other.id}").text


def read_from(file, name):
    with zipfile.ZipFile(file) as archive:
        return archive.read(name)


def test_an_archive_is_the_commands(visitor, folder, site, tmp_path):
    ask(site, "anna", verified_by="passport")
    answer = visitor.post("/records", from_=str(TODAY), to=str(TODAY))
    assert answer.headers["content-disposition"] == f'attachment; filename="{TODAY}-{TODAY}.zip"'
    (tmp_path / "own.zip").write_bytes(answer.content)
    verify_archive(tmp_path / "own.zip", load_public_key(folder / "records.pub.pem"))
    told = ("--from", TODAY, "--to", TODAY, "-o", tmp_path / "command.zip", "--by", "nia")
    assert run_command("forget", "export", "--site", folder, *told).returncode == 0
    for name in ("requests.csv", "history.json", "decisions.json", "jobs.csv"):
        assert read_from(tmp_path / "command.zip", name) == read_from(tmp_path / "own.zip", name)
    assert read_from(tmp_path / "own.zip", "exports.json") == b"[]\n"
    (row,) = json.loads(read_from(tmp_path / "command.zip", "exports.json"))
    assert (row["by"], row["with_names"]) == ("M. Ode", False)
    assert [(one.done_by, one.destination) for one in site.ledger.exports()] == [
        ("M. Ode", "download"),
        ("nia", str(tmp_path / "command.zip")),
    ]
    page = visitor.get("/records").text
    assert page.index("command.zip") < page.index("download")  # the last one first
    assert b"anna" not in answer.content
    named = visitor.post("/records", from_=str(TODAY), to=str(TODAY), with_names="yes")
    with zipfile.ZipFile(io.BytesIO(named.content)) as archive:
        assert json.loads(archive.read("requests.json"))[0]["person"] == "anna"


@pytest.mark.parametrize(
    ("begin", "end", "field", "sentence"),
    [
        ("", TODAY, "from", "This is empty"),
        (TODAY, "x", "to", "This is 'x'"),
        (TODAY, TODAY - timedelta(1), "form", "ends before it begins"),
        (TODAY + timedelta(1), TODAY + timedelta(2), "from", "after today"),
    ],
)
def test_a_period_that_is_none_is_refused(visitor, begin, end, field, sentence):
    assert sentence in wrong(visitor.post("/records", from_=str(begin), to=str(end)))[field]


def test_a_ledger_that_was_put_back_from_a_backup_is_said_on_the_first_page_and_by_the_command(visitor, folder):
    assert "put back from a backup" not in visitor.get("/").text
    noticed = Restored(noticed_at=datetime.now(UTC), sequence=9, digest="0" * 64, rows=3, lost={"1": 2})
    (folder / "restored.json").write_text(noticed.model_dump_json())
    told = noticed.sentence()
    assert told in visitor.get("/").text
    said = " ".join(run_command("site", "status", folder).stdout.split())
    assert told in said


def test_whatever_people_wrote_is_shown_and_not_obeyed(visitor, site):
    request = ask(site, HOSTILE, note="<img src=x onerror=a>\u202e", verified_by='"><b>', done_by="<i>ode</i>")
    give_to_job(site, request, job="erase-<u>")
    site.ledger.move(request.id, RequestState.ACCEPTED, "<s>why</s>", job="erase-<u>")
    paths = ["", *(f"/{name}" for name in ("extend", "refuse", "withdraw", "letter"))]
    pages = [visitor.get("/"), *(visitor.get(f"/requests/{request.id}{path}") for path in paths)]
    pages.append(visitor.post("/search", search='"><b>x'))
    pages.append(visitor.post("/take-in", identity=HOSTILE, note="</textarea><b>"))
    for page in pages:
        assert not re.search(r"<(script(?! src=)|img|i>|u>|s>|b>x|b>\")|\son\w+=[^\"]*a>|\u202e", page.text), page.url
    assert "\\u202e" in pages[1].text  # seen, where it would have turned the line round


def test_what_is_not_there_is_a_page_of_one_sentence(visitor):
    for path in ("/requests/0123456789abcdef", "/requests/anna/extend", "/nowhere", "/static/../site_desk.py"):
        answer = visitor.client.get(path)
        assert answer.status_code == 404, path
        assert "<h1>There is nothing here</h1>" in answer.text
    for path in ("/", "/requests/0123456789abcdef"):
        assert visitor.post(path).status_code == 405


def test_a_ledger_that_cannot_be_read_is_a_page_of_one_sentence(visitor, folder):
    (folder / "ledger.db").rename(folder / "ledger.away")
    answer = visitor.client.get("/")
    assert answer.status_code == 422
    assert "There is no ledger" in answer.text


def test_the_pages_load_nothing_from_elsewhere(visitor, site):
    request = ask(site)
    for path in ("/", "/take-in", "/records", f"/requests/{request.id}"):
        text = visitor.get(path).text
        assert not re.search(r'(?:src|href|action)="(?!/[^/]|#)', text), path
        assert not re.search(r"<style|<script(?! src)|style=", text)
