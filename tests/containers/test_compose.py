"""deploy/compose.yaml in containers, by the commands of deploy/README.md: they die, are cut off, and nothing is lost.

``make test-containers`` runs it, as root, where podman is. Variables of the environment:

- ``SHORT=1``: nobody dies, no network is cut, no disk is filled.
- ``WHOLE_IMAGE=1``: install the packages into the image. Otherwise this environment's are mounted.
- ``BASE=IMAGE``: the images' base, such as python:3.11-slim. Otherwise debootstrap makes one.
- ``BUILD_MOUNTS="FILE…"``: files and folders of this machine that pip needs while the whole image is built.
"""

from __future__ import annotations

import csv
import json
import logging
import os
import re
import resource
import shutil
import signal
import ssl
import subprocess
import sys
import sysconfig
import tempfile
import time
from contextlib import ExitStack
from importlib.metadata import entry_points
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import yaml

from tests.small_disk import fill, make_room

HERE, ROOT = Path(__file__).parent, Path(__file__).resolve().parents[2]
README = (ROOT / "deploy" / "README.md").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8"))
PROJECT = "dlfd-fleet-test"
SERVICES = ("postgres", "mlflow", "superlink", "proxy", "clinic", "shop", "delivery", "device")
LABEL = f"label=io.podman.compose.project={PROJECT}"
BASE = os.environ.get("BASE", f"localhost/{PROJECT}-base")
WHOLE = bool(os.environ.get("WHOLE_IMAGE"))  # pip install in the image, which takes long, instead of this environment
SHORT = bool(os.environ.get("SHORT"))
PATIENCE = 900.0
SECONDS_CUT_OFF = 60
SECONDS_UNTIL_MISSED = 180.0  # a SuperLink waits for two heartbeats of 30 s; and the container is started again
ENDED_WITH_ITS_CONTAINER = (137, 255)  # killed with it; or podman found none that runs
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
log = logging.getLogger("containers")


def lacking():
    """What this machine lacks for these tests, in words; nothing if it lacks nothing."""
    programs = ("podman", "podman-compose", "caddy", "openssl", *([] if "BASE" in os.environ else ["debootstrap"]))
    missing = [program for program in programs if not shutil.which(program, path=PATH)]
    missing += ["root's rights"] if os.getuid() else []
    missing += [] if WHOLE or sys.version_info[:2] == (3, 11) else ["Python 3.11, which Debian 12 has, or WHOLE_IMAGE"]
    return ", ".join(missing)


pytestmark = pytest.mark.skipif(bool(lacking()), reason=f"needs {lacking()}")


def run(*words, check=True, **options):
    """Run a command; what it says is in the log, and returned."""
    # Into a file: what podman leaves running behind a container would keep a pipe open.
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        process = subprocess.run(words, stdout=said, stderr=subprocess.STDOUT, check=False, **options)
        said.seek(0)
        process.stdout = said.read()
    log.debug("%s\n%s", " ".join(words), process.stdout)
    assert not check or process.returncode == 0, f"{' '.join(words)} ended with {process.returncode}:\n{process.stdout}"
    return process


def wait_until(condition, what):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {PATIENCE:.0f} s"
        time.sleep(1)


def blocks(title):
    """The blocks of commands under a title of the README."""
    (text,) = re.findall(rf"^### {title}\n(.*?)(?=^##)", README, re.MULTILINE | re.DOTALL)
    return re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


KEYS_AND_SITES, START_AND_TRAIN, DELIVER, ERASE = blocks("Compose")
(DESKS,) = blocks("Desks")


class Fleet:
    """The containers, and a folder with ``deploy`` in it, in which an operator works."""

    def __init__(self, folder):
        self.folder, self.disk = folder, folder / "disk"
        conf = folder / "containers.conf"
        soft = min(1024, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        conf.write_text(
            ("[engine]\nruntime = 'runc'\n" if shutil.which("runc") else "")
            + f"[containers]\ndefault_ulimits = ['nofile={soft}:{soft}', 'nproc=4096:4096']\n"
        )
        (folder / "bin").mkdir()
        (folder / "bin" / "docker").symlink_to(HERE / "docker")
        os.environ["CONTAINERS_CONF"] = str(conf)
        self.environment = os.environ | {
            "PATH": f"{folder / 'bin'}:{PATH}",
            "COMPOSE_FILE": "deploy/compose.yaml",
            "TEST_PROJECT": PROJECT,
            "TEST_FILES": "machine.yaml" + ("" if WHOLE else " mounted.yaml"),
            "TEST_FOLDER": str(folder),
            "TEST_PACKAGES": sysconfig.get_path("purelib"),
        }

    def build(self):
        """Make the images, and the environment that is mounted."""
        if run("podman", "image", "exists", BASE, check=False).returncode:
            log.info("making the base by debootstrap")
            run(str(HERE / "base.sh"), BASE)
        context = self.folder / "context"
        context.mkdir()
        shutil.copy(shutil.which("caddy", path=self.environment["PATH"]), context)
        shutil.copy(HERE / "postgres.sh", context)
        with_base = ["podman", "build", "--layers=false", "--build-arg", f"BASE={BASE}"]
        for name in ("caddy", "postgres"):
            log.info("building what stands in for %s", name)
            tag = f"localhost/{PROJECT}-{name}"
            run(*with_base, "--target", name, "--tag", tag, "--file", str(HERE / "Dockerfile"), str(context))
        log.info("building the image%s", "" if WHOLE else " without its packages, which are mounted")
        target = [] if WHOLE else ["--target", "bare"]
        # How this machine's pip finds packages is its own: these files are mounted, and nothing of them stays.
        for file in filter(None, os.environ.get("BUILD_MOUNTS", "").split()):
            target += ["--volume", f"{file}:{file}:ro"]
        began = time.monotonic()
        run(*with_base, *target, "--tag", f"localhost/{PROJECT}", "--file", "deploy/Dockerfile", ".", cwd=ROOT)
        size = run("podman", "image", "inspect", "--format", "{{.Size}}", f"localhost/{PROJECT}").stdout
        log.info("built in %.0f s: %.2f GB", time.monotonic() - began, int(size) / 1e9)
        if not WHOLE:
            self._make_environment(self.folder / "environment")

    @staticmethod
    def _make_environment(folder):
        """A folder as a virtual environment has it, but for its packages: they are mounted into it."""
        (folder / "bin").mkdir(parents=True)
        (folder / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
        (folder / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
        for name in ("python", "python3"):
            (folder / "bin" / name).symlink_to("/usr/bin/python3")
        for point in entry_points(group="console_scripts"):
            script = folder / "bin" / point.name
            script.write_text(
                "#!/opt/dlfd-fleet/bin/python\nimport sys\n"
                f"from {point.module} import {point.attr.split('.')[0]}\nsys.exit({point.attr}())\n"
            )
            script.chmod(0o755)

    def follow(self, commands, **words):
        """Run commands of the README, with this test's words for those that it leaves to its reader."""
        for word, mine in words.items():
            commands = commands.replace(word, mine)
        for line in commands.splitlines():
            log.info("$ %s", line)
        said = run("bash", "-euo", "pipefail", "-c", commands, cwd=self.folder, env=self.environment).stdout
        log.info("%s", said.strip())
        return said

    def inside(self, service, *words, check=True):
        """Run a command in a container; return what it says.

        A SuperNode that comes back before the SuperLink has missed it is refused, and ends; so does its container, with
        whatever runs in it. A command that is to succeed is then run again, for as long as the SuperLink may need.
        """
        command = ("podman", "exec", self.container(service), *words)
        if not check:
            return run(*command, check=False)
        deadline = time.monotonic() + SECONDS_UNTIL_MISSED
        while (process := run(*command, check=False)).returncode in ENDED_WITH_ITS_CONTAINER:
            if time.monotonic() > deadline:
                break
            time.sleep(1)
        assert not process.returncode, f"{' '.join(command)} ended with {process.returncode}:\n{process.stdout}"
        return process.stdout

    @staticmethod
    def container(service):
        return f"{PROJECT}_{service}_1"

    def is_well(self, service):
        """Ask the health check of compose.yaml, as Docker does by itself and podman does where systemd is."""
        return not run("podman", "healthcheck", "run", self.container(service), check=False).returncode

    def wait_for(self, *services):
        for service in services:
            wait_until(lambda service=service: self.is_well(service), f"{service} is well")

    def wait_for_sites(self):
        def admitted():
            listed = self.inside("superlink", "flwr", "supernode", "list", "--format", "json", check=False)
            return listed.returncode == 0 and listed.stdout.count('"status": "online"') == 2

        wait_until(admitted, "both sites are admitted")

    def crash(self, service):
        """Kill a container's first process, as no operator does; return when it is another one, and well."""
        asked = ("podman", "inspect", "--format", "{{.State.Pid}}", self.container(service))
        before = int(run(*asked).stdout)
        log.info("killing %s", service)
        os.kill(before, signal.SIGKILL)
        wait_until(lambda: int(run(*asked).stdout) not in (0, before), f"{service} is started again")
        self.wait_for(service)

    def cut(self, network):
        """Take every container off a network for a minute."""
        named = f"{PROJECT}_{network}"
        services = [name for name in SERVICES if network in self.networks(name)]
        log.info("cutting %s: %s", network, ", ".join(services))
        for service in services:
            run("podman", "network", "disconnect", named, self.container(service))
        time.sleep(SECONDS_CUT_OFF)
        for service in services:
            run("podman", "network", "connect", "--alias", service, named, self.container(service))
        self.wait_for(*services)

    @staticmethod
    def networks(service):
        files = [COMPOSE, yaml.safe_load((HERE / "machine.yaml").read_text())]
        return [name for file in files for name in file["services"].get(service, {}).get("networks", [])]

    def begin(self, *words):
        """Start a job; its process."""
        log.info("$ dlfd-fleet %s", " ".join(words))
        return subprocess.Popen(
            ["podman", "exec", self.container("superlink"), "dlfd-fleet", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def end(self, process):
        out, _ = process.communicate(timeout=PATIENCE)
        log.info("it ended with %s: %s", process.returncode, out.strip().splitlines()[-1:])
        return process.returncode, out

    def status(self):
        return self.inside("superlink", "dlfd-fleet", "job", "status")

    def records(self):
        """What may not be lost, as the product's own commands say it."""
        return {
            "jobs": self.inside("superlink", "dlfd-fleet", "job", "list"),
            "requests": self.inside("clinic", "dlfd-fleet", "forget", "list", "--site", "/site"),
            "versions": self.inside("superlink", "dlfd-fleet", "registry", "list"),
            "runs": self.runs(),
        }

    def runs(self):
        code = "import mlflow; print(len(mlflow.search_runs(search_all_experiments=True)))"
        return int(self.inside("superlink", "python", "-c", code).splitlines()[-1])

    def device(self):
        return json.loads(self.inside("device", "dlfd-fleet-device", "status", "/device/agent", "--json"))

    def remove(self):
        """Remove what this test has made, and what an earlier one has left."""
        found = run("podman", "ps", "--all", "--quiet", "--filter", LABEL).stdout.split()
        if found:
            run("podman", "rm", "--force", "--time", "5", *found, check=False)
        for kind in ("volume", "network"):
            names = run("podman", kind, "ls", "--quiet", "--filter", LABEL).stdout.split()
            if names:
                run("podman", kind, "rm", "--force", *names, check=False)
        kept = [f"localhost/{PROJECT}", f"localhost/{PROJECT}-caddy", f"localhost/{PROJECT}-postgres"]
        kept += [] if "BASE" in os.environ else [BASE]
        for image in kept:
            run("podman", "rmi", "--force", image, check=False)


def make_faces(fleet):
    """Draw 16 people for two sites; return whom the clinic trains on. Two of each site are kept out of training."""
    fleet.follow("dlfd-fleet data synthesize faces --people 16 --images 4 --image-size 32")
    rows = list(csv.DictReader((fleet.folder / "faces" / "manifest.csv").open()))
    people = sorted({row["identity"] for row in rows})
    for number, site in enumerate(("clinic", "shop")):
        mine = people[number::2]
        with (fleet.folder / f"{site}.csv").open("w") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "identity", "label", "site", "split"])
            for row in rows:
                if row["identity"] in mine:
                    split = {0: "validation", 1: "test"}.get(mine.index(row["identity"]), "train")
                    writer.writerow([row["image"], row["identity"], row["label"], site, split])
                    there = fleet.folder / f"{site}-faces" / row["image"]
                    there.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(fleet.folder / "faces" / row["image"], there)
    return people[::2][2:]


SETTINGS = {
    "training": {"rounds": 1, "local_epochs": 1, "batch_size": 8},
    "model": {"architecture": "mobilenet_v3_small"},
    "erasure": {
        "rounds": 1,
        "unlearning": {"batch_size": 8},
        "repair_epochs": 1,
        "max_attempts": 1,
        "relearning_rounds": 0,
        "largest_forget_share": 1.0,
    },
    # A machine so busy that Flower's SQLite gives up loses replies: see deploy/README.md.
    "fleet": {"reply_timeout_seconds": 300},
    # So few drawings cannot show anything: what is tested is the way, so the bounds are wide.
    "audit": {
        "resamples": 200,
        "margin": 0.49,
        "max_accuracy_drop": 1.0,
        "max_retain_drop": 1.0,
        "min_gain_over_majority": -1.0,
    },
}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("containers")
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as an interrupt does: by cleaning up
    with ExitStack() as after:
        after.callback(signal.signal, signal.SIGTERM, before)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CONTAINERS_CONF", "")
            made = Fleet(folder)
            made.remove()
            after.callback(made.remove)
            made.build()
            shutil.copytree(ROOT / "deploy", folder / "deploy")
            for name in ("disk", "device", "away"):
                (folder / name).mkdir()
            run("mount", "-t", "tmpfs", "-o", "size=1g,mode=0755,uid=10001", "tmpfs", str(made.disk))
            after.callback(run, "umount", "--lazy", str(made.disk))
            (folder / "fleet.json").write_text(json.dumps(SETTINGS))
            made.people = make_faces(made)
            yield made


def ask_and_erase(fleet, person):
    ask, *erase = ERASE.splitlines(keepends=True)
    fleet.follow(ask, PERSON=person, NAME="privacy")
    return "".join(erase)


def check_device(fleet, epoch):
    wait_until(lambda: fleet.device()["epoch"] == epoch, f"the device has the model of epoch {epoch}")
    said = fleet.device()
    assert (said["floor"], said["answers"], said["problem"]) == (epoch, True, "")


def check_requests(fleet, person, state):
    shown = fleet.inside("clinic", "dlfd-fleet", "forget", "show", person, "--site", "/site")
    assert state in shown, shown
    assert "as its seals say" in fleet.inside("clinic", "dlfd-fleet", "site", "status", "/site")


def check_erased(fleet, person, epoch):
    """What the product's commands, and MLflow, say of an erasure that devices have heard of."""
    check_device(fleet, epoch)
    check_requests(fleet, person, "ROLLING_OUT")
    versions = fleet.inside("superlink", "dlfd-fleet", "registry", "list")
    assert re.search(rf"champion +{epoch} ", versions), versions
    assert "Nothing waits" in fleet.inside("superlink", "dlfd-fleet", "outbox", "list")
    fleet.inside("superlink", "dlfd-fleet", "report", "--output", "/state/report.html")
    assert fleet.inside("superlink", "head", "-c", "15", "/state/report.html").lower() == "<!doctype html>"
    assert not list((fleet.folder / "deploy" / "sites" / "clinic" / "faces" / "images" / person).glob("*"))


def test_the_fleet_of_the_readme_trains_delivers_and_erases(fleet):
    # "And both for shop": the two lines that name a manifest and its faces.
    again = [line for line in KEYS_AND_SITES.splitlines() if "site init" in line or "and both for shop" in line]
    for_shop = "".join(line.replace("clinic", "shop") + "\n" for line in again)
    fleet.follow(KEYS_AND_SITES.replace("chown ", f"{for_shop}chown ", 1), **{"…": "away"})
    start, train = START_AND_TRAIN.split("docker compose exec superlink flwr supernode list")
    fleet.follow(start)
    fleet.wait_for_sites()
    fleet.follow(train.partition("\n")[2])
    assert "released" in fleet.inside("superlink", "dlfd-fleet", "job", "list")

    before, after = DELIVER.split("docker compose cp device.pub")
    fleet.follow(before)
    make = "dlfd-fleet-device init device/agent --url https://delivery:8300 --root root.json --poll-seconds 5"
    fleet.follow(f"{make}\ncp device/agent/device.pub . && chown -R 10001 device")
    fleet.follow("docker compose cp device.pub" + after + "docker compose --profile delivery up --detach device\n")
    check_device(fleet, 0)

    person = fleet.people[0]
    fleet.follow(ask_and_erase(fleet, person))
    check_erased(fleet, person, 1)


@pytest.mark.parametrize("service", SERVICES)
def test_a_container_may_do_nothing_but_its_work(fleet, service):
    assert fleet.inside(service, "id", "-u").strip() == ("0" if service == "postgres" else "10001")
    if service == "postgres":
        return
    for place in ("/app/file", "/etc/file", "/opt/file"):
        assert fleet.inside(service, "touch", place, check=False).returncode, place
    (may,) = re.findall(r"^CapEff:\s+(\w+)$", fleet.inside(service, "cat", "/proc/1/status"), re.MULTILINE)
    assert int(may, 16) in (0, 1 << 10 if service == "proxy" else 0)  # NET_BIND_SERVICE
    assert "NoNewPrivs:\t1" in fleet.inside(service, "cat", "/proc/1/status")


@pytest.mark.parametrize(
    ("service", "reaches"),
    [
        ("clinic", {"proxy:9300"}),
        ("device", {"delivery:8300"}),
        ("proxy", {"superlink:9299"}),
        ("superlink", {"mlflow:5000"}),
        ("mlflow", {"postgres:5432"}),
        ("delivery", set()),
    ],
)
def test_a_container_reaches_what_the_readme_says(fleet, service, reaches):
    for address in ("proxy:9300", "superlink:9299", "mlflow:5000", "postgres:5432", "delivery:8300", "shop:9301"):
        host, port = address.split(":")
        if host in (service, "superlink" if service == "mlflow" else "", "proxy" if service == "superlink" else ""):
            continue
        words = ("timeout", "5", "bash", "-c", f"exec 3<>/dev/tcp/{host}/{port}")
        assert (fleet.inside(service, *words, check=False).returncode == 0) == (address in reaches), address


def test_the_world_reaches_the_proxy_and_the_delivery(fleet):
    published = run("podman", "port", "--all").stdout
    assert set(re.findall(r"-> (\S+)", published)) == {"0.0.0.0:9300", "0.0.0.0:8300", "127.0.0.1:5000"}
    keys = fleet.folder / "deploy" / "keys"
    assert answer("https://127.0.0.1:9300/health", keys / "ca.crt") == 200
    assert answer("https://127.0.0.1:9300/v1/control/list-runs", keys / "ca.crt") == 403
    assert answer("https://127.0.0.1:8300/metadata/1.root.json", keys / "delivery" / "ca.crt") == 200


def test_desks_are_on_this_machine_alone_behind_a_login(fleet):
    fleet.follow(DESKS, **{"…": "away"})
    keys = fleet.folder / "deploy" / "keys" / "desk"
    for desk, port in (("desk", 8401), ("clinic-desk", 8400)):
        assert run("podman", "port", fleet.container(desk)).stdout.strip().endswith(f"-> 127.0.0.1:{port}")
        with urlopen(f"https://localhost:{port}/", context=ssl.create_default_context(cafile=keys / "ca.crt")) as page:
            assert page.url.endswith("/login")  # whoever has not logged in is led there
        assert fleet.inside(desk, "touch", "/app/file", check=False).returncode
    fleet.follow("docker compose stop desk\ndocker compose stop clinic-desk\n")


def answer(url, authority):
    try:
        with urlopen(url, context=ssl.create_default_context(cafile=authority)) as response:
            return response.status
    except HTTPError as error:
        return error.code


def test_a_superlink_without_its_superexec_is_not_well(fleet):
    kill = (
        "import os; from pathlib import Path; [os.kill(int(file.parent.name), 9) for file in "
        r"Path('/proc').glob('[0-9]*/cmdline') if b'/flower-superexec\0' in file.read_bytes()]"
    )
    fleet.inside("superlink", "python", "-c", kill)
    assert not fleet.is_well("superlink")
    fleet.follow("docker compose restart superlink\n")
    fleet.wait_for("superlink")
    fleet.wait_for_sites()


@pytest.mark.skipif(SHORT, reason="SHORT is set: nobody dies, nothing is cut off, no disk is filled")
def test_an_erasure_ends_though_every_container_dies_every_network_is_cut_and_the_disk_is_full(fleet):
    person = fleet.people[1]
    ask_and_erase(fleet, person)
    job = fleet.begin("job", "start", "erase", "--app", "/app")
    wait_until(lambda: "unlearning" in fleet.status(), "a site unlearns")
    check_requests(fleet, fleet.people[0], "COMPLETE")  # the device has reported that it has no older model
    for service in SERVICES:
        if service != "superlink":
            fleet.crash(service)
    fleet.crash("superlink")
    code, _ = fleet.end(job)
    assert code
    fleet.wait_for_sites()

    log.info("filling the coordinator's disk")
    fill(fleet.disk)
    code, out = fleet.end(fleet.begin("job", "resume", "--app", "/app"))
    assert code
    make_room(fleet.disk)
    fleet.wait_for("superlink")

    resumed = fleet.begin("job", "resume", "--app", "/app")
    for network in COMPOSE["networks"]:
        fleet.cut(network)
    code, out = fleet.end(resumed)
    while code:
        assert "dlfd-fleet job resume" in out, out
        fleet.wait_for_sites()
        code, out = fleet.end(fleet.begin("job", "resume", "--app", "/app"))
    answers = ("superlink", "dlfd-fleet", "registry", "list")
    wait_until(lambda: not fleet.inside(*answers, check=False).returncode, "MLflow reaches its database again")
    fleet.inside("superlink", "dlfd-fleet", "outbox", "send")  # what the job could not tell MLflow
    fleet.follow(ERASE.splitlines()[-1])
    check_erased(fleet, person, 2)


def test_nothing_is_lost_when_the_whole_is_stopped_and_started(fleet):
    before = fleet.records(), fleet.device()["version"]
    fleet.follow("docker compose down\ndocker compose up --detach\n")
    for service in ("delivery", "device"):
        fleet.follow(f"docker compose --profile delivery up --detach {service}\n")
    assert (fleet.records(), fleet.device()["version"]) == before
    fleet.wait_for_sites()
    fleet.follow("docker compose exec superlink dlfd-fleet job start erase --app /app")
    for person in fleet.people[: 1 if SHORT else 2]:
        check_requests(fleet, person, "COMPLETE")
