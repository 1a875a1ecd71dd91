"""A command that keeps who decided says so in one sentence where a process has no login name."""

import getpass

import pytest

from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.ledger import Site
from dlfd_fleet.settings import Settings
from tests.clinic import ask, make_clinic
from tests.command import run_command


@pytest.fixture(autouse=True)
def nobody(monkeypatch):
    def getuser():
        raise KeyError("uid not found: 10001")

    monkeypatch.setattr(getpass, "getuser", getuser)


@pytest.mark.parametrize(
    "words",
    [
        ("registry", "promote", "1", "--reason", "r"),
        ("registry", "revoke", "1", "--reason", "r"),
        ("job", "cancel", "erase-1"),
        ("job", "start", "erase", "--app", "/none"),
        ("job", "plan", "--app", "/none"),
        ("job", "resume", "--app", "/none"),
        ("job", "export", "--from", "2026-01-01", "--to", "2026-12-31", "-o", "/none/a.zip"),
        ("registry", "import", "/none"),
        ("forget", "export", "--site", "{site}", "--from", "2026-01-01", "--to", "2026-12-31", "-o", "/none/a.zip"),
        ("forget", "withdraw", "anna", "--site", "{site}"),
        ("rollout", "pause", "--reason", "r"),
        ("rollout", "resume", "--reason", "r"),
        ("rollout", "abort", "--reason", "r"),
        ("site", "reconcile", "{site}", "--confirm", "--reason", "r"),
    ],
)
def test_a_process_without_a_login_name_is_asked_for_by(words, tmp_path):
    takes_settings = words[0] not in {"site", "forget"} and words[:2] not in {("job", "start"), ("job", "plan")}
    state = ("--set", f"state_folder={tmp_path / 'state'}") if takes_settings else ()
    Store(tmp_path / "state").new_job("erase", Settings())
    site = make_clinic(tmp_path / "clinic")
    with Site(site) as opened:
        ask(opened)
    words = [word.format(site=site) for word in words]
    unnamed = run_command(*words, *state)
    assert unnamed.returncode == 2
    assert "This process has no login name; say who you are with --by NAME." in " ".join(unnamed.stderr.split())
    named = run_command(*words, *state, "--by", "M. Ode")
    assert "no login name" not in named.stderr
    assert "Traceback" not in named.stderr
    assert "No such option" not in named.stderr
