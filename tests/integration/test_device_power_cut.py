"""Power is cut before each step of a device's disk: the model before is there or the new one, and nothing is lost.

A process of its own polls and is killed (SIGKILL) in front of a step. With it goes, as in a power cut, the content of
every file that was written and not yet synced.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from securesystemslib.dsse import Envelope

from dlfd_fleet.device.agent import Agent
from dlfd_fleet.device.answering import NoAnswerError
from dlfd_fleet.device.contract import DeviceReport
from dlfd_fleet.device.folder import DeviceFolder, DeviceSettings, init_device
from dlfd_fleet.exceptions import DeviceError
from tests.tuf_repository import Coordinator, TufRepository, sha256, tiny_model

STEPS = ("replace", "fsync", "unlink", "rmdir", "mkdir")
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload([__name__])


def poll_and_die(path: Path, last: int) -> None:
    """Poll; die in front of this step. Ends with 0 if there are fewer steps."""
    count, synced = itertools.count(), {file.stat().st_ino for file in path.rglob("*") if file.is_file()}

    def lose_power() -> None:
        for file in path.rglob("*"):
            if file.is_file() and file.stat().st_ino not in synced:
                os.truncate(file, 0)
        os.kill(os.getpid(), signal.SIGKILL)

    def watched(name):
        step = getattr(os, name)

        def before(*arguments, **named):
            if next(count) == last:
                lose_power()
            if name == "fsync":
                synced.add(os.fstat(arguments[0]).st_ino)
            return step(*arguments, **named)

        return before

    for name in STEPS:
        setattr(os, name, watched(name))
    with suppress(DeviceError):
        Agent(DeviceFolder(path)).poll()
    os._exit(0)


def killed_before_each_step(prepared: Path, path: Path) -> Iterator[int]:
    """Yield after a death in front of each step, each from the same beginning."""
    for last in itertools.count():
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(prepared, path, symlinks=True)
        process = _FORKS.Process(target=poll_and_die, args=(path, last))
        process.start()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        if process.exitcode == 0:
            return
        yield last


@pytest.fixture
def fleet(tmp_path):
    repository = TufRepository(tmp_path / "repository")
    with Coordinator(repository.folder).running() as coordinator:
        settings = DeviceSettings(url=coordinator.url, formats=("fp32",))
        init_device(tmp_path / "prepared", settings, repository.root_file)
        yield repository, coordinator, tmp_path


def version_of(agent: Agent) -> str | None:
    try:
        return agent.answering.loaded().model.version
    except NoAnswerError:
        return None


def told(coordinator: Coordinator) -> list[DeviceReport]:
    return [
        DeviceReport.model_validate_json(Envelope.from_dict(json.loads(body)).payload) for body in coordinator.reports
    ]


def test_power_cut_at_any_step_of_an_update_leaves_the_old_model_or_the_new(fleet):
    repository, _, folder = fleet
    repository.add_model(1, 1)
    repository.publish()
    Agent(DeviceFolder(folder / "prepared")).poll()
    repository.add_model(1, 2)
    repository.publish()
    seen = []
    for _ in killed_before_each_step(folder / "prepared", folder / "device"):
        seen.append(version_of(Agent(DeviceFolder(folder / "device"))))
        agent = Agent(DeviceFolder(folder / "device"))
        agent.poll()
        assert version_of(agent) == "2"
    assert seen == sorted(seen)
    assert set(seen) == {"1", "2"}
    assert len(seen) > 20


def test_power_cut_at_any_step_of_an_erasure_never_brings_the_forbidden_model_back_and_loses_no_purge(fleet):
    repository, coordinator, folder = fleet
    repository.add_model(1, 1)
    repository.publish()
    Agent(DeviceFolder(folder / "prepared")).poll()
    repository.add_model(2, 2)
    repository.publish()
    seen, before = [], told(coordinator)[-1].nonce
    coordinator.reports.clear()
    for _ in killed_before_each_step(folder / "prepared", folder / "device"):
        device = DeviceFolder(folder / "device")
        version = version_of(Agent(device))
        seen.append((device.floor.read(), version))
        assert version != "1" or device.floor.read() == 1
        agent = Agent(device)
        agent.poll()
        assert version_of(agent) == "2"
        assert device.floor.read() == 2
        purged = {digest for report in told(coordinator) for digest in report.purged}
        assert sha256(tiny_model("1", 1, 1)) in purged
        assert agent.state.purged == ()
        taken = before
        for report in told(coordinator):  # no cut looks like a second machine with this device's key
            assert report.nonce == taken or taken in report.follows
            taken = report.nonce
        nonces = [report.nonce for report in told(coordinator)]
        coordinator.reports.clear()
        assert len(set(nonces)) >= len(nonces) - 1  # the one that was under way may come twice, under one nonce
    assert seen == sorted(seen, key=lambda pair: (pair[0], pair[1] or ""))
    assert {(1, "1"), (2, "2")} <= set(seen)


def test_power_cut_at_any_step_of_making_a_device_leaves_a_whole_folder_or_none(fleet):
    repository, coordinator, folder = fleet
    settings = DeviceSettings(url=coordinator.url)
    for last in itertools.count():
        path = folder / f"new-{last}"
        process = _FORKS.Process(target=init_and_die, args=(path, settings, repository.root_file, last))
        process.start()
        process.join()
        if process.exitcode == 0:
            break
        if path.exists():
            assert DeviceFolder(path).floor.read() == 0
    assert last > 3


def init_and_die(path: Path, settings: DeviceSettings, root: Path, last: int) -> None:
    count = itertools.count()

    def watched(step):
        def before(*arguments, **named):
            if next(count) == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(*arguments, **named)

        return before

    for name in STEPS:
        setattr(os, name, watched(getattr(os, name)))
    init_device(path, settings, root)
    os._exit(0)
