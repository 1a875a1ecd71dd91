"""``dlfd-fleet forget`` as an officer types it."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest

from dlfd_fleet.cli import main
from dlfd_fleet.cli.request_tables import history_table, request_facts, requests_table
from dlfd_fleet.ledger import Site
from dlfd_fleet.ledger.dates import add_months
from dlfd_fleet.plain_text import PlainConsole
from dlfd_fleet.report.words import day
from tests.clinic import ask, forget, make_clinic
from tests.command import run_command

TODAY = datetime.now(UTC).astimezone().date()


@pytest.fixture(scope="module")
def clinic(tmp_path_factory):
    return make_clinic(tmp_path_factory.mktemp("state") / "clinic", (*"abcdefgh", "anna", "Maximilian van der Bergh"))


@pytest.fixture
def folder(tmp_path):
    return make_clinic(tmp_path / "clinic")


def forgot(*words, code=0, **variables):
    """Run ``dlfd-fleet forget``, and return what it said."""
    done = run_command("forget", *words, **variables)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if code == 0 else done.stderr


def test_a_request_is_taken_in_extended_shown_answered_and_exported(folder, tmp_path):
    received, site = TODAY - timedelta(days=5), ("--site", folder)
    told = ("--received", received, "--verified-by", "passport, seen by M. Ode", "--by", "ode", "--note", "by phone")
    said = forgot("request", "ANNA", *site, *told, "--set", "erasure.deadline_days=20")
    assert f"to be done by {received + timedelta(days=20)}" in said
    request = re.search(r"Accepted as request (\w{8});", said)[1]
    due = TODAY + timedelta(days=30)
    notice = ("--reason", "many requests", "--noticed", TODAY, "--by", "nia")
    assert f"is to be done by {due}" in forgot("extend", "anna", *site, "--until", due, *notice)
    letter = tmp_path / "letter.html"
    assert "letter 'extended'" in forgot("letter", request, *site, "-o", letter, "--set", "desk.sender=The Clinic")
    assert "The Clinic" in letter.read_text()
    shown = forgot("show", "anna", *site)
    for words in ("passport, seen by M. Ode", "by phone", "ode", "nia", "many requests", f"told {TODAY}", "asked"):
        assert words in shown
    for words in ("letter printed", "It waits for the next erasure job", str(due), request):
        assert words in shown
    archive = tmp_path / "archive.zip"
    end = TODAY + timedelta(days=20)
    said = forgot("export", *site, "--from", received, "--to", end, "-o", archive)
    assert f"It ends today, {TODAY}: the period goes on until {end}." in said
    assert "decisions 1, exports 0, history 3, jobs 0, requests 1" in said
    listed = forgot("exports", *site)
    assert str(archive) in listed
    assert f"{received} to {TODAY}" in listed
    verified = forgot("export", "--verify", archive, "--key", folder / "records.pub.pem")
    assert "Verified: every file is as the holder of this key signed it." in verified
    assert "is refused; the person may be trained on again" in forgot(
        "refuse", request, *site, "--ground", "legal-claims", "--reason", "a court case"
    )
    assert "a court case" in forgot("show", request, *site)
    assert "REFUSED" in forgot("list", *site, "--state", "refused")
    assert "There is no such request." in forgot("list", *site, "--state", "accepted")
    forgot("request", "anna", *site)


def test_a_person_is_told_of_an_extension_before_it_is_recorded(folder, tmp_path):
    site, letter, planned = ("--site", folder), tmp_path / "letter.html", ("--months", "2", "--reason", "many requests")
    forgot("request", "anna", *site)
    due = TODAY + timedelta(days=28)
    said = forgot("letter", "anna", *site, "-o", letter, *planned)
    assert "is a draft: nothing is recorded" in said
    assert "Then record it: dlfd-fleet forget extend" in said
    page = letter.read_text()
    assert "We need more time" in page
    assert day(add_months(due, 2)) in page
    assert "many requests" in page
    with Site(folder) as opened:
        assert len(opened.ledger.history()) == 1
        assert opened.find_request("anna").due == due
    wrong = "--months, --until and --reason are of the letter 'extended' alone"
    assert wrong in forgot("letter", "anna", *site, "-o", letter, *planned, "--stage", "received", code=2)
    assert "The reason (--reason) is empty" in forgot("letter", "anna", *site, "-o", letter, "--months", "1", code=2)
    assert "either --until DAY or --months" in forgot("letter", "anna", *site, "-o", letter, "--reason", "x", code=2)
    said = forgot("letter", "anna", *site, "-o", letter, "--stage", "extended", code=2)
    assert "to tell the person before, add --months or --until, and --reason" in said


def test_who_decides_is_the_login_name_unless_it_is_said(folder):
    forgot("request", "anna", "--site", folder, LOGNAME="mia")
    with Site(folder) as site:
        assert site.ledger.history()[0].done_by == "mia"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["request", "anna", "--received", "20.11.2026"], "--received is '20.11.2026', not a day"),
        (["request", "anna", "--received", "2999-01-01"], "is in the future"),
        (["request", "anna", "--set", "erasure.deadline_days=1000000000"], "'erasure.deadline_days' (flag) is"),
        (
            ["extend", "bert", "--months", "1", "--reason", "x", "--noticed", "now"],
            "--noticed is 'now', not a day",
        ),
        (["extend", "bert", "--reason", "x", "--noticed", str(TODAY)], "either --until DAY or --months 1 or 2"),
        (["extend", "bert", "--until", "9999-12-31", "--reason", "x", "--noticed", str(TODAY)], "2 months after"),
        (["refuse", "bert", "--ground", "no", "--reason", "x"], "--ground is 'no'; write one of freedom-of-expression"),
        (["refuse", "dora", "--ground", "archiving", "--reason", "x"], "There is no request dora"),
        (["list", "--due-within", "soon"], "--due-within is 'soon'; write a number of days, such as 7d."),
        (["list", "--due-within", "-1"], "--due-within is '-1'"),
        (["list", "--state", "asleep"], "--state is 'ASLEEP'; write one of ACCEPTED, UNLEARNING"),
        (["letter", "bert", "-o", "x.html", "--stage", "late"], "--stage is 'late'; write one of received"),
        (["letter", "bert", "-o", "x.html", "--stage", "forgotten"], "is ACCEPTED and was not forgotten"),
        (["export"], "To export records, write --site FOLDER --from DAY --to DAY -o ARCHIVE"),
        (["export", "--verify", "x.zip"], "write --verify ARCHIVE --key PUBLIC.pem, and nothing else"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, monkeypatch, words, sentence):
    folder = make_clinic(tmp_path / "clinic")
    monkeypatch.chdir(tmp_path)
    with Site(folder) as site:
        ask(site, "bert")
    said = forgot(*words, "--site", folder, code=2)
    assert said.startswith("Error: ")
    assert sentence in said
    assert said.count("\n") == 1
    with Site(folder) as site:
        assert len(site.ledger.history()) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["clinic"]


def test_a_process_without_a_login_name_must_say_who_it_is(folder, monkeypatch, capsys):
    def nobody():
        raise KeyError("uid not found")

    monkeypatch.setattr("getpass.getuser", nobody)
    monkeypatch.setattr("sys.argv", ["dlfd-fleet", "forget", "request", "anna", "--site", str(folder)])
    with pytest.raises(SystemExit):
        main()
    assert "say who you are with --by NAME" in capsys.readouterr().err
    with Site(folder) as site:
        assert site.ledger.requests() == []


def shown(renderable, width):
    out = io.StringIO()
    PlainConsole(file=out, width=width).print(renderable)
    return out.getvalue()


def all_words(text):
    return set(text.split())


def test_a_list_fits_80_columns_and_cuts_no_word(clinic):
    """The longest of everything: states, names, deadlines that are a year away."""
    with Site(clinic) as site:
        for person in "abcdefgh":
            ask(site, person, deadline_days=366)
        forget(site, site.find_request("a"))
        late = ask(site, "anna", received=TODAY - timedelta(days=40), note="a note")
        ask(site, "Maximilian van der Bergh", note="x" * 300, verified_by="passport " * 30)
        requests, events = site.ledger.requests(), site.ledger.history(late.id)
        long = site.find_request("Maximilian van der Bergh")
        told = site.ledger.history(long.id)
    now = datetime.now(UTC)
    text = shown(requests_table(requests, now, 80), 80)
    assert max(map(len, text.splitlines())) <= 80
    words = {request.id[:8] for request in requests} | {str(request.due) for request in requests}
    words |= {"Maximilian", "Bergh", "ROLLING_OUT", "OVERDUE", "(purged)", "366", str(late.received)}
    assert words <= all_words(text)
    facts = shown(request_facts(late, events, "It waits.", {}, now), 80) + shown(history_table(events), 80)
    assert max(map(len, facts.splitlines())) <= 80
    assert {late.id, "anna", "(OVERDUE)", "a", "note", "asked"} <= all_words(facts)
    assert max(map(len, shown(request_facts(long, told, "", {}, now), 80).splitlines())) <= 80


def test_a_name_that_is_one_long_word_takes_the_room_of_the_days_of_receipt(folder):
    with Site(folder) as site:
        request = replace(ask(site), identity="anna.maria.smith@hospital.example")
    lines = shown(requests_table([request], datetime.now(UTC), 80), 80).splitlines()
    assert len(lines) == 2
    assert "anna.maria.smith@hospital.example" in lines[1]
    assert "received" not in lines[0]
    assert "received" in shown(requests_table([request], datetime.now(UTC), 120), 120)


def test_the_list_is_json_for_programs_and_due_requests_come_first(folder):
    with Site(folder) as site:
        soon = ask(site, "bert", received=TODAY - timedelta(days=25))
        late = ask(site, "cleo", received=TODAY - timedelta(days=40))
        later = ask(site, "anna", verified_by="passport")
    listed = json.loads(forgot("list", "--site", folder, "--json"))
    assert [row["id"] for row in listed] == [late.id, soon.id, later.id]
    assert [row["overdue"] for row in listed] == [True, False, False]
    assert listed[2] | {"person": "anna", "verified_by": "passport", "days_left": 28, "state": "ACCEPTED"} == listed[2]
    assert date.fromisoformat(listed[1]["due"]) == TODAY + timedelta(days=3)
    assert [row["id"] for row in json.loads(forgot("list", "--site", folder, "--json", "--due-within", "3d"))] == [
        late.id,
        soon.id,
    ]
    assert json.loads(forgot("list", "--site", folder, "--json", "--search", "PASSPORT"))[0]["id"] == later.id
    assert json.loads(forgot("list", "--site", folder, "--json", "--search", "nobody")) == []


def test_a_withdrawal_names_the_person_or_a_part_of_the_id(folder):
    with Site(folder) as site:
        request = ask(site, "bert")
    assert "is withdrawn" in forgot("withdraw", "bert", "--site", folder, "--by", "ode")
    with Site(folder) as site:
        assert site.ledger.history(request.id)[-1].done_by == "ode"


def test_the_reason_of_a_withdrawal_is_shown_and_written(folder, tmp_path):
    site, letter = ("--site", folder), tmp_path / "letter.html"
    forgot("request", "bert", *site)
    forgot("withdraw", "bert", *site, "--reason", "it was somebody else")
    assert "it was somebody else" in forgot("show", "bert", *site)
    assert "letter 'withdrawn'" in forgot("letter", "bert", *site, "-o", letter)
    assert "it was somebody else" in letter.read_text()
    forgot("request", "bert", *site)
    assert "has 2001 characters" in forgot("withdraw", "bert", *site, "--reason", "x" * 2001, code=2)


def test_who_is_unknown_is_recorded_as_received_and_answered(folder, tmp_path):
    site, received, letter = ("--site", folder), TODAY - timedelta(days=5), tmp_path / "letter.html"
    told = ("--received", received, "--verified-by", "passport", "--by", "ode")
    said = forgot("request", "zoe", *site, *told, code=2)
    assert "There is no person 'zoe' at clinic" in said
    assert "record that (--no-data)" in said
    said = forgot("request", "zoe", *site, *told, "--no-data")
    assert "is recorded as received and answered: no data of this person is held" in said
    listed = json.loads(forgot("list", *site, "--state", "no_data", "--json"))
    assert [(row["person"], row["received"], row["verified_by"]) for row in listed] == [
        ("zoe", str(received), "passport")
    ]
    shown = forgot("show", "ZOE", *site)
    assert "no data held" in shown
    assert "NO_DATA" in shown
    assert "letter 'no-data'" in forgot("letter", "zoe", *site, "-o", letter)
    assert "found no image of you" in letter.read_text()
    assert "There are images of 'anna' at clinic: take the request in." in forgot(
        "request", "ANNA", *site, "--no-data", code=2
    )
    assert "it is NO_DATA" in forgot("withdraw", "zoe", *site, code=2)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("", "The person's name is"), (" ", "The person's name is"), ("\udc80", "PERSON: '\\udc80' is no text in UTF-8")],
)
def test_a_name_that_is_none_is_a_sentence(folder, name, sentence):
    for more in ((), ("--no-data",)):
        assert sentence in forgot("request", name, "--site", folder, *more, code=2)


def test_exports_say_who(folder, tmp_path):
    site = ("--site", folder)
    assert "Nobody has exported" in forgot("exports", *site)
    told = ("--from", TODAY, "--to", TODAY, "-o", tmp_path / "a.zip", "--by", "ode")
    forgot("export", *site, *told, "--with-names")
    with Site(folder) as opened:
        (export,) = opened.ledger.exports()
    assert (export.done_by, export.with_names) == ("ode", True)
    assert "nothing else" in forgot("export", "--verify", "a.zip", "--key", "b.pem", "--by", "ode", code=2)


def test_names_in_an_archive_are_announced(folder, tmp_path):
    with Site(folder) as site:
        ask(site)
    words = ("--site", folder, "--from", TODAY, "--to", TODAY, "-o", tmp_path / "a.zip")
    assert "It holds names: delete" in forgot("export", *words, "--with-names")
    (tmp_path / "a.zip").write_bytes(b"nonsense")
    said = forgot("export", "--verify", tmp_path / "a.zip", "--key", folder / "records.pub.pem", code=2)
    assert "is no ZIP archive, or is damaged" in said
