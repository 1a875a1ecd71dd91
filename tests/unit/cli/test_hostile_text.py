"""Names and error texts that are not ours reach no terminal as anything but text, whatever command shows them."""

from __future__ import annotations

import io
import os
import sys

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.main import get_command

from dlfd_fleet.audit import Outcome, Verdict
from dlfd_fleet.cli import app, main
from dlfd_fleet.demo import device_table
from dlfd_fleet.exceptions import DeviceError, TrackingError
from dlfd_fleet.federation.jobs import command
from dlfd_fleet.federation.records.job_record import Champion, JobRecord
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.ledger import RequestState, Site, request_forgetting
from dlfd_fleet.ledger.site_setup import init_site
from dlfd_fleet.model_input import image_input
from dlfd_fleet.plain_text import PlainConsole, plain, visible
from dlfd_fleet.progress import ConsoleProgress
from dlfd_fleet.report import issue, load_signer
from dlfd_fleet.settings import Settings
from dlfd_fleet.tracking.purge import _collect
from tests.clinic import make_clinic
from tests.erasure_report import make_report

HOSTILE = (
    "[/x][bold]]8;;http://e[link=x] :smile: \x1b[2J\x1b]0;owned\x07\x1b]8;;http://evil\x1b\\ \x9b31m \u202e\u2066abc "
    "\r\nINFO: all is well\x00\x7f\x85\u2028\u200b\ufeff"
)
OBEYED = [character for character in HOSTILE if not character.isprintable() and character != "\n"]
MARKUP = "[/x][bold]"


@pytest.fixture(params=[False, True], ids=["log", "terminal"])
def terminal(request, monkeypatch):
    """A wide terminal, or a file."""
    monkeypatch.setenv("COLUMNS", "1000")
    if request.param:
        monkeypatch.setenv("FORCE_COLOR", "1")


@pytest.fixture
def run(capsys, monkeypatch):
    """Run a command, and return what it printed."""

    def run(*arguments, code=0):
        monkeypatch.setattr(sys, "argv", ["dlfd-fleet", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        assert end.value.code == code, said
        return said.out + said.err

    return run


def assert_plain(text, words=MARKUP):
    """It is all there to read, and the only escape sequences are the colours that we make ourselves."""
    assert words in text
    ours = Text.from_ansi(text).plain  # takes colours away, and nothing else
    for character in OBEYED:
        if character != "\x1b":
            assert character not in ours, repr(character)
    assert "\x1b[2J" not in text
    assert "\x1b]" not in text
    assert "\nINFO: all is well" not in text


@pytest.fixture
def state(tmp_path):
    store = Store(tmp_path / "state")
    record = store.new_job("erase", Settings())
    verdict = Verdict(outcome=Outcome.FAIL, reasons=(f"reason {HOSTILE}",), margin=0.1, power=0.5)
    changed = {"note": f"note {HOSTILE}", "absent": {f"site {HOSTILE}": f"failed {HOSTILE}"}, "verdict": verdict}
    store.save(record.model_copy(update=changed))
    store.activities.note(record.job, {f"site-1 {HOSTILE}": HOSTILE})
    store.champions.move(Champion(job=record.job, epoch=0), f"who {HOSTILE}", f"why {HOSTILE}")
    yield store
    store.close()


def setting(folder):
    return ("--set", f"state_folder={folder}")


def test_what_sites_say_of_a_job_is_text(state, run, terminal):
    folder = setting(state.folder.parent)
    shown = run("job", "status", *folder)
    assert_plain(shown)
    assert shown.count(MARKUP) == 4
    run("job", "list", *folder)
    with state.lock():
        assert_plain(run("job", "status", *folder).split("site-1")[1])
    assert_plain(run("registry", "list", "--history", *folder))


def test_a_job_that_is_watched_shows_text(state, terminal):
    for forced in (True, False):
        out = io.StringIO()
        console = Console(file=out, force_terminal=forced, width=1000)
        (record,) = state.jobs()
        state.save(record.model_copy(update={"step": "failed"}))
        command.watch(state, record.job, console)
        words = out.getvalue().replace("\x1b[2K", "").replace("\x1b[1A", "").replace("\r", "")
        assert MARKUP in words
        assert "\x1b[2J" not in words
        assert "\x1b]" not in words


def test_settings_and_errors_are_text(run, tmp_path, terminal):
    assert_plain(run("config", "show", "--set", f"data.attribute={HOSTILE}"))
    assert_plain(run("config", "show", "--set", f"seed={HOSTILE}", code=2))
    assert_plain(run("config", "show", "--set", f"{HOSTILE}=1", code=2))
    assert_plain(run("job", "status", HOSTILE.replace("\x00", ""), *setting(tmp_path), code=2), "holds no jobs")


def test_names_of_a_site_are_text(run, tmp_path, synthetic_faces, terminal):
    rows = synthetic_faces.read_text().splitlines()
    named = HOSTILE.replace("\r\n", "").replace("\x00", "").replace("\u2028", "").replace("\x85", "")
    manifest = synthetic_faces.with_name("hostile.csv")
    manifest.write_text("\n".join([*rows, f"none {named}.png,{named},{named}"]) + "\n")
    assert_plain(run("data", "check", manifest, code=2), "problem")
    assert_plain(run("data", "check", tmp_path / named, code=2))
    folder = tmp_path / "site"
    with init_site(folder, name="a", manifest=synthetic_faces, model_input=image_input(32), test_people=2) as site:
        person = next(row.identity for row in site.manifest().rows if row.split == "train")
        request = request_forgetting(site, person, deadline_days=30)
        site.ledger.move(request.id, RequestState.WITHDRAWN, f"reason {HOSTILE}")
    assert_plain(run("forget", "show", request.id, "--site", folder))
    card = folder / "site.json"
    card.write_text(card.read_text().replace('"a"', '"[/x][bold]\\u001b[2J"'))
    try:
        Site(folder).ledger.close()
    except Exception:  # such a name is refused as soon as the site is opened: nothing is shown then
        run("site", "status", folder, code=2)
    else:
        assert_plain(run("site", "status", folder))


def test_a_certificate_is_text(run, tmp_path, terminal):
    report = make_report()
    verdict = report.verdict.model_copy(update={"reasons": (HOSTILE,)})
    software = {f"name {HOSTILE}": HOSTILE}
    forged = report.model_copy(update={"job": f"job {HOSTILE}", "software": software, "verdict": verdict})
    file = tmp_path / "certificate.json"
    file.write_bytes(issue(forged, load_signer(tmp_path / "keys" / "key.pem")))
    assert_plain(run("certificate", "show", file))


def test_progress_is_text_on_any_console():
    for forced in (True, False):
        out = io.StringIO()
        progress = ConsoleProgress(Console(file=out, force_terminal=forced, width=1000))
        progress.say(f"said {HOSTILE}")
        with progress.phase(f"phase {HOSTILE}", 1) as advance:
            advance()
        assert out.getvalue().count(MARKUP) >= 2
        assert "\x1b[2J" not in out.getvalue()
        assert "\x1b]" not in out.getvalue()


def test_a_record_of_any_text_is_shown(state):
    record = JobRecord.model_validate(state.jobs()[0])
    out = io.StringIO()
    Console(file=out, width=1000).print(command.job_status(state, record.job), command.job_table(state))
    assert_plain(out.getvalue())


def test_the_plain_console_takes_nothing_for_markup_or_an_order(terminal):
    out = io.StringIO()
    console = PlainConsole(file=out, width=1000)
    table = Table(f"head {HOSTILE}", title=f"title {HOSTILE}", caption=HOSTILE)
    table.add_row(HOSTILE)
    table.add_row(Text(HOSTILE))
    table.add_row(plain(HOSTILE))
    console.print(HOSTILE, table, Text(HOSTILE), [HOSTILE], sep=" ")
    console.print(HOSTILE, markup=True)
    assert_plain(out.getvalue().replace("\n", ""))
    assert ":smile:" in out.getvalue()


def test_names_in_every_script_stay_as_they_are():
    for name in ("Zoë", "Ольга", "محمد", "می\u200cخواهم", "王小明", "नेहा", "👩\u200d🔬", "e\u0301", "a b"):  # noqa: RUF001
        assert visible(name) == name
    assert visible("a\x1b\u202e\ud800\n\t\x85b") == r"a\x1b\u202e\ud800\n\t\x85b"
    assert visible("x" * 100, 10) == "x" * 9 + "…"


NO_TEXT = os.fsdecode(b"an\xffna")  # as Python reads what somebody types in another encoding


def texts(command=None, words=()):
    """Yield the words that give each text of each command, up to the text itself, and what the command calls it."""
    command = command or get_command(app)
    for name, each in getattr(command, "commands", {}).items():
        yield from texts(each, (*words, name))
    given = []
    for param in () if getattr(command, "commands", {}) else command.params:
        is_argument = param.param_type_name == "argument"
        if param.type.name == "text":
            yield [*words, *(given if is_argument else [max(param.opts, key=len)])], param.opts[-1].lstrip("-")
        given += ["x"] if is_argument else []


@pytest.mark.parametrize(
    ("words", "name"), texts(), ids=lambda value: "-".join(value) if isinstance(value, list) else ""
)
def test_what_is_typed_in_another_encoding_is_one_sentence_whatever_it_is(run, words, name, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))  # where it is not refused, nothing is started
    monkeypatch.chdir(tmp_path)
    said = run(*words, NO_TEXT, code=2)
    assert said.startswith("Error: "), said
    assert r"'an\udcffna' is no text in UTF-8" in said
    assert said.count("\n") == 1


def test_a_login_name_in_another_encoding_is_asked_for(run, monkeypatch, tmp_path):
    monkeypatch.setenv("LOGNAME", NO_TEXT)
    folder = make_clinic(tmp_path / "clinic")
    said = run("forget", "request", "anna", "--site", folder, code=2)
    assert r"The login name an\udcffna is no text in UTF-8; say who you are with --by NAME." in said


def test_a_folder_may_have_any_name(run, tmp_path):
    folder = make_clinic(tmp_path / NO_TEXT)
    assert "There is no such request." in run("forget", "list", "--site", folder)


@pytest.fixture
def other_program(monkeypatch, tmp_path):
    """In place of Python: a program that fails, with a log in colours."""
    program = tmp_path / "python"
    program.write_text(
        "#!/bin/sh\nprintf '\\033[91mstarting\\033[0m\\n\\033[91mError:\\033[0m no\\033[2J disk\\n' >&2; exit 1\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


def test_why_another_program_failed_is_its_last_line_as_plain_text(other_program, tmp_path):
    make_clinic(tmp_path / "state" / "sites" / "clinic")
    with pytest.raises(DeviceError) as device:
        device_table(tmp_path / "model.onnx", Settings(state_folder=tmp_path / "state"))
    with pytest.raises(TrackingError) as mlflow:
        _collect("sqlite:///mlflow.db", ["m-1"])
    for error in (device, mlflow):
        assert str(error.value).endswith(r": Error: no\x1b[2J disk")
