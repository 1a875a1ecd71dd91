"""Every route of a coordinator's desk: what is shown, what is decided and why, and that nothing happens unasked."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import zipfile
from datetime import UTC, datetime, timedelta

import pytest

from dlfd_fleet.desk.starts import Starts, starting_options
from dlfd_fleet.exceptions import JobError
from dlfd_fleet.federation.records.due import SiteWaiting, Waiting
from dlfd_fleet.report import load_public_key
from dlfd_fleet.report.archive import verify_archive
from dlfd_fleet.settings import Settings
from tests.command import run_command
from tests.desk_client import Visitor, wrong
from tests.desk_fleet import PROGRAM, add_devices, desk_of, fleet_settings, make_fleet

TODAY = datetime.now(UTC).date()
PAGES = ("/", "/jobs", "/jobs/erase-2", "/jobs/erase-3", "/jobs/erase-3/live", "/lineage", "/devices", "/records")


@pytest.fixture
def settings(tmp_path):
    return fleet_settings(tmp_path / "state")


@pytest.fixture
def store(settings):
    opened = make_fleet(settings)
    yield opened
    opened.close()


@pytest.fixture
def visitor(settings, store):
    return Visitor(desk_of(settings))


def test_the_first_page_says_what_is_due_and_what_goes_on(visitor, store):
    with store.lock():
        text = visitor.get("/").text
    assert text.index("b" * 16) < text.index("a" * 16)  # due before
    assert text.count(">OVERDUE<") == 1
    assert "train-1</a>, erasure epoch 0" in text
    assert "started, running" in text
    assert "unlearning" in text
    assert 'data-live="/jobs/erase-3/live"' in text
    assert "<code>site-9</code> did not answer" in text


def test_the_first_page_and_the_list_of_jobs_say_what_the_sites_said_when_they_were_last_asked(
    visitor, store, settings
):
    assert "`dlfd-fleet job start erase --if-due` asks them" in visitor.get("/").text
    asked_at = datetime.now(UTC) + timedelta(hours=1)  # after the jobs of this fleet
    sites = {"site-1": SiteWaiting(requests=3, first_due=TODAY + timedelta(20))}
    Waiting(asked_at=asked_at, sites=sites).write(store.folder)
    said = f"On {asked_at.astimezone():%Y-%m-%d %H:%M} the sites last said what waits. Nothing is due: 3 requests wait"
    assert said in visitor.get("/").text
    assert said in run_command("job", "list", "--set", f"state_folder={settings.state_folder}").stdout


def test_a_job_is_shown_with_what_each_site_does_as_long_as_somebody_waits_for_it(visitor, store):
    with store.lock():
        answer = visitor.get("/jobs/erase-3/live")
        assert answer.headers["x-goes-on"] == "yes"
        assert "unlearning" in answer.text
        assert "<html" not in answer.text
        assert "/static/desk.js" in visitor.get("/jobs/erase-3").text
    answer = visitor.get("/jobs/erase-3/live")
    assert answer.headers["x-goes-on"] == "no"
    assert "started, interrupted" in answer.text
    assert "<script" not in visitor.get("/jobs/erase-3").text
    assert "/do/cancel/" not in visitor.get("/jobs/erase-2").text


def test_a_job_says_who_started_it_and_why(visitor, store):
    store.decisions.note("start", "erase-3", "<b>Nia</b>", "it is <i>time</i>")
    text = visitor.get("/jobs/erase-3").text
    assert re.search(r"Started by &lt;b&gt;Nia&lt;/b&gt;, 20[-0-9: ]+: it is &lt;i&gt;time&lt;/i&gt;\.", text)
    assert "Started by" not in visitor.get("/jobs/erase-2").text


def test_whatever_sites_say_is_shown_and_not_obeyed(visitor, store, settings):
    add_devices(settings)
    with store.lock():
        for path in (*PAGES, "/do/cancel/erase-3"):
            answer = visitor.get(path)
            assert answer.status_code == 200, path
            assert not re.search(r"<script(?! src=\"/static/)|\u202e|<style|style=|\son\w+=", answer.text), path
    assert "\\u202e" in visitor.get("/jobs/erase-2").text


def test_a_report_opens_as_a_page_in_which_nothing_runs_and_a_certificate_is_taken_away(visitor, store):
    folder = store.folders.made("erase-2")
    assert visitor.get("/jobs/erase-2/report.html").status_code == 404
    (folder / "report.html").write_text("<p>report</p>")
    (folder / "certificate.json").write_text("{}")
    (folder / "secret.txt").write_text("secret")
    assert 'href="/jobs/erase-2/report.html"' in visitor.get("/jobs/erase-2").text
    answer = visitor.get("/jobs/erase-2/report.html")
    assert answer.text == "<p>report</p>"
    assert answer.headers["content-security-policy"].endswith("sandbox")
    assert "attachment" in visitor.get("/jobs/erase-2/certificate.json").headers["content-disposition"]
    for path in ("secret.txt", "../../jobs.db", "%2e%2e/%2e%2e/jobs.db", "model/model.onnx"):
        assert visitor.get(f"/jobs/erase-2/{path}").status_code == 404, path
    assert visitor.get("/jobs/nobody").status_code == 422


def test_a_job_is_cancelled_with_a_reason_after_a_second_look(visitor, store):
    before = visitor.get("/do/cancel/erase-3")
    assert "Nothing happens yet" in before.text
    answer = visitor.post("/do/cancel/erase-3", reason=" ")
    assert "The reason is empty: say why" in wrong(answer)["reason"]
    answer = visitor.post("/do/cancel/erase-3", reason=" ", sure="yes")
    assert answer.status_code == 422
    assert "2001 characters" in wrong(visitor.post("/do/start/erase", reason="x" * 2001))["reason"]
    second = visitor.post("/do/cancel/erase-3", reason="the <wrong> people")
    assert "the next job ends it first, and requests that it has taken up wait" in second.text
    assert "the &lt;wrong&gt; people" in second.text
    assert not store.is_cancelled("erase-3")
    assert not store.decisions.all()
    answer = visitor.post("/do/cancel/erase-3", reason="the <wrong> people", sure="yes")
    assert (answer.status_code, answer.headers["location"]) == (303, "/jobs/erase-3")
    assert store.is_cancelled("erase-3")
    (decision,) = store.decisions.all()
    assert (decision.act, decision.about, decision.who, decision.why) == (
        "cancel",
        "erase-3",
        "M. Ode",
        "the <wrong> people",
    )
    assert "the &lt;wrong&gt; people" in visitor.get("/").text


def test_what_the_command_refuses_is_refused_with_its_sentence_and_nothing_is_noted(visitor, store, settings):
    for path, words in (
        ("/do/cancel/erase-2", ("job", "cancel", "erase-2")),
        ("/do/cancel/nobody", ("job", "cancel", "nobody")),
        ("/do/promote/3", ("registry", "promote", "3", "--reason", "r")),
        ("/do/revoke/3", ("registry", "revoke", "3", "--reason", "r")),
        ("/do/hold", ("rollout", "pause", "--reason", "r")),
        ("/do/go-on", ("rollout", "resume", "--reason", "r")),
    ):
        answer = visitor.post(path, reason="r", sure="yes")
        assert answer.status_code == 422
        told = ("--set", f"state_folder={settings.state_folder}", "--set", "tracking.uri=http://127.0.0.1:9")
        said = run_command(*words, *told).stderr
        assert said.startswith(f"Error: {wrong(answer)['form']} See docs/"), path
    assert not store.decisions.all()


def test_a_job_is_started_as_the_command_does_and_its_log_is_shown(visitor, store):
    said = visitor.post("/do/start/erase", reason="it is time").text
    assert "erase-3 is not finished: it goes on first." in said
    assert "the champion, train-1 of epoch 0" in said
    assert not store.decisions.all()
    answer = visitor.post("/do/start/erase", reason="it is time", sure="yes")
    name = answer.headers["location"].removeprefix("/starts/")
    (decision,) = store.decisions.all()
    assert (decision.act, decision.about, decision.why) == ("start", name, "it is time")
    while visitor.get(f"/starts/{name}/live").headers["x-goes-on"] == "yes":
        pass
    text = visitor.get(f"/starts/{name}").text
    assert "asked for job start erase --by=M. Ode --reason=it is time" in text
    assert "Error: there is no site." in text
    assert "it is time" in text
    assert f"/starts/{name}" in visitor.get("/").text
    answer = visitor.post("/do/start/plan", reason="it is time", sure="yes")
    assert "erase-3 is not finished, and a plan goes on with nothing" in wrong(answer)["form"]
    store.save(store.load("erase-3").changed(note="over").at("failed"))
    visitor.post("/do/start/plan", reason="it is time", sure="yes")
    assert store.decisions.all()[-1].act == "plan"
    assert visitor.get("/starts/nothing").status_code == 422
    assert visitor.get("/starts/..%2fjobs").status_code == 404


def test_what_a_job_prints_is_shown_as_plain_text(visitor, settings):
    log = settings.state_folder / "coordinator" / "starts" / "started-train-20260101-000000-abcd.log"
    log.parent.mkdir(parents=True)
    colours = "\x1b[92mINFO \x1b[0m:\tround 1\r\n\x1b[38;5;1mround 2\x1b[m\r\x1b]0;owned\x07\u202e\n"
    log.write_bytes(b"\xff" + colours.encode())
    for path in (f"/starts/{log.stem}", f"/starts/{log.stem}/live"):
        text = visitor.get(path).text
        assert "\ufffdINFO : round 1\nround 2\n\\x1b]0;owned\\x07\\u202e\n" in text
        assert "\x1b" not in text
    log.write_text("\x1b[92m" * 20_000 + "\nround 3\n")  # only its end is shown, and that begins in a colour
    text = visitor.get(f"/starts/{log.stem}/live").text
    assert ">round 3\n<" in text


@pytest.mark.parametrize("path", ["/do/x", "/do/start/x", "/do/cancel", "/do/promote/x", "/do/hold/1", "/do/start"])
def test_there_is_no_other_action(visitor, path):
    assert visitor.get(path).status_code == 404
    assert visitor.post(path, reason="r", sure="yes").status_code == 404


def test_nothing_is_done_by_a_link(visitor, store):
    visitor.client.get("/do/cancel/erase-3?reason=r&sure=yes")
    assert not store.is_cancelled("erase-3")
    assert visitor.client.post("/do/cancel/erase-3", data={"reason": "r", "sure": "yes"}).status_code == 403
    assert not store.is_cancelled("erase-3")


def test_a_release_is_held_and_goes_on(visitor, store, settings):
    add_devices(settings)
    text = visitor.get("/devices").text
    assert "camera-old" in text
    assert "was at epoch 1 when it last reported" in text
    assert "has never reported" in text
    assert "No more devices take it" in visitor.post("/do/hold", reason="a fault").text
    assert ": running" in visitor.get("/devices").text
    assert visitor.post("/do/hold", reason="a fault", sure="yes").headers["location"] == "/devices"
    assert ": paused" in visitor.get("/devices").text
    assert "is paused" in wrong(visitor.post("/do/hold", reason="again", sure="yes"))["form"]
    visitor.post("/do/go-on", reason="mended", sure="yes")
    assert ": running" in visitor.get("/devices").text
    assert [(each.act, each.why) for each in store.decisions.all()] == [("hold", "a fault"), ("go on", "mended")]


def test_the_commands_of_a_rollout_keep_who_and_why_as_the_buttons_do(visitor, store, settings):
    add_devices(settings)
    told = ("--by", "M. Ode", "--set", f"state_folder={settings.state_folder}")
    assert "--reason" in run_command("rollout", "pause", *told).stderr
    assert "The reason is empty" in run_command("rollout", "pause", "--reason", " ", *told).stderr
    assert ": running" in visitor.get("/devices").text
    for step, why in (("pause", "a fault"), ("resume", "mended"), ("abort", "worse")):
        done = run_command("rollout", step, "--reason", why, *told)
        assert done.returncode == 0, done.stderr
    by_commands = store.decisions.all()
    assert [(each.act, each.about, each.who, each.why) for each in by_commands] == [
        ("hold", "publication 2", "M. Ode", "a fault"),
        ("go on", "publication 2", "M. Ode", "mended"),
        ("abort", "publication 2", "M. Ode", "worse"),
    ]
    assert run_command("rollout", "resume", "--reason", "r", *told).returncode == 2
    assert store.decisions.all() == by_commands
    assert "worse" in visitor.get("/").text


def test_the_lineage_has_every_model_and_its_verdict_also_where_mlflow_does_not_answer(visitor):
    text = visitor.get("/lineage").text
    assert "MLflow at http://127.0.0.1:9 does not answer" in text
    assert text.index("erase-2") < text.index("train-1")
    assert '<span class="badge FAIL">FAIL</span>' in text
    assert "a training job" in text
    assert "/do/promote" not in text


def test_looking_at_the_lineage_makes_no_registry(store, settings):
    own = settings.model_copy(update={"tracking": Settings().tracking})
    assert "erase-2" in Visitor(desk_of(own)).get("/lineage").text
    assert not (settings.state_folder / "mlflow.db").exists()


def test_records_are_the_commands_and_are_signed(visitor, store, settings, tmp_path):
    (store.folders.made("erase-2") / "certificate.json").write_bytes(b"{}")
    visitor.post("/do/cancel/erase-3", reason="the wrong people", sure="yes")
    answer = visitor.post("/records", from_=str(TODAY - timedelta(1)), to=str(TODAY))
    assert answer.headers["content-type"] == "application/zip"
    (tmp_path / "own.zip").write_bytes(answer.content)
    key = settings.state_folder / "coordinator" / "keys" / "certificate.pub.pem"
    verify_archive(tmp_path / "own.zip", load_public_key(key))
    told = ("--from", TODAY - timedelta(1), "--to", TODAY, "-o", tmp_path / "command.zip", "--by", "nia")
    done = run_command("job", "export", *told, "--set", f"state_folder={settings.state_folder}")
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(io.BytesIO(answer.content)) as own, zipfile.ZipFile(tmp_path / "command.zip") as command:
        assert own.namelist() == command.namelist()
        assert all(own.read(name) == command.read(name) for name in ("jobs.csv", "requests.json"))
        first = json.loads(command.read("decisions.json"))[-1]
    assert (first["act"], first["by"], first["reason"]) == ("export", "M. Ode", "to download")
    last = store.decisions.all()[-1]
    period = f"{TODAY - timedelta(1)} to {TODAY}"
    assert (last.act, last.about, last.who, last.why) == ("export", period, "nia", f"to {tmp_path / 'command.zip'}")
    assert period in visitor.get("/").text
    verified = run_command("forget", "export", "--verify", tmp_path / "own.zip", "--key", key)
    assert "Verified" in verified.stdout
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        tables = {name: json.loads(archive.read(f"{name}.json")) for name in ("jobs", "requests", "decisions")}
        assert archive.read("certificates/erase-2.json") == b"{}"
    assert [(row["job"], row["verdict"]) for row in tables["jobs"]] == [
        ("train-1", None),
        ("erase-2", "FAIL"),
        ("erase-3", None),
    ]
    assert [(row["request"][:1], row["served"]) for row in tables["requests"]] == [("a", False), ("b", False)]
    assert [(row["act"], row["by"]) for row in tables["decisions"]] == [
        ("promote", "job train-1"),
        ("cancel", "M. Ode"),
    ]


def test_records_of_a_period_that_goes_on_end_today(visitor, settings, tmp_path):
    answer = visitor.post("/records", from_=str(TODAY), to=str(TODAY + timedelta(30)))
    assert answer.headers["content-disposition"] == f'attachment; filename="fleet-{TODAY}-{TODAY}.zip"'
    told = ("--from", TODAY, "--to", TODAY + timedelta(30), "-o", tmp_path / "a.zip")
    done = run_command("job", "export", *told, "--set", f"state_folder={settings.state_folder}")
    assert f"It ends today, {TODAY}: the period goes on until {TODAY + timedelta(30)}." in done.stdout
    key = settings.state_folder / "coordinator" / "keys" / "certificate.pub.pem"
    assert verify_archive(tmp_path / "a.zip", load_public_key(key)).predicate.end == TODAY


def test_records_of_a_period_to_come_are_refused(visitor, settings, tmp_path):
    begin, end = TODAY + timedelta(1), TODAY + timedelta(2)
    answer = visitor.post("/records", from_=str(begin), to=str(end))
    told = ("--from", begin, "--to", end, "-o", tmp_path / "a.zip")
    said = run_command("job", "export", *told, "--set", f"state_folder={settings.state_folder}").stderr
    assert said.startswith(f"Error: {wrong(answer)['from']} See docs/")
    assert f"begins on {begin}, after today" in said
    assert not (tmp_path / "a.zip").exists()


def test_methods_are_those_of_the_page(visitor):
    for path in (*PAGES[:-1], "/starts/x"):
        assert visitor.post(path).status_code == 405, path


def test_a_start_is_told_what_the_desk_was_told(settings, tmp_path):
    options, variables = starting_options(settings, tmp_path / "fleet.toml", tmp_path, "local", "num-supernodes=2")
    assert options == ["--app", str(tmp_path), "--superlink", "local", "--federation-config", "num-supernodes=2"]
    assert variables == {
        "DLFD_FLEET_STATE_FOLDER": str(settings.state_folder),
        "DLFD_FLEET_CONFIG": str(tmp_path / "fleet.toml"),
    }


def test_a_job_goes_on_when_the_desk_ends_and_the_next_desk_knows_it(tmp_path):
    os.mkfifo(tmp_path / "waits")
    program = (sys.executable, "-c", PROGRAM, str(tmp_path / "waits"))
    first = Starts(tmp_path / "starts", program=program)
    name = first.begin("train", "--app", "--fresh", fresh=True)
    next_desk = Starts(tmp_path / "starts")
    assert next_desk.names() == [name]
    assert next_desk.read(name).running
    with (tmp_path / "waits").open("w"):  # the job has come so far, and ends when this is closed
        assert "asked for job start train --by=--app --reason=--fresh --fresh" in next_desk.read(name).log
    while next_desk.read(name).running:
        pass
    assert "Error: there is no site." in next_desk.read(name).log
    assert not first.read(name).running


def test_logs_of_jobs_that_have_ended_are_kept_for_some_time_alone(tmp_path):
    starts = Starts(tmp_path, program=("true",))
    for number in range(40):
        (tmp_path / f"started-train-20260101-0000{number:02}-abcd.log").write_text("")
    name = starts.begin("plan", "ode")
    assert starts.names()[0] == name
    assert len(starts.names()) == 31


def test_a_program_that_is_not_there_is_a_sentence(tmp_path):
    with pytest.raises(JobError, match="The job cannot be started: No such file"):
        Starts(tmp_path, program=(str(tmp_path / "none"),)).begin("train", "ode")


def test_a_desk_needs_a_state_folder_that_is_there(tmp_path):
    done = run_command("desk", "--set", f"state_folder={tmp_path / 'none'}")
    assert done.returncode == 2
    assert "There is no" in done.stderr
