"""Programs on the device ask over HTTP: answers, errors, and a new model under their hands."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from urllib.parse import urlsplit

import numpy as np
import pytest

from dlfd_fleet.device.agent import Agent
from dlfd_fleet.device.answering import Answering, Loaded
from dlfd_fleet.device.clock import Clock
from dlfd_fleet.device.connections import Limits
from dlfd_fleet.device.contract import Release, SelfTest
from dlfd_fleet.device.folder import DeviceFolder, DeviceSettings, init_device
from dlfd_fleet.device.inference import DeviceModel
from dlfd_fleet.device.serve import LARGEST_REQUEST, serving
from tests.tuf_repository import Coordinator, TufRepository, random_images, tiny_model

INFER = "/v2/models/classifier/infer"


@pytest.fixture
def fleet(tmp_path) -> Iterator[tuple[TufRepository, Agent]]:
    repository = TufRepository(tmp_path / "repository")
    with Coordinator(repository.folder).running() as coordinator:
        settings = DeviceSettings(url=coordinator.url, formats=("fp32",))
        yield repository, Agent(init_device(tmp_path / "device", settings, repository.root_file))


@pytest.fixture
def connection(fleet) -> Iterator[http.client.HTTPConnection]:
    repository, agent = fleet
    repository.add_model(1, 1)
    repository.publish()
    agent.poll()
    with serving(agent.answering, "127.0.0.1", 0) as address, closing(connect(address)) as connected:
        yield connected


def connect(address: str) -> http.client.HTTPConnection:
    parts = urlsplit(address)
    return http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)


def ask(connection, method: str, path: str, content: bytes | None = None, headers=()) -> tuple[int, dict]:
    connection.request(method, path, content, dict(headers))
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def request_body(images: np.ndarray) -> bytes:
    tensor = {"name": "images", "datatype": "UINT8", "shape": list(images.shape), "data": images.tolist()}
    return json.dumps({"id": "1", "inputs": [tensor]}).encode()


def says(version: int, images: np.ndarray, folder) -> np.ndarray:
    """What the model of this publication says of images, without an agent."""
    file = folder / f"{version}.onnx"
    file.write_bytes(tiny_model(str(version), max(1, version - 1), seed=version))
    return DeviceModel(file).predict(images)


def test_client_finds_the_model_and_gets_its_answers_on_one_connection(connection, tmp_path):
    images = random_images(2)
    assert ask(connection, "GET", "/v2")[1]["extensions"] == ["binary_tensor_data"]
    assert ask(connection, "GET", "/v2/health/live") == (200, {"live": True})
    assert ask(connection, "GET", "/v2/health/ready") == (200, {"ready": True})
    for path in ("/v2/models/classifier", "/v2/models/classifier/versions/1"):
        assert ask(connection, "GET", path)[1]["versions"] == ["1"]
        assert ask(connection, "GET", f"{path}/ready")[1] == {"name": "classifier", "ready": True}
        status, answer = ask(connection, "POST", f"{path}/infer", request_body(images))
        assert (status, answer["id"], answer["model_version"]) == (200, "1", "1")
        found = np.array(answer["outputs"][0]["data"], np.float32).reshape(answer["outputs"][0]["shape"])
        np.testing.assert_array_equal(found, says(1, images, tmp_path))


def test_bytes_are_answered_with_bytes(connection, tmp_path):
    images = random_images(2)
    tensor = {"name": "images", "datatype": "UINT8", "shape": list(images.shape)}
    tensor["parameters"] = {"binary_data_size": images.nbytes}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    connection.request("POST", INFER, head + images.tobytes(), {"Inference-Header-Content-Length": str(len(head))})
    response = connection.getresponse()
    content, length = response.read(), int(response.headers["Inference-Header-Content-Length"])
    assert json.loads(content[:length])["outputs"][0]["shape"] == [2, 3]
    found = np.frombuffer(content[length:], "<f4").reshape(2, 3)
    np.testing.assert_array_equal(found, says(1, images, tmp_path))


@pytest.mark.parametrize(
    ("method", "path", "content", "headers", "status"),
    [
        ("GET", "/", None, {}, 404),
        ("GET", "/v2/models/other", None, {}, 404),
        ("GET", "/v2/models/classifier/versions/2", None, {}, 404),
        ("GET", "/v2/models/classifier/../../etc", None, {}, 404),
        ("GET", INFER, None, {}, 405),
        ("POST", "/v2/models/classifier", b"{}", {}, 405),
        ("POST", INFER, b"{}", {}, 400),
        ("POST", INFER, b"{}", {"Inference-Header-Content-Length": "all"}, 400),
        ("POST", INFER, b"{}", {"Content-Length": "-2"}, 400),
        ("POST", INFER, b"{}", {"Content-Length": str(LARGEST_REQUEST + 1)}, 413),
        ("POST", INFER, b"{}", {"Content-Encoding": "gzip"}, 415),
        ("DELETE", INFER, None, {}, 501),
    ],
)
def test_wrong_request_is_told_what_is_wrong_and_the_next_is_answered(
    connection, method, path, content, headers, status
):
    found, answer = ask(connection, method, path, content, headers)
    assert found == status
    assert set(answer) == {"error"}
    assert answer["error"]
    assert ask(connection, "POST", INFER, request_body(random_images(1)))[0] == 200


def test_body_without_a_length_is_refused(connection):
    connection.putrequest("POST", INFER)
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    assert connection.getresponse().status == 411


def test_client_that_goes_away_in_the_middle_costs_nobody_else_anything(connection, capfd):
    with socket.create_connection((connection.host, connection.port)) as half:
        half.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{{".encode())
    assert ask(connection, "POST", INFER, request_body(random_images(1)))[0] == 200
    assert capfd.readouterr().err == ""


# ---------------------------------------------------------------------- clients that mean harm


def raw(address: str, content: bytes) -> tuple[int, dict]:
    """Send bytes as they are, and read the answer to the end of the connection."""
    parts = urlsplit(address)
    with socket.create_connection((parts.hostname, parts.port), timeout=30) as sent:
        sent.sendall(content)
        received = b""
        while chunk := sent.recv(2**16):
            received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def posted(headers: str, body: str = "") -> bytes:
    return f"POST {INFER} HTTP/1.1\r\nHost: x\r\n{headers}\r\n\r\n{body}".encode()


def got(target: str, headers: str = "Connection: close") -> bytes:
    return f"GET {target} HTTP/1.1\r\nHost: x\r\n{headers}\r\n\r\n".encode()


NINES = "9" * 5000


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + b"\0" * 40 + b"\r\n\r\n", 400),
        (got("/v2\0"), 400),
        (got("http://[::1"), 400),
        (got("http://x/v2"), 200),
        (got("/v2/%00%ff/../.."), 404),
        (got("/" + "x" * 20_000), 404),
        (posted(f"Content-Length: {NINES}"), 400),
        (posted("Content-Length: 99999999999999999999"), 413),
        (posted(f"Content-Length: 2\r\nInference-Header-Content-Length: {NINES}", "{}"), 400),
        (posted("Content-Length: 2\r\nContent-Length: 3", "{}"), 400),
        (posted("Transfer-Encoding: chunked", "ffffffffff\r\n"), 411),
        (b"BREW /v2 HTTP/1.1\r\nHost: x\r\n\r\n", 501),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 501),
    ],
    ids=range(14),
)
def test_whatever_is_sent_is_answered_with_one_sentence_and_no_traceback(served, capfd, content, status):
    found, answer = raw(served, content)
    assert found == status
    assert status == 200 or set(answer) == {"error"}
    assert capfd.readouterr().err == ""
    with closing(connect(served)) as connection:
        assert ask(connection, "POST", INFER, request_body(random_images(1)))[0] == 200


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[str]:
    """A device that answers, for tests that change nothing of it, and that gives its clients half a second."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "model.onnx").write_bytes(tiny_model("1", 1, seed=1))
    answering = Answering(Clock(folder / "clock"))
    release = Release(
        version="1", format="fp32", epoch=1, minimum_epoch=1, sequence=1, self_test=SelfTest(target="t", tolerance=0.1)
    )
    answering.answer_with(Loaded(DeviceModel(folder / "model.onnx"), release))
    with serving(answering, "127.0.0.1", 0, Limits(connections=8, head_seconds=0.5, body_seconds=0.5)) as address:
        yield address


BEGINNINGS = {
    "nothing": b"",
    "head": b"GET /v2 HTTP/1.1\r\nHost",
    "body": posted("Content-Length: 1000", "{"),
    "chunks": posted("Transfer-Encoding: chunked"),
    "answered": got("/v2", "Accept: */*"),
}


@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_slow_clients_starve_nobody(served, beginning):
    """More connections than there may be, each with a part of a request: whoever brings a whole one is served."""
    parts = urlsplit(served)
    slow = []
    try:
        for _ in range(40):
            slow.append(socket.create_connection((parts.hostname, parts.port), timeout=30))
            slow[-1].sendall(BEGINNINGS[beginning])
        for method, path, body in (
            ("GET", "/v2/health/live", None),
            ("GET", "/v2/health/ready", None),
            ("POST", INFER, request_body(random_images(1))),
        ):
            with closing(connect(served)) as connection:
                assert ask(connection, method, path, body)[0] == 200
    finally:
        for each in slow:
            each.close()


@pytest.mark.parametrize("beginning", ["nothing", "head", "body"])
def test_a_request_has_a_deadline(served, beginning):
    status, answer = raw(served, BEGINNINGS[beginning])
    assert status == 408
    assert "did not arrive within 0.5 seconds" in answer["error"]


def test_a_client_that_sends_now_and_then_gets_no_more_time(served):
    parts = urlsplit(served)
    with socket.create_connection((parts.hostname, parts.port), timeout=0.05) as slow:
        slow.sendall(b"GET /v2 HTTP/1.1\r\n")
        for number in range(600):
            try:
                slow.sendall(b"X-%d: y\r\n" % number)
                if slow.recv(2**16).startswith(b"HTTP/1.1 408"):
                    return
            except TimeoutError:
                continue
    pytest.fail("it has all the time in the world")


def test_device_without_a_model_is_live_and_not_ready(fleet):
    _, agent = fleet
    with serving(agent.answering, "127.0.0.1", 0) as address, closing(connect(address)) as connection:
        assert ask(connection, "GET", "/v2/health/live")[0] == 200
        for method, path in (("GET", "/v2/health/ready"), ("GET", "/v2/models/classifier/ready"), ("POST", INFER)):
            status, answer = ask(connection, method, path, b"{}" if method == "POST" else None)
            assert status == 503
            assert "no model is installed yet" in answer["error"]


def test_new_models_are_exchanged_without_a_failed_request_and_a_purged_one_answers_no_more(fleet, tmp_path):
    """Epochs rise on the way, so each exchange forbids the model before it; requests in that moment wait."""
    repository, agent = fleet
    repository.add_model(1, 1)
    repository.publish()
    agent.poll()
    images = random_images(2)
    body, expected = request_body(images), {version: says(version, images, tmp_path) for version in range(1, 6)}
    answers: list[list[tuple[int, dict]]] = [[], []]
    done, begun = threading.Event(), threading.Barrier(3)

    def client(address: str, mine: list[tuple[int, dict]]) -> None:
        with closing(connect(address)) as connection:
            begun.wait(30)
            while not done.is_set():
                mine.append(ask(connection, "POST", INFER, body))

    with serving(agent.answering, "127.0.0.1", 0) as address:
        clients = [threading.Thread(target=client, args=(address, mine)) for mine in answers]
        for thread in clients:
            thread.start()
        begun.wait(30)
        for version in range(2, 6):
            repository.add_model(version - 1, version)
            repository.publish()
            agent.poll()
            with closing(connect(address)) as connection:  # begun after the exchange: never the old one
                assert ask(connection, "POST", INFER, body)[1]["model_version"] == str(version)
        done.set()
        for thread in clients:
            thread.join()
    for mine in answers:
        assert {status for status, _ in mine} == {200}
        versions = [int(answer["model_version"]) for _, answer in mine]
        assert versions == sorted(versions)
        for _, answer in mine:
            found = np.array(answer["outputs"][0]["data"], np.float32).reshape(2, 3)
            np.testing.assert_array_equal(found, expected[int(answer["model_version"])])
    assert {answer["model_version"] for mine in answers for _, answer in mine} > {"1"}
    assert DeviceFolder(tmp_path / "device").floor.read() == 4
