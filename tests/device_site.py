"""One coordinator and one device of it, with real HTTP, real TUF and real ONNX Runtime."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from securesystemslib.dsse import Envelope

from dlfd_fleet.device.agent import Agent
from dlfd_fleet.device.contract import REPORT_TYPE, DeviceReport
from dlfd_fleet.device.folder import DeviceFolder, DeviceSettings, init_device
from dlfd_fleet.exceptions import DeviceError, UpdateRefusedError
from tests.tuf_repository import Coordinator, TufRepository, random_images, sha256


@dataclass
class Site:
    """A coordinator and one device of it."""

    repository: TufRepository
    coordinator: Coordinator
    path: Path

    def folder(self) -> DeviceFolder:
        return DeviceFolder(self.path)

    def started(self) -> Agent:
        return Agent(self.folder())

    def publish(self, *arguments, **named) -> str:
        target = self.repository.add_model(*arguments, **named)
        self.repository.publish()
        return target

    def reports(self) -> list[DeviceReport]:
        found = []
        for body in self.coordinator.reports:
            envelope = Envelope.from_dict(json.loads(body))
            key = self.folder().signer.public_key
            envelope.verify([key], 1)
            assert envelope.payload_type == REPORT_TYPE
            report = DeviceReport.model_validate_json(envelope.payload)
            assert report.device == key.keyid
            found.append(report)
        return found

    def change_settings(self, **changes) -> None:
        settings = self.folder().settings.model_copy(update=changes)
        (self.path / "settings.json").write_text(settings.model_dump_json())

    def model_files(self) -> set[str]:
        """Digests of every model file in the device's folder, wherever it lies."""
        return {sha256(file.read_bytes()) for file in self.path.rglob("*.onnx*")}


@contextmanager
def running_site(folder: Path, device: Path | None = None) -> Iterator[Site]:
    """Make both in a folder, or the device in one of its own, with nothing published yet."""
    device = device or folder / "device"
    repository = TufRepository(folder / "repository")
    with Coordinator(repository.folder).running() as coordinator:
        settings = DeviceSettings(url=coordinator.url, formats=("fp32",))
        init_device(device, settings, repository.root_file)
        yield Site(repository, coordinator, device)


def runs(agent: Agent, version: str, epoch: int) -> bool:
    """Whether the agent answers with this model: the version it is told, and what the model itself computes."""
    loaded = agent.answering.loaded()
    np.testing.assert_allclose(loaded.model.predict(random_images(3)).sum(axis=1), 1.0, atol=1e-5)
    return (loaded.release.version, loaded.release.epoch, loaded.model.version) == (version, epoch, version)


def refused(agent: Agent, words: str, kind: type[DeviceError] = UpdateRefusedError) -> None:
    with pytest.raises(kind, match=words):
        agent.poll()


def set_clock(monkeypatch, now: datetime) -> None:
    """Set the wall clock of the device's code; its monotonic clock goes on."""

    class Set(datetime):
        @classmethod
        def now(cls, tz=None):
            return now.astimezone(tz)

    for module in ("agent", "clock"):
        monkeypatch.setattr(f"dlfd_fleet.device.{module}.datetime", Set)
