"""Which runs of the demo go on, and which begin anew."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
from contextlib import closing

import pytest
from rich.console import Console

from dlfd_fleet.cli import main
from dlfd_fleet.demo import Demo, _alone, run_demo
from dlfd_fleet.exceptions import ConfigurationError
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.ledger import deal_to_sites, site_folders
from dlfd_fleet.settings import DataSettings, Settings


@pytest.fixture
def settings(tmp_path, synthetic_faces):
    data = DataSettings(
        source="manifest", manifest=synthetic_faces, image_size=32, validation_people=2, test_people=2, sites=2
    )
    return Settings(state_folder=tmp_path / "state", data=data)


def begin(settings):
    return Demo(settings, Console(file=io.StringIO()))


def test_a_run_that_died_while_dealing_deals_again(settings, silent):
    begin(settings).reach("new")
    deal_to_sites(settings, silent)  # and then it died, before it could note that it had dealt
    again = begin(settings)
    assert again.state.phase == "new"
    again.deal()
    assert again.state.phase == "dealt"
    assert len(site_folders(settings.state_folder)) == 2


def test_a_run_goes_on_after_its_last_phase_and_begins_anew_under_other_settings(settings):
    first = begin(settings)
    first.reach("new")
    first.deal()
    assert begin(settings).state.phase == "dealt"
    other = settings.model_copy(update={"seed": 5})
    assert begin(other).state.phase == "new"
    assert not (settings.state_folder / "sites").exists()


def test_what_a_site_noted_stays_when_a_new_fleet_takes_its_place(settings):
    first = begin(settings)
    first.reach("new")
    first.deal()
    log = settings.state_folder / "sites" / "site-1" / "site.log"
    log.write_text("RuntimeError: no such layer\n")
    other = begin(settings.model_copy(update={"seed": 5}))
    other.deal()
    assert log.read_text() == "RuntimeError: no such layer\n"


def everything_in(folder):
    return {file: file.read_bytes() if file.is_file() else None for file in folder.rglob("*")}


@pytest.mark.parametrize("seed", [0, 5])
def test_a_second_demo_on_one_state_folder_says_who_runs_and_touches_nothing(settings, monkeypatch, capsys, seed):
    first = begin(settings)
    first.reach("new")
    first.deal()
    state = settings.state_folder
    with _alone(state):
        before = everything_in(state)
        monkeypatch.setattr(
            "sys.argv", ["dlfd-fleet", "demo", "--seed", str(seed), "--set", f"state_folder={settings.state_folder}"]
        )
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 2
        assert everything_in(state) == before
    said = capsys.readouterr().err.replace("\n", " ")
    assert f"Another demo (process {os.getpid()} on {socket.gethostname()}) runs on {state}; wait" in said


def test_a_demo_that_was_killed_locks_nobody_out(settings):
    code = (
        "import os, pathlib, sys; from dlfd_fleet.demo import _alone\n"
        "with _alone(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(settings.state_folder)], check=False)
    assert done.returncode == -9
    with _alone(settings.state_folder):
        assert begin(settings).state.phase == "new"


def test_a_demo_begins_no_new_fleet_beside_a_job(settings):
    begin(settings).reach("new")
    with closing(Store(settings.state_folder)) as store, store.lock():
        before = everything_in(settings.state_folder)
        with pytest.raises(ConfigurationError, match=r"A job works on .* give the demo a state folder of its own"):
            begin(settings)
        assert everything_in(settings.state_folder) == before


def test_a_state_folder_that_cannot_be_made_is_one_sentence(settings, tmp_path):
    (tmp_path / "file").write_text("")
    inside = settings.model_copy(update={"state_folder": tmp_path / "file" / "state"})
    with pytest.raises(ConfigurationError, match="cannot be written: Not a directory; name another one"):
        run_demo(inside, Console(file=io.StringIO()))
