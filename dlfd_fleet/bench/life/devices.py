"""Two devices of the fleet, and what they update from: one hears of every release, the other of every fourth."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from dlfd_fleet.delivery import releases
from dlfd_fleet.delivery.delivery import KEYS, Delivery, opened
from dlfd_fleet.delivery.publish import publish
from dlfd_fleet.delivery.repository import TRUSTED_ROOT
from dlfd_fleet.delivery.server import application
from dlfd_fleet.device import install
from dlfd_fleet.device.agent import Agent
from dlfd_fleet.device.folder import DeviceFolder, DeviceSettings, init_device
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.federation.release.publication import released_model
from dlfd_fleet.settings import Settings

_SKIPPED = 3
_HOST = "127.0.0.1"
_NAMES = ("steady", "rare")


class Devices:
    """The devices of one fleet.

    Parameters
    ----------
    folder
        Of the devices' own folders.
    """

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._settings, self._folder = settings, folder

    def begin(self) -> None:
        """Make a repository and both devices, unless they are there."""
        if (self._folder / _NAMES[-1]).exists():
            return
        with opened(self._settings, create=True) as delivery:
            repository = delivery.repository
            if not (repository.folder / TRUSTED_ROOT).exists():
                repository.create(repository.folder / KEYS)
            for name in _NAMES:
                if (self._folder / name).exists():
                    continue
                made = init_device(self._folder / name, _at(1), repository.folder / TRUSTED_ROOT)
                delivery.devices.enroll(made.signer.public_key, name, delivery.clock())

    def hear(self, number: int, store: Store) -> int:
        """Publish the champion, and let those devices poll that hear of it; return how many do not run it then.

        A device that keeps a file of an earlier epoch counts, too.
        """
        champion = store.champions.current()
        if champion is None:
            return 0
        with opened(self._settings) as delivery:
            model = released_model(store, self._settings, champion.job)
            # It is there after a life that was killed, and after an erasure that released nothing.
            listed = releases.listed(delivery.repository.read()).values()
            if model.version not in {release.version for release in listed}:
                publish(delivery.repository, delivery.devices, model)
            polling = [name for name in _NAMES if name == _NAMES[0] or number % (_SKIPPED + 1) == 0]
            with _served(delivery) as port:
                return sum(self._is_wrong(name, port, champion.epoch) for name in polling)

    def _is_wrong(self, name: str, port: int, epoch: int) -> bool:
        (self._folder / name / "settings.json").write_text(_at(port).model_dump_json(), encoding="utf-8")
        folder = DeviceFolder(self._folder / name)
        with folder.only_agent():
            agent = Agent(folder)
            agent.poll()
            current = agent.state.current
        kept = [install.epoch_of(path) for path in install.model_folders(folder)]
        return current is None or current.release.epoch != epoch or min(kept) < epoch


def _at(port: int) -> DeviceSettings:
    return DeviceSettings(url=f"http://{_HOST}:{port}", formats=("fp32",))


@contextmanager
def _served(delivery: Delivery) -> Iterator[int]:
    """Serve a delivery on a free port while the block runs."""
    with socket.socket() as listening:
        listening.bind((_HOST, 0))
        server = uvicorn.Server(uvicorn.Config(application(delivery), log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        try:
            yield int(listening.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join()
