"""The owner of a device makes it, runs it, asks how it stands and predicts: by the command alone."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from dlfd_fleet.device.cli import main
from dlfd_fleet.device.folder import DeviceFolder
from tests.tuf_repository import Coordinator, TufRepository, random_images, reference_answers, tiny_model

PAGE = " See docs/how-to/device.md (dlfd-fleet explain device).\n"


@pytest.fixture
def fleet(tmp_path) -> Iterator[tuple[TufRepository, Coordinator]]:
    repository = TufRepository(tmp_path / "repository")
    with Coordinator(repository.folder).running() as coordinator:
        yield repository, coordinator


def run(capfd, *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    out, err = capfd.readouterr()
    return ended.value.code, out, err


def made(capfd, fleet, folder: Path, *options: object) -> Path:
    repository, coordinator = fleet
    words = ("init", folder, "--url", coordinator.url, "--root", repository.root_file, "--format", "fp32", *options)
    code, out, err = run(capfd, *words)
    assert (code, err) == (0, "")
    assert DeviceFolder(folder).device in out
    assert str(folder / "device.pub") in out
    return folder


@contextmanager
def started(command: str, folder: Path, *options: str) -> Iterator[subprocess.Popen]:
    words = [sys.executable, "-m", "dlfd_fleet.device", command, str(folder), *options]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_device_is_made_updated_asked_and_predicts(capfd, fleet, tmp_path):
    repository, _ = fleet
    folder = made(capfd, fleet, tmp_path / "device", "--lease-days", 7)
    code, out, err = run(capfd, "once", folder)
    assert (code, out) == (2, "")
    assert "no model is installed yet" in err
    repository.add_model(1, 1)
    repository.publish()
    assert run(capfd, "once", folder) == (0, "Runs version 1 (fp32), epoch 1.\n", "")
    code, out, _ = run(capfd, "status", folder, "--json")
    status = json.loads(out)
    assert (code, status["version"], status["floor"], status["answers"], status["problem"]) == (0, "1", 1, True, "")
    Image.fromarray(random_images(1)[0]).save(tmp_path / "face.png")
    code, out, _ = run(capfd, "predict", "--folder", folder, tmp_path / "face.png", "--json")
    assert (code, json.loads(out)["version"], len(json.loads(out)["predictions"])) == (0, "1", 1)
    code, out, _ = run(capfd, "status", folder)
    assert code == 0
    assert "lease until" in out


def test_status_of_a_device_without_a_model_is_in_words(capfd, fleet, tmp_path):
    folder = made(capfd, fleet, tmp_path / "device")
    code, out, _ = run(capfd, "status", folder)
    rows = dict([cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines() if "│" in line)
    assert (code, rows["epoch"], rows["answers"], rows["healthy"]) == (0, "no model yet", "no", "no")
    assert "None" not in out
    assert json.loads(run(capfd, "status", folder, "--json")[1])["epoch"] is None


def test_refused_update_is_one_sentence_and_the_device_goes_on(capfd, fleet, tmp_path):
    repository, _ = fleet
    folder = made(capfd, fleet, tmp_path / "device")
    repository.add_model(1, 1)
    repository.publish()
    run(capfd, "once", folder)
    repository.add_model(1, 2, self_test=reference_answers(tiny_model("1", 1, 1)))
    repository.publish()
    code, out, err = run(capfd, "once", folder)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "failed its self-test" in err
    status = json.loads(run(capfd, "status", folder, "--json")[1])
    assert (status["version"], status["answers"], status["healthy"]) == ("1", True, False)
    assert "failed its self-test" in status["problem"]


def test_report_that_is_not_taken_is_said_and_is_no_failure(capfd, fleet, tmp_path):
    repository, coordinator = fleet
    folder = made(capfd, fleet, tmp_path / "device")
    repository.add_model(1, 1)
    repository.publish()
    coordinator.report_status = 403
    code, out, err = run(capfd, "once", folder)
    assert (code, out) == (0, "Runs version 1 (fp32), epoch 1.\n")
    assert "/reports did not take the report: 403" in err


def test_model_under_the_floor_is_not_predicted_with(capfd, fleet, tmp_path):
    repository, _ = fleet
    folder = made(capfd, fleet, tmp_path / "device")
    repository.add_model(1, 1)
    repository.publish()
    run(capfd, "once", folder)
    DeviceFolder(folder).floor.raise_to(2)
    Image.fromarray(random_images(1)[0]).save(tmp_path / "face.png")
    code, out, err = run(capfd, "predict", "--folder", folder, tmp_path / "face.png")
    assert (code, out) == (2, "")
    assert "no model that may run" in err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--url", "ftp://x"), "url: String should match"),
        (("--url", "http://x", "--format", "int4"), "formats: Input should be"),
        (("--url", "http://x", "--lease-days", "0"), "lease_days: Input should be greater than 0"),
        (("--url", "http://x", "--threads", "0"), "threads: Input should be greater than or equal to 1"),
    ],
)
def test_setting_that_makes_no_sense_is_one_sentence(capfd, fleet, tmp_path, options, words):
    root = fleet[0].root_file
    code, out, err = run(capfd, "init", tmp_path / "device", "--root", root, *options)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err
    assert not (tmp_path / "device").exists()


@pytest.mark.parametrize("command", ["once", "run", "serve", "status"])
def test_folder_of_no_device_is_one_sentence(capfd, tmp_path, command):
    code, out, err = run(capfd, command, tmp_path)
    assert (code, out) == (2, "")
    assert err == f"{tmp_path} is no device's folder: make one with 'dlfd-fleet-device init'.{PAGE}"


def test_model_without_an_image_is_one_sentence(capfd):
    assert run(capfd, "predict", "model.onnx") == (
        2,
        "",
        f"Give images after the model model.onnx, or the device's folder with --folder.{PAGE}",
    )


def test_second_agent_on_one_folder_is_refused_and_the_first_ends_when_it_is_told_to(capfd, fleet, tmp_path):
    repository, _ = fleet
    folder = made(capfd, fleet, tmp_path / "device", "--poll-seconds", 0.2)
    repository.add_model(1, 1)
    repository.publish()
    with started("run", folder) as first:
        assert first.stdout.readline() == "Runs version 1 (fp32), epoch 1.\n"
        for command in ("once", "run", "serve"):
            code, out, err = run(capfd, command, folder)
            assert (code, out) == (2, "")
            assert err == f"Another agent works on {folder}: one folder is for one agent.{PAGE}"
        assert run(capfd, "status", folder)[0] == 0
        repository.add_model(2, 2)
        repository.publish()
        assert first.stdout.readline() == "Runs version 2 (fp32), epoch 2.\n"
        first.send_signal(signal.SIGTERM)
        assert first.wait(60) == 128 + signal.SIGTERM
        assert first.stderr.read() == "Stopped by SIGTERM; the next start goes on with the same model.\n"
    assert run(capfd, "once", folder)[0] == 0


def test_serving_agent_takes_a_new_model_by_itself(capfd, fleet, tmp_path):
    repository, _ = fleet
    folder = made(capfd, fleet, tmp_path / "device", "--poll-seconds", 0.2)
    repository.add_model(1, 1)
    repository.publish()
    with started("serve", folder, "--port", "0") as server:
        address = urlsplit(server.stdout.readline().removeprefix("Answers at ").strip())
        for version in ("1", "2"):
            assert server.stdout.readline() == f"Runs version {version} (fp32), epoch 1.\n"
            with closing(http.client.HTTPConnection(address.hostname, address.port, timeout=30)) as connection:
                images = random_images(1)
                tensor = {"name": "images", "datatype": "UINT8", "shape": list(images.shape), "data": images.tolist()}
                connection.request("POST", "/v2/models/classifier/infer", json.dumps({"inputs": [tensor]}))
                answer = json.loads(connection.getresponse().read())
                assert answer["model_version"] == version
                np.testing.assert_allclose(np.sum(answer["outputs"][0]["data"]), 1.0, atol=1e-5)
            repository.add_model(1, 2)
            repository.publish()
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 128 + signal.SIGINT
        assert server.stderr.read() == "Stopped by SIGINT; the next start goes on with the same model.\n"


def test_port_that_is_taken_is_one_sentence(capfd, fleet, tmp_path):
    folder = made(capfd, fleet, tmp_path / "device")
    port = urlsplit(fleet[1].url).port
    code, out, err = run(capfd, "serve", folder, "--port", port)
    assert (code, out) == (2, "")
    assert err == f"Cannot listen on 127.0.0.1:{port}: Address already in use.{PAGE}"
