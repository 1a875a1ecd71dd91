"""The delivery of one coordinator: its repository, its devices, and what is done to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

from dlfd_fleet.delivery import rollout
from dlfd_fleet.delivery.devices import Device, DeviceStore
from dlfd_fleet.delivery.keys import KeyRing
from dlfd_fleet.delivery.repository import Repository, now_utc
from dlfd_fleet.device.contract import ROLLOUT_ROLE, DeviceReport, Rollout
from dlfd_fleet.exceptions import DeliveryError
from dlfd_fleet.settings import DeliverySettings, Settings

RolloutStep = Literal["start", "widen", "pause", "resume", "abort", "complete"]
KEYS = "keys"
"""Folder of the keys unless another one is named."""
DATABASE = "devices.db"


@dataclass(frozen=True)
class Delivery:
    """The repository, the devices, and the settings of both."""

    repository: Repository
    devices: DeviceStore
    settings: DeliverySettings
    clock: Callable[[], datetime]

    def receive(self, content: bytes) -> DeviceReport:
        """Take a device's report; a :class:`ReportRefusedError` says why it is not taken."""
        return self.devices.receive(content, self.clock(), timedelta(hours=self.settings.report_hours))

    def retire(self, device: str, reason: str) -> Device:
        """Retire a device, so that it keeps no erasure open; the rollout's key signs the reason."""
        contents = self.repository.read()
        signer = self.repository.keys.signers(ROLLOUT_ROLE, contents.targets.signed)[0]
        return self.devices.retire(device, reason, self.clock(), signer)

    def change_rollout(self, step: RolloutStep) -> Rollout:
        """Do what somebody decided about the rollout.

        Raises
        ------
        DeliveryError
            If there is no rollout, it is not at this step, or a key is missing.
        """
        shares = self.settings.shares
        rules: dict[RolloutStep, Callable[[Rollout], Rollout]] = {
            "start": lambda current: rollout.started(current, self.devices.canaries(), shares),
            "widen": lambda current: rollout.widened(current, shares),
            "pause": rollout.paused,
            "resume": rollout.resumed,
            "abort": rollout.aborted,
        }
        if step == "complete":
            return rollout.complete(self.repository, self.devices)
        return rollout.change(self.repository, rules[step])

    def health(self, current: Rollout) -> rollout.Health:
        """Return how devices fare with the release of a rollout."""
        since = self.devices.published_at(current.sequence)
        return rollout.health(current, self.devices.devices(), since, self.clock())

    def keep_up(self, *, only_due: bool = True) -> list[str]:
        """Sign again what would expire, and abort a rollout under which devices fail.

        Returns
        -------
        list of str
            What was done or could not be, a sentence each.
        """
        said = self._watch_rollout()
        return said + self.repository.refresh(only_due=only_due)

    def _watch_rollout(self) -> list[str]:
        current = rollout.read(self.repository, self.repository.read())
        if current is None or current.state not in ("running", "paused"):
            return []
        why = self.health(current).why_abort(self.settings)
        if why is None:
            return []
        rollout.change(self.repository, rollout.aborted)
        return [f"The rollout of publication {current.sequence} was aborted: {why}."]


def delivery_folder(settings: Settings) -> Path:
    """Return where the delivery's files are."""
    return settings.delivery.folder or settings.state_folder / "delivery"


def has_delivery(settings: Settings) -> bool:
    """Tell whether this coordinator publishes to devices: whether anything is known of a repository or of devices."""
    return delivery_folder(settings).is_dir() or settings.delivery.database is not None


@contextmanager
def opened(
    settings: Settings, keys: Sequence[Path] = (), clock: Callable[[], datetime] = now_utc, *, create: bool = False
) -> Iterator[Delivery]:
    """Open the delivery that the settings name.

    Parameters
    ----------
    keys
        Folders of private keys beside the delivery's own.
    create
        Make the folder if need be.

    Raises
    ------
    DeliveryError
        If there is no such folder and no other database of the devices, or that cannot be read.
    """
    folder = delivery_folder(settings)
    if not create and not has_delivery(settings):
        raise DeliveryError(f"There is no repository in {folder}; make one with `dlfd-fleet delivery init`.")
    repository = Repository(folder, KeyRing([folder / KEYS, *keys]), settings.delivery, clock)
    with DeviceStore(settings.delivery.database or folder / DATABASE) as devices:
        yield Delivery(repository, devices, settings.delivery, clock)
