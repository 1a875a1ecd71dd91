"""`flwr run .` runs the same job on a SuperLink: deal, train, ask, erase, by the commands that a person would type."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dlfd_fleet.configuration import load_settings
from dlfd_fleet.desk.starts import Starts, starting_options
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.ledger import RequestState, Site, site_folders
from tests.desk_client import Visitor
from tests.desk_fleet import desk_of
from tests.e2e.processes import wait_until

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
PATIENCE = 600.0


@pytest.fixture(scope="module")
def superlink(fleet, tmp_path_factory):
    """A SuperLink for simulated nodes on a free port; the environment that makes `flwr` use it."""
    fleet.make_quick()
    home = tmp_path_factory.mktemp("flwr")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "test"\n\n[superlink.test]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    environment = fleet.environment() | {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "FLWR_HOME": str(home),
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "DLFD_FLEET_CONFIG": str(fleet.config),
    }
    command = [str(BIN / "flower-superlink"), "--insecure", "--simulation", "--isolation", "subprocess"]
    with (home / "superlink.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port)], stdout=log, stderr=log, env=environment, start_new_session=True
        )
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    assert process.poll() is None, (home / "superlink.log").read_text()
    yield environment
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(PATIENCE)


def flwr_run(environment, job):
    command = [str(BIN / "flwr"), "run", str(ROOT), "--stream", "--run-config", f'job="{job}"']
    command += ["--federation-config", "num-supernodes=2"]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=PATIENCE, cwd=ROOT, check=False
    )


def test_train_ask_and_erase_by_command(fleet, superlink):
    assert fleet.run("data", "deal", "--config", str(fleet.config)).returncode == 0
    early = flwr_run(superlink, "erase")
    assert "There is no champion model to unlearn from; run a training job first" in early.stdout
    assert not re.search("Traceback|unhandled exception", early.stdout), early.stdout
    trained = flwr_run(superlink, "train")
    record = Store(fleet.state).jobs()[-1]
    assert (record.kind, record.released) == ("train", True), trained.stdout
    assert record.note.startswith("trained; test accuracy is")

    folder = site_folders(fleet.state)[1]
    with Site(folder) as site:
        person = next(row.identity for row in site.manifest().rows if row.split == "train")
    asked = fleet.run("forget", "request", person, "--site", str(folder))
    assert asked.returncode == 0, asked.stderr
    erased = flwr_run(superlink, "erase")
    record = Store(fleet.state).jobs()[-1]
    assert record.kind == "erase"
    assert record.released, erased.stdout + record.note
    assert Store(fleet.state).champions.current().epoch == 1
    # The app bundle carries no HTML file; the report's page must come out all the same.
    assert "a new model was released" in (Store(fleet.state).folders.made(record.job) / "report.html").read_text()
    with Site(folder) as site:
        (request,) = site.ledger.requests()
        assert request.state is RequestState.COMPLETE
        assert person not in site.manifest().identities

    said = started_at_a_desk(fleet, superlink, "erase")
    assert Store(fleet.state).jobs()[-1].note == "nobody asks to be forgotten", said
    assert "Successfully started run" in said
    store = Store(fleet.state)
    decisions = store.decisions.of(store.jobs()[-1].job)
    assert [(each.who, each.why) for each in decisions] == [("M. Ode", "The week is over.")]


def started_at_a_desk(fleet, environment, job):
    """Press the button of the coordinator's desk, wait until the command that it starts has ended; return its log."""
    settings = load_settings(fleet.config).settings
    options, variables = starting_options(settings, fleet.config, ROOT, None, "num-supernodes=2")
    starts = Starts(settings.state_folder / "coordinator" / "starts", options, variables | environment)
    visitor = Visitor(desk_of(settings, starts=starts))
    page = visitor.post(f"/do/start/{job}", reason="The week is over.", sure="yes").headers["location"]
    (name,) = starts.names()
    assert page.endswith(name)
    wait_until(lambda: not starts.read(name).running, "the job's end")
    assert job in visitor.get(page).text
    return starts.read(name).log
