"""The delivery as an operator runs it: the commands, the server as a process of its own, and devices before it."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from securesystemslib.signer import CryptoSigner

from dlfd_fleet.bench.load.polling import measure_delivery
from dlfd_fleet.cli import main
from dlfd_fleet.delivery.delivery import Delivery, opened
from dlfd_fleet.delivery.devices import DeviceStore
from dlfd_fleet.delivery.publish import ReleasedModel, publish
from dlfd_fleet.delivery.server import LARGEST_REPORT, LIMITS, server
from dlfd_fleet.device.connections import Limits, listening, most_connections
from dlfd_fleet.device.update import UpdateClient
from dlfd_fleet.exceptions import DeliveryError
from dlfd_fleet.federation.records.job_record import Champion
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.settings import Settings
from tests.tuf_simulator import Clock
from tests.unit.delivery.conftest import small_model
from tests.unit.delivery.test_devices import signed_report

PATIENCE = 60.0
ANY_CERTIFICATE = ssl.create_default_context()
ANY_CERTIFICATE.check_hostname, ANY_CERTIFICATE.verify_mode = False, ssl.CERT_NONE


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
            return urllib.request.urlopen(url, timeout=PATIENCE, context=ANY_CERTIFICATE).read()
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
def running(delivery, seconds=3600.0, limits=LIMITS, **options):
    """The server, in this process."""
    listener = listening("127.0.0.1", 0)
    made = server(delivery, limits, seconds, **options)
    thread = threading.Thread(target=made.run, args=([listener],))
    thread.start()
    try:
        url = f"http{'s' if options else ''}://127.0.0.1:{listener.getsockname()[1]}"
        wait_for(f"{url}/metadata/timestamp.json")
        yield url
    finally:
        made.should_exit = True
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
    store.champions.move(Champion(job=record.job, epoch=1))
    file = small_model(store.folders.model(record.job) / "model.onnx", version="1-abc", epoch=1)
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
        assert server.wait(PATIENCE) == 128 + signal.SIGTERM
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
    monkeypatch.setattr("dlfd_fleet.delivery.server.serve", lambda *_: pytest.fail("it serves"))
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


ODD_PATHS = [
    "/metadata/%00.json",
    "/metadata/1.root.json%00",
    "/metadata/.timestamp.json.new",
    "/metadata/" + "9" * 5000 + ".root.json",
    "/metadata/%2e%2e",
    "/metadata/%ff%fe.json",
    "/metadata/timestamp.json/",
    "/metadata//timestamp.json",
    "/metadata/\\..\\root.json",
    "/metadata/con.json",
    "/targets/%00",
    "/targets/" + "x" * 5000,
    "/targets/" + "a/" * 2000,
    "/targets/%2e%2e%2f%2e%2e%2fdevices.db",
    "/targets/..%5cdevices.db",
    "/targets/models/%00/model.onnx",
    "/targets/%ed%a0%80",
    "/reports/",
    "/%00",
    "//",
    "/?%00",
]


def test_odd_paths_and_methods_are_refused_without_a_traceback(delivery, tmp_path, capfd):
    put(delivery, tmp_path, 1)
    with running(delivery) as url:
        host = url.removeprefix("http://")
        connection = http.client.HTTPConnection(host, timeout=PATIENCE)
        for path in ODD_PATHS:
            for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PROPFIND"):
                connection.request(method, path)
                answer = connection.getresponse()
                answer.read()
                assert answer.status in (307, 404, 405), (method, path)
        for method in ("GET", "PUT", "DELETE"):
            connection.request(method, "/reports")
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 405
        connection.close()
        camera = CryptoSigner.generate_ed25519()
        for keyid in ("\0", "\ud800", "../../x", 5, None, [], "x" * 10**5):
            envelope = json.loads(signed_report(camera, delivery.clock()))
            envelope["signatures"][0]["keyid"] = keyid
            assert post(url, json.dumps(envelope).encode())[0] == 400
    assert capfd.readouterr().err == ""


UNFINISHED = (
    b"POST /reports HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{",
    b"POST /reports HTTP/1.1\r\nHo",
    b"",
)


@pytest.mark.parametrize("beginning", UNFINISHED, ids=["body", "head", "nothing"])
def test_unfinished_requests_keep_no_device_away(delivery, tmp_path, beginning):
    """1,100 of them reset every device once, when the server had its 1,024 files open."""
    put(delivery, tmp_path, 1)
    camera = CryptoSigner.generate_ed25519()
    delivery.devices.enroll(camera.public_key, "camera", delivery.clock())
    with running(delivery, limits=Limits(connections=16)) as url:
        host, port = url.removeprefix("http://").split(":")
        slow = [socket.create_connection((host, int(port))) for _ in range(100)]
        for each in slow:
            with suppress(ConnectionError):
                each.sendall(beginning)
        client = UpdateClient(tmp_path / "tuf", url, root_of(delivery))
        client.refresh()
        assert post(url, signed_report(camera, delivery.clock())) == (204, "")
        for each in slow:
            each.close()


def test_unfinished_tls_handshakes_keep_no_device_away(delivery, tls, capfd):
    options = {"ssl_certfile": tls / "ours.crt", "ssl_keyfile": tls / "ours.key"}
    with running(delivery, limits=Limits(connections=8), **options) as url:
        host, port = url.removeprefix("https://").split(":")
        slow = [socket.create_connection((host, int(port))) for _ in range(60)]
        for each in slow[::2]:
            with suppress(ConnectionError):
                each.sendall(b"GET / HTTP/1.1\r\n\r\n")  # no TLS at all
        for _ in range(12):
            assert b"timestamp" in wait_for(f"{url}/metadata/timestamp.json")
        for each in slow:
            each.close()
    assert capfd.readouterr().err == ""


def test_an_unfinished_report_ends_at_its_deadline(delivery):
    with running(delivery, limits=Limits(connections=16, body_seconds=0.2)) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=PATIENCE) as slow:
            slow.sendall(UNFINISHED[0])
            assert slow.recv(100).startswith(b"HTTP/1.1 408")


def test_reports_wait_when_the_database_cannot_be_used(delivery, monkeypatch):
    def damaged(*_):
        raise DeliveryError("The devices' database is damaged.")

    monkeypatch.setattr(DeviceStore, "receive", damaged)
    with running(delivery) as url:
        assert post(url, b"{}") == (503, "The report cannot be stored now: send it again later.")


def test_the_upkeep_outlives_a_defect(delivery, monkeypatch):
    looks, seen = iter(range(10**6)), threading.Event()

    def keep_up(*_, **__):
        if next(looks) == 0:
            raise OSError(24, "Too many open files")
        seen.set()
        return []

    monkeypatch.setattr(Delivery, "keep_up", keep_up)
    with running(delivery, seconds=0.01):
        assert seen.wait(PATIENCE)


@pytest.mark.parametrize(("files", "expected"), [(1024, 512), (65536, 8192), (1, 1)])
def test_half_of_the_files_are_for_connections(files, expected):
    assert most_connections(LIMITS.connections, files) == expected


def test_a_port_that_is_taken_is_one_sentence(fleet):
    fleet("delivery", "init")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"Cannot listen on 127.0.0.1:{port}" in fleet("delivery", "serve", "--port", port, code=2)


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
    """The load test in small; docs/how-to/delivery.md has the figures of the large one."""
    rounds = measure_delivery(tmp_path, 12, silent, model_bytes=20_000, at_once=6)
    assert [row.failed for row in rounds] == [0, 0, 0, 0]
