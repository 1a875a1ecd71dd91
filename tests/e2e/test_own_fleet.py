"""A user's own app on a SuperLink with two SuperNodes, by the commands of docs/tutorials/own-fleet.md."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from dlfd_fleet.configuration import write_settings
from dlfd_fleet.device.inference import DeviceModel
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.ledger import RequestState, Site
from tests.command import environment_of, run_command
from tests.e2e.processes import PATIENCE, free_ports, kill_tree, wait_until
from tests.integration.fleet_in_process import small_settings

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "quickstart"
BIN = Path(sys.executable).parent
SITES = 2


class OwnFleet:
    """The app in a folder of its own, with its SuperLink and SuperNodes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.app, self.state = folder, folder / "quickstart", folder / "state"
        shutil.copytree(EXAMPLE, self.app)
        self.port, self.started = free_ports(SITES + 1), []
        settings = small_settings(self.state, folder / "unused.csv")
        erasure = settings.erasure.model_copy(update={"rounds": 1, "relearning_rounds": 0})
        tracking = settings.tracking.model_copy(update={"uri": f"sqlite:///{folder / 'mlflow.db'}"})
        settings = settings.model_copy(update={"erasure": erasure, "tracking": tracking})
        write_settings(settings, folder / "fleet.json")
        home = folder / "flwr"
        home.mkdir()
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "own"\n\n[superlink.own]\naddress = "127.0.0.1:{self.port}"\ninsecure = true\n'
        )
        self.environment = environment_of(
            {
                "PATH": f"{BIN}:{os.environ['PATH']}",
                "PYTHONPATH": os.pathsep.join([str(self.app), *filter(None, [os.environ.get("PYTHONPATH")])]),
                "FLWR_HOME": home,
                "FLWR_TELEMETRY_ENABLED": 0,
                "FLWR_DISABLE_UPDATE_CHECK": 1,
                "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": 1,
                "DLFD_FLEET_CONFIG": folder / "fleet.json",
            }
        )

    def call(self, *words: object) -> str:
        done = subprocess.run(
            [*map(str, words)],
            cwd=self.app,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def begin(self, name: str, *words: object) -> None:
        log = (self.folder / f"{name}.log").open("w")
        command = [str(BIN / words[0]), *map(str, words[1:])]
        self.started.append(
            subprocess.Popen(
                command, cwd=self.app, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        )

    def start(self) -> None:
        self.begin("superlink", "flower-superlink", "--insecure", "--port", self.port, "--database", ":flwr-in-memory:")
        for site in range(SITES):
            config = f'site-folder="{self.site(site)}" data="{self.folder / "photos" / str(site)}"'
            ports = ("--superlink", f"127.0.0.1:{self.port}", "--port", self.port + 1 + site)
            self.begin(f"supernode-{site}", "flower-supernode", "--insecure", *ports, "--node-config", config)

        wait_until(self.listens, "the start of the SuperLink")

    def listens(self) -> bool:
        with closing(socket.socket()) as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        for process in self.started:
            kill_tree(process, signal.SIGTERM)

    def site(self, number: int) -> Path:
        return self.folder / "sites" / str(number)

    def flwr_run(self, job: str) -> str:
        return self.call(BIN / "flwr", "run", self.app, "--stream", "--run-config", f'job="{job}" rounds=1 by="M. Ode"')

    def last_job(self):
        with closing(Store(self.state)) as store:
            record = store.jobs()[-1]
            assert [each.who for each in store.decisions.of(record.job)] == ["M. Ode"]
            return record, store.champions.current()


@pytest.fixture
def fleet(tmp_path):
    own = OwnFleet(tmp_path)
    made = run_command("data", "synthesize", tmp_path / "faces", "--people", 24, "--images", 3, "--image-size", 32)
    assert made.returncode == 0, made.stderr
    own.call(sys.executable, "-m", "quickstart.deal_photos", tmp_path / "faces", tmp_path / "photos", SITES)
    own.start()
    yield own
    own.stop()


def test_an_own_app_trains_forgets_and_trains_on(fleet):
    said = fleet.flwr_run("train")
    record, champion = fleet.last_job()
    assert (record.kind, record.released, champion.epoch) == ("train", True, 0), said
    photos = fleet.folder / "photos" / "0"
    with Site(fleet.site(0)) as opened:
        person = next(row.identity for row in opened.manifest().rows if row.split == "train")
    assert (photos / person).is_dir()
    asked = run_command("forget", "request", person, "--site", fleet.site(0))
    assert asked.returncode == 0, asked.stderr
    said = fleet.flwr_run("erase")
    record, champion = fleet.last_job()
    assert (record.kind, record.released, champion.epoch) == ("erase", True, 1), said
    assert not (photos / person).exists()  # in the user's own storage
    with Site(fleet.site(0)) as opened:
        assert [request.state for request in opened.ledger.requests()] == [RequestState.COMPLETE]
    said = fleet.flwr_run("train")
    record, champion = fleet.last_job()
    assert (record.kind, record.released, champion.epoch) == ("train", True, 1), said
    with closing(Store(fleet.state)) as store:
        folder = store.folders.model(champion.job)
    assert DeviceModel(folder / "model.onnx").classes == ("no glasses", "glasses")
