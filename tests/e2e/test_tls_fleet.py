"""A fleet of real processes: SuperLink and SuperNodes over TLS, an MLflow server; each kind of process dies once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest
import yaml

from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.ledger import RequestState, Site, site_folders
from tests.e2e.conftest import SmallFleet
from tests.e2e.processes import PATIENCE, free_ports, kill_tree, wait_until
from tests.integration.mlflow_server import Server
from tests.mlflow_client import client_of

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
SITES = 2
AT_WORK = 250e6  # bytes of a ClientApp that has torch, and so has taken its message


def said_by(process, code):
    """What a command said until it ended with a code."""
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, out
    return out


class TlsFleet(SmallFleet):
    """Two site folders, and the processes that ``deploy/local-fleet.sh`` starts for them."""

    def __init__(self, small, mlflow_uri):
        self.state, self.config, self.uri = small.state, small.config, mlflow_uri
        self.superlink = free_ports(SITES + 3)  # then its proxy, the SuperNodes, and one that is refused
        self.port = self.superlink + 1
        self.script = None

    @property
    def keys(self):
        return self.state / "keys"

    def variables(self):
        return super().variables() | {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "FLWR_HOME": str(self.state / "flwr"),
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "DLFD_FLEET_CONFIG": str(self.config),
            "MLFLOW_TRACKING_URI": self.uri,
            # Flower's SQLite gives up after five seconds, which a machine that runs other tests can take.
            "SUPERLINK_DATABASE": ":flwr-in-memory:",
        }

    def start(self):
        """Run the script until every SuperNode is known to the SuperLink."""
        log = (self.state / "local-fleet.log").open("a")
        command = [str(ROOT / "deploy" / "local-fleet.sh"), str(self.state), str(self.port)]
        self.script = subprocess.Popen(command, stdout=log, stderr=log, env=self.environment())
        said = (self.state / "local-fleet.log").read_text().count("are starting")
        wait_until(
            lambda: (
                self.script.poll() is not None
                or (self.state / "local-fleet.log").read_text().count("are starting") > said
            ),
            "the start of the fleet",
        )
        assert self.script.poll() is None, (self.state / "local-fleet.log").read_text()

    def stop(self, how=signal.SIGTERM):
        if self.script is not None:
            kill_tree(self.script, how)
            self.script = None

    def find(self, program, site=-1):
        """The running process of one of Flower's programs: of the n-th site, or of the SuperLink; None without one."""
        for process in psutil.Process(self.script.pid).children(recursive=True):
            with suppress(psutil.Error, IndexError):
                words = process.cmdline()
                if Path(words[1]).name == program and any(word.endswith(str(self.port + site)) for word in words):
                    return process
        return None

    def is_at_work(self, site):
        """Tell whether a site's ClientApp works on its message."""
        with suppress(psutil.Error):
            client_app = self.find("flwr-clientapp", site)
            return client_app is not None and client_app.memory_info().rss > AT_WORK
        return False

    def kill_at_work(self, programs):
        """Kill a program of each site once its ClientApp works on its message; whether all are dead."""
        for site in list(programs):
            victim = self.find(programs[site], site)
            with suppress(psutil.Error):
                if victim and self.is_at_work(site):
                    victim.kill()
                    del programs[site]
        return not programs

    def is_well(self, service):
        """Ask a process what Compose asks its container."""
        file = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
        words = file["services"][service]["healthcheck"]["test"]
        assert words[:2] == ["CMD", "python"]
        here = {
            "superlink:9299": f"127.0.0.1:{self.superlink}",
            "127.0.0.1:9301": f"127.0.0.1:{self.port + 1}",
            "/run/secrets": str(self.keys),
        }
        for there, place in here.items():
            words = [word.replace(there, place) for word in words]
        return subprocess.run([sys.executable, *words[2:]], capture_output=True, check=False).returncode == 0

    def steps(self):
        with closing(Store(self.state)) as store:
            return [name for record in store.unfinished() for name in store.steps.names(record.job)]

    def begin(self, *arguments):
        return subprocess.Popen(
            self.command(*arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment(),
        )

    def refused(self, *arguments):
        """Try to connect as a SuperNode that must be refused; return what it says of it."""
        said = self.state / "refused.log"
        command = [str(BIN / "flower-supernode"), "--superlink", f"127.0.0.1:{self.port}", *arguments]
        command += ["--port", str(self.port + SITES + 1), "--max-retries", "0"]
        with said.open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=self.environment(), start_new_session=True)
        assert process.wait(PATIENCE) != 0
        os.killpg(process.pid, signal.SIGKILL)  # what it has started outlives it for a while
        return said.read_text()

    def released(self, kind):
        with closing(Store(self.state)) as store:
            return [record for record in store.jobs() if record.kind == kind and record.released]


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server.uri
    server.kill()


@pytest.fixture(scope="module")
def tls_fleet(fleet, mlflow_server):
    fleet.make_quick()
    fleet.configure({"data": {"sites": SITES}, "fleet": {"connect_seconds": 180, "reply_timeout_seconds": 300}})
    fleet.configure({"erasure": {"own_answers": False}})  # all sites repair and answer a gate: more to die in
    assert fleet.run("data", "deal", "--config", str(fleet.config)).returncode == 0
    running = TlsFleet(fleet, mlflow_server)
    running.start()
    yield running
    running.stop()


def test_a_fleet_over_tls_forgets_though_its_processes_die_one_by_one(tls_fleet):
    training = tls_fleet.begin("job", "start", "train")
    unknown = tls_fleet.keys / "nodes" / "unknown"
    subprocess.run(
        [str(ROOT / "deploy" / "certificates.py"), "node", str(tls_fleet.keys), "unknown"],
        env=tls_fleet.environment(),
        check=True,
    )
    trusting = ("--root-certificates", str(tls_fleet.keys / "ca.crt"))
    for stranger in ((*trusting, "--auth-supernode-private-key", str(unknown)), trusting, ("--insecure",)):
        assert "could not establish a connection to the SuperLink" in tls_fleet.refused(*stranger), stranger
    with (tls_fleet.state / "flwr" / "config.toml").open("a") as configuration:
        configuration.write(f'\n[superlink.plain]\naddress = "127.0.0.1:{tls_fleet.superlink}"\ninsecure = true\n')
    assert tls_fleet.run("job", "start", "train", "--superlink", "plain").returncode == 2
    for service in ("superlink", "clinic"):
        assert tls_fleet.is_well(service)
    out = said_by(training, 0)
    assert len(tls_fleet.released("train")) == 1, out

    folders = site_folders(tls_fleet.state)
    assert len(folders) == SITES
    with Site(folders[0]) as site:
        person = next(row.identity for row in site.manifest().rows if row.split == "train")
    assert tls_fleet.run("forget", "request", person, "--site", str(folders[0])).returncode == 0

    # A SuperNode and, elsewhere, a ClientApp die in one round: both sites are asked again, and nobody is left out.
    erasing = tls_fleet.begin("job", "start", "erase")
    wait_until(lambda: "distancing-1" in tls_fleet.steps(), "DLFD")
    to_die = {1: "flower-supernode", 2: "flwr-clientapp"}
    wait_until(lambda: tls_fleet.kill_at_work(to_die), "repair at both sites")
    wait_until(lambda: "repair-2" in tls_fleet.steps(), "the repeated round")

    # The ServerApp dies: the run fails, and the job goes on from its last finished step. It dies once sites have their
    # messages: SuperNodes wait a minute, until the run has failed, for what is missing of one that was half sent.
    for site in range(1, SITES + 1):
        wait_until(lambda site=site: tls_fleet.is_at_work(site), "the audit of the gate")
    tls_fleet.find("flwr-serverapp").kill()
    resumed = tls_fleet.begin("job", "resume")
    wait_until(lambda: "gate-2" in tls_fleet.steps(), "the resumed job")
    assert "goes on from its last finished step" in said_by(erasing, 2)

    # The SuperLink dies, and its ServerApp with it. Once it knows the keys again, SuperNodes find it by themselves.
    tls_fleet.find("flower-superlink").kill()
    wait_until(lambda: tls_fleet.is_well("superlink"), "a new SuperLink")
    for key in sorted((tls_fleet.keys / "nodes").glob("site-*.pub")):
        words = [str(BIN / "flwr"), "supernode", "register", str(key)]
        assert subprocess.run(words, env=tls_fleet.environment(), check=False).returncode == 0
    out = said_by(tls_fleet.begin("job", "resume"), 0)
    assert "steps of it are done" in out
    said_by(resumed, 2)  # it asked the new SuperLink for a while, which knows nothing of its run
    (record,) = tls_fleet.released("erase")
    assert record.absent == {}
    with Site(folders[0]) as site:
        (request,) = site.ledger.requests()
        assert request.state is RequestState.COMPLETE
        assert person not in site.manifest().identities
        site.ledger.verify()
    client = client_of(tls_fleet.uri)
    champion = client.get_model_version_by_alias("dlfd-fleet", "champion")
    assert (champion.tags["dlfd.job"], champion.tags["dlfd.epoch"]) == (record.job, "1")
    assert [version.version for version in client.search_model_versions("name='dlfd-fleet'")] == [champion.version]
    assert "dlfd.purged.1" in client.get_registered_model("dlfd-fleet").tags
    run = client.get_run(champion.run_id)
    assert run.data.metrics["repair_sites"] == SITES
