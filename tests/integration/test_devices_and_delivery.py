"""Real devices on the real delivery: rings, an erasure that ends when all have purged, failures that stop a rollout."""

from __future__ import annotations

import io
import shutil
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn
from rich.console import Console

from dlfd_fleet.delivery.delivery import Delivery
from dlfd_fleet.delivery.devices import DeviceStore
from dlfd_fleet.delivery.erasures import open_devices
from dlfd_fleet.delivery.keys import KeyRing, read_public_key
from dlfd_fleet.delivery.publish import ReleasedModel, publish
from dlfd_fleet.delivery.repository import Repository, now_utc
from dlfd_fleet.delivery.server import application
from dlfd_fleet.delivery.status import delivery_status
from dlfd_fleet.device.agent import Agent
from dlfd_fleet.device.answering import NoAnswerError
from dlfd_fleet.device.folder import DeviceFolder, DeviceSettings, init_device
from dlfd_fleet.exceptions import DeviceError
from dlfd_fleet.settings import DeliverySettings
from tests.tuf_repository import sha256, tiny_model

DEVICES = 4


@dataclass
class Fleet:
    """A delivery and its devices; the first one is a canary."""

    delivery: Delivery
    agents: list[Agent]
    settings: DeviceSettings
    folder: Path

    def publish(self, version: str, epoch: int, *, rings: bool = False) -> None:
        file = self.folder / f"{version}.onnx"
        file.write_bytes(tiny_model(version, epoch, seed=int(version)))
        model = ReleasedModel(version, epoch, {"fp32": file})
        publish(self.delivery.repository, self.delivery.devices, model, rings=rings)

    def polled(self) -> list[str | None]:
        """Let every device poll; return which version each answers with."""
        versions: list[str | None] = []
        for agent in self.agents:
            try:
                agent.poll()
                assert agent.state.unreported == ""
            except DeviceError as error:
                assert "self-test" in str(error)  # noqa: PT017 - the only failure that a test here asks for
            try:
                versions.append(agent.answering.loaded().release.version)
            except NoAnswerError:
                versions.append(None)
        return versions

    def keeping_open(self, epoch: int) -> int:
        return len(open_devices(self.delivery.devices, epoch))


@pytest.fixture
def fleet(tmp_path) -> Iterator[Fleet]:
    settings = DeliverySettings(
        root_keys=1, root_threshold=1, targets_keys=1, targets_threshold=1, shares=(1.0,), failed_share=0.1
    )
    repository = Repository(tmp_path / "delivery", KeyRing([tmp_path / "keys"]), settings, now_utc)
    repository.create(tmp_path / "keys")
    with DeviceStore(tmp_path / "devices.db") as store:
        delivery = Delivery(repository, store, settings, now_utc)
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            server = uvicorn.Server(uvicorn.Config(application(delivery, 3600.0), log_level="warning"))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
            thread.start()
            devices = DeviceSettings(url=f"http://127.0.0.1:{listening.getsockname()[1]}", formats=("fp32",))
            agents = []
            for number in range(DEVICES):
                path = tmp_path / f"device{number}"
                made = init_device(path, devices, repository.folder / "root.json")
                key = read_public_key(path / "device.pub")
                assert store.enroll(key, f"camera {number}", now_utc(), canary=number == 0) == made.device
                agents.append(Agent(made))
            yield Fleet(delivery, agents, devices, tmp_path)
            server.should_exit = True
            thread.join()


def test_erasure_goes_through_the_rings_and_ends_when_every_device_has_purged(fleet):
    fleet.publish("1", 0)
    assert fleet.polled() == ["1"] * DEVICES
    fleet.publish("2", 1, rings=True)
    assert fleet.polled() == ["1"] * DEVICES
    fleet.delivery.change_rollout("start")
    assert fleet.polled() == ["2", "1", "1", "1"]
    assert fleet.keeping_open(1) == DEVICES  # even the canary: it may still go back
    fleet.delivery.change_rollout("widen")
    assert fleet.polled() == ["2"] * DEVICES
    fleet.delivery.change_rollout("complete")
    away = fleet.agents.pop()
    assert fleet.polled() == ["2"] * (DEVICES - 1)
    assert fleet.keeping_open(1) == 1
    fleet.agents.append(away)
    assert fleet.polled() == ["2"] * DEVICES
    assert fleet.keeping_open(1) == 0
    purged = {digest for device in fleet.delivery.devices.devices() for digest in device.report.purged}
    assert purged == {sha256(tiny_model("1", 0, 1))}


def test_release_that_fails_on_a_canary_is_aborted_and_the_devices_go_back(fleet, monkeypatch):
    fleet.publish("1", 0)
    assert fleet.polled() == ["1"] * DEVICES
    fleet.publish("2", 0, rings=True)
    fleet.delivery.change_rollout("start")

    def fails_here(model, file, tolerance):
        raise DeviceError(f"The model {model.version} failed its self-test: this processor rounds otherwise.")

    with monkeypatch.context() as patched:
        patched.setattr("dlfd_fleet.device.install.run_self_test", fails_here)
        assert fleet.polled() == ["1"] * DEVICES
    (said,) = fleet.delivery.keep_up()
    assert "was aborted: 1 of 1 devices that tried it failed" in said
    (attack,) = fleet.delivery.devices.attacks()
    assert "failed its self-test" in attack.said
    assert fleet.polled() == ["1"] * DEVICES
    assert all(device.report.healthy for device in fleet.delivery.devices.devices())
    fleet.publish("3", 0)
    assert fleet.polled() == ["3"] * DEVICES


def test_a_copied_disk_raises_an_alarm_until_its_key_is_retired(fleet, tmp_path):
    fleet.publish("1", 0)
    fleet.polled()
    shutil.copytree(tmp_path / "device0", tmp_path / "copy")
    fleet.publish("2", 1)
    fleet.polled()
    assert fleet.keeping_open(1) == 0
    Agent(DeviceFolder(tmp_path / "copy")).poll()
    (standing,) = open_devices(fleet.delivery.devices, 1)
    assert (standing.device.name, "two machines have this key" in standing.reason) == ("camera 0", True)
    shown = Console(width=200, file=io.StringIO())
    shown.print(delivery_status(fleet.delivery))
    assert "camera 0: its report of" in shown.file.getvalue()
    assert "Erasure epoch 1: kept open by 1 of 4 devices" in shown.file.getvalue()
    fleet.publish("3", 1)
    fleet.polled()
    assert fleet.keeping_open(1) == 1
    fleet.delivery.retire("camera 0", "its disk was copied")
    assert fleet.keeping_open(1) == 0


def test_device_of_another_fleet_updates_and_its_report_is_not_taken(fleet, tmp_path):
    fleet.publish("1", 0)
    stranger = Agent(
        init_device(
            tmp_path / "stranger",
            fleet.settings,
            fleet.delivery.repository.folder / "root.json",
        )
    )
    stranger.poll()
    assert stranger.answering.loaded().release.version == "1"
    assert "is not of this fleet: enroll its public key" in stranger.state.unreported
