"""The delivery as an operator runs it: the commands, the server as a process of its own, and devices before it."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest
import uvicorn
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from securesystemslib.signer import CryptoSigner

from dlfd_fleet.bench.load.polling import measure_delivery
from dlfd_fleet.cli import main
from dlfd_fleet.delivery.delivery import opened
from dlfd_fleet.delivery.publish import ReleasedModel, publish
from dlfd_fleet.delivery.server import LARGEST_REPORT, application
from dlfd_fleet.device.update import UpdateClient
from dlfd_fleet.federation.records import Champion
from dlfd_fleet.federation.store import Store
from dlfd_fleet.settings import Settings
from tests.tuf_simulator import Clock
from tests.unit.delivery.conftest import small_model
from tests.unit.delivery.test_devices import signed_report

PATIENCE = 60.0


@pytest.fixture
def fleet(tmp_path, monkeypatch, capsys):
    """The command, in this process: what it prints, or the sentence that it ends with."""

    def run(*arguments, code=0):
        monkeypatch.setattr(
            sys, "argv", ["dlfd-fleet", *map(str, arguments), "--set", f"state_folder={tmp_path / 'state'}"]
        )
        with pytest.raises(SystemExit) as end:
            main()
        assert (end.value.code or 0) == code
        said = capsys.readouterr()
        return said.out + said.err if code else said.out

    return run


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(url):
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return urllib.request.urlopen(url, timeout=PATIENCE).read()
        except OSError:
            assert time.monotonic() < deadline, f"{url} does not answer"
            time.sleep(0.05)


def post(url, content):
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{url}/reports", content), timeout=PATIENCE) as answer:
            return answer.status, ""
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())["error"]


@contextmanager
def running(delivery, seconds=3600.0):
    """The application behind uvicorn, in this process."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(application(delivery, seconds), port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(f"{url}/metadata/timestamp.json")
        yield url
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def delivery(tmp_path):
    with opened(Settings(state_folder=tmp_path / "state"), clock=Clock(), create=True) as delivery:
        delivery.repository.create(delivery.repository.folder / "keys")
        yield delivery


def put(delivery, folder, epoch, **options):
    version = f"{epoch}-abc"
    file = small_model(folder / version / "model.onnx", version=version, epoch=epoch, seed=epoch)
    return publish(delivery.repository, delivery.devices, ReleasedModel(version, epoch, {"fp32": file}), **options)


def root_of(delivery):
    return (delivery.repository.folder / "root.json").read_bytes()


def test_from_a_released_job_to_an_erasure_that_is_over(tmp_path, fleet):
    """Every command, and a device that is only a client and a key."""
    state = tmp_path / "state"
    store = Store(state)
    record = store.new_job("erase", Settings()).model_copy(update={"step": "settled", "released": True, "epoch": 1})
    store.save(record)
    store.set_champion(Champion(job=record.job, epoch=1))
    file = small_model(store.model_folder(record.job) / "model.onnx", version="1-abc", epoch=1)
    store.close()
    fleet("delivery", "init")
    assert "holds a repository already" in fleet("delivery", "init", code=2)
    camera = CryptoSigner.generate_ed25519()
    key = tmp_path / "camera.pem"
    key.write_bytes(camera._private_key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    fleet("delivery", "enroll", key, "--name", "camera-1", "--canary")
    assert "models/1-1/model.onnx" in fleet("publish", "champion", "--rings")
    assert "complete or abort it before the next" in fleet("publish", record.job, code=2)
    assert "1 canaries" in fleet("rollout", "start")

    port = free_port()
    command = [sys.executable, "-m", "dlfd_fleet", "delivery", "serve", "--port", str(port)]
    server = subprocess.Popen([*command, "--set", f"state_folder={state}"], stdout=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(f"{url}/metadata/timestamp.json")
        client = UpdateClient(tmp_path / "tuf", url, (state / "delivery" / "root.json").read_bytes())
        client.refresh()
        ((name, release),) = client.releases()
        assert client.rollout().admits(camera.public_key.keyid, release.sequence, under_floor=False, has_it=False)
        client.download(name, tmp_path / "slot" / "model.onnx")
        assert (tmp_path / "slot" / "model.onnx").read_bytes() == file.read_bytes()
        digest = client.sha256(name)
        fields = {"sequence": 1, "version": "1-abc", "epoch": 1, "floor": 0, "installed": (digest,), "purged": ()}
        assert post(url, signed_report(camera, datetime.now(UTC), **fields)) == (204, "")
        assert "Erasure epoch 1: kept open by 1 of 1 devices" in fleet("delivery", "status")
        assert "Tried by 1 devices, failed on 0" in fleet("rollout", "status")
        assert "widen the rollout" in fleet("rollout", "complete", code=2)
        for _ in range(3):
            fleet("rollout", "widen")
        assert "complete" in fleet("rollout", "complete")
        client.refresh()
        assert client.floor() == 1
        assert post(url, signed_report(camera, datetime.now(UTC), **fields | {"floor": 1})) == (204, "")
        assert "Erasure epoch 1: over on 1 devices" in fleet("delivery", "status")
        fleet("delivery", "rotate", "timestamp")
        client.refresh()
        assert "is fresh until" in fleet("delivery", "refresh")
        client.refresh()
    finally:
        server.terminate()
        assert server.wait(PATIENCE) in (0, -15)
    assert "is retired: sold" in fleet("delivery", "retire", "camera-1", "--reason", "sold")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("delivery", "rotate", "mirror"), "There is no role 'mirror'"),
        (("delivery", "enroll", "nowhere.pub", "--name", "x"), "nowhere.pub cannot be read"),
        (("delivery", "enroll", __file__, "--name", "x"), "is no public key in PEM"),
        (("delivery", "retire", "toaster", "--reason", "x"), "There is no device 'toaster'"),
        (("publish", "champion"), "holds no jobs"),
        (("rollout", "start"), "There is no rollout"),
        (("rollout", "complete", "--keys", "/nowhere"), "There is no rollout"),
        (("delivery", "init", "--set", "delivery.root_threshold=4"), "threshold"),
        (("delivery", "init", "--set", "delivery.shares=0.5,0.2,1"), "must rise to 1.0"),
        (("delivery", "status", "--set", "delivery.database=nonsense"), "cannot be used"),
        (("delivery", "status", "--set", "delivery.folder=/nowhere/delivery"), "delivery init"),
    ],
)
def test_a_mistake_is_one_sentence(fleet, words, said):
    fleet("delivery", "init")
    assert said in fleet(*words, code=2)


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    """A certificate and its key, and the key of another one."""
    folder, openssl = tmp_path_factory.mktemp("tls"), ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes")
    for name in ("ours", "other"):
        files = ("-out", folder / f"{name}.crt", "-keyout", folder / f"{name}.key")
        subprocess.run([*openssl, *files, "-subj", "/CN=localhost"], check=True, capture_output=True)
    return folder


@pytest.mark.parametrize(
    ("certificate", "key", "said"),
    [
        (None, "ours.key", "give both --tls-certificate and --tls-key"),
        ("ours.crt", None, "give both --tls-certificate and --tls-key"),
        ("ours.crt", "other.key", "the private key of its first certificate"),
        ("ours.key", "ours.key", "TLS cannot be served with"),
    ],
)
def test_tls_that_cannot_be_served_is_told_before_anything_is_served(fleet, tls, monkeypatch, certificate, key, said):
    monkeypatch.setattr(uvicorn, "run", lambda *_, **__: pytest.fail("it serves"))
    fleet("delivery", "init")
    options = [("--tls-certificate", certificate), ("--tls-key", key)]
    words = [word for option, name in options if name for word in (option, tls / name)]
    told = fleet("delivery", "serve", *words, code=2)
    assert said in told
    assert "Serving" not in told


def test_reports_that_are_refused_say_why(delivery, tmp_path):
    camera = CryptoSigner.generate_ed25519()
    with running(delivery) as url:
        report = signed_report(camera, delivery.clock())
        assert "not of this fleet" in post(url, report)[1]
        delivery.devices.enroll(camera.public_key, "camera", delivery.clock())
        assert post(url, report) == (204, "")
        received = delivery.devices.find("camera").received_at
        delivery.clock.move(minutes=1)
        assert post(url, report) == (204, "")  # sent again: it was taken, and counts once
        assert delivery.devices.find("camera").received_at == received
        assert post(url, b"nonsense")[0] == 400
        assert post(url, b"x" * (LARGEST_REPORT + 1))[0] == 413


def test_nothing_but_the_repository_is_served(delivery, tmp_path):
    put(delivery, tmp_path, 1)
    with running(delivery) as url:
        host = url.removeprefix("http://")
        for path in (
            "/",
            "/keys",
            "/metadata",
            "/targets/",
            "/devices.db",
            "/root.json",
            "/metadata/../../devices.db",
            "/metadata/..%2f..%2froot.json",
            "/targets/../../devices.db",
            "/targets/..%2f..%2fdevices.db",
            "/targets//etc/passwd",
            "/docs",
        ):
            connection = http.client.HTTPConnection(host, timeout=PATIENCE)
            connection.request("GET", path)
            assert connection.getresponse().status in (404, 405), path
            connection.close()


def test_a_download_is_resumed_from_the_servers_own_ranges(delivery, tmp_path):
    done = put(delivery, tmp_path, 1)
    with running(delivery) as url:
        client = UpdateClient(tmp_path / "tuf", url, root_of(delivery))
        client.refresh()
        content = (tmp_path / "1-abc" / "model.onnx").read_bytes()
        (tmp_path / "model.part").write_bytes(content[:100])
        client.download(done.targets[0], tmp_path / "model")
        assert (tmp_path / "model").read_bytes() == content


def test_the_server_keeps_the_repository_fresh_and_watches_the_rollout(delivery, tmp_path):
    camera = CryptoSigner.generate_ed25519()
    delivery.devices.enroll(camera.public_key, "camera", delivery.clock(), canary=True)
    put(delivery, tmp_path, 1, rings=True)
    delivery.change_rollout("start")
    with running(delivery, seconds=0.02) as url:
        client = UpdateClient(tmp_path / "tuf", url, root_of(delivery))
        client.refresh()
        before = delivery.repository.read().timestamp.signed.version
        delivery.clock.move(hours=13)
        deadline = time.monotonic() + PATIENCE
        while delivery.repository.read().timestamp.signed.version == before:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert post(url, signed_report(camera, delivery.clock(), sequence=1, healthy=False)) == (204, "")
        while client.rollout().state == "running":
            assert time.monotonic() < deadline
            client.refresh()
        assert client.rollout().state == "aborted"


def test_devices_that_poll_while_the_coordinator_publishes_lose_no_update(delivery, tmp_path):
    put(delivery, tmp_path, 1)
    over = threading.Event()

    def poll(number):
        client = UpdateClient(tmp_path / f"device-{number}", url, root_of(delivery))
        looks = 0
        while looks < 3 or not over.is_set():
            client.refresh()
            name, release = client.releases()[0]
            client.rollout()
            looks += 1
        client.refresh()
        name, release = client.releases()[0]
        client.download(name, tmp_path / f"slot-{number}" / "model.onnx")
        return release.epoch

    with running(delivery) as url, ThreadPoolExecutor(8) as pool:
        polls = [pool.submit(poll, number) for number in range(8)]
        for epoch in range(2, 6):
            put(delivery, tmp_path, epoch)
        over.set()
        assert [each.result() for each in polls] == [5] * 8


def test_a_fleet_that_polls_loses_no_update(tmp_path, silent):
    """The load test in small; docs/delivery.md has the figures of the large one."""
    rounds = measure_delivery(tmp_path, 12, silent, model_bytes=20_000, at_once=6)
    assert [row.failed for row in rounds] == [0, 0, 0, 0]
