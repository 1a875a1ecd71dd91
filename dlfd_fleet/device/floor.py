"""Keep the floor: the lowest erasure epoch that may run on this device. It only rises."""

from __future__ import annotations

import re
from pathlib import Path

from dlfd_fleet.device.contract import MOST
from dlfd_fleet.device.durable import read_copies, write_twice
from dlfd_fleet.exceptions import DeviceError

_NUMBER = re.compile(rb"[0-9]{1,10}")


class Floor:
    """The floor on disk, stored twice, outside the TUF folder, so that deleting that folder does not lower it.

    Parameters
    ----------
    file
        Its file; the copy is beside it.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._seen: int | None = None

    def create(self) -> None:
        """Write the floor of a new device."""
        write_twice(self._file, b"0")

    def read(self) -> int:
        """Return the greatest epoch of any copy, or that this process has seen.

        Raises
        ------
        DeviceError
            If both copies are missing or damaged: then the floor is unknown.
        """
        known = [int(content) for content in read_copies(self._file) if _NUMBER.fullmatch(content)]
        known = [epoch for epoch in known if epoch <= MOST]  # what is no epoch was never written here: damage
        known += [] if self._seen is None else [self._seen]
        if not known:
            raise DeviceError(
                f"Both copies of the floor, {self._file} and its .copy, are damaged or missing: this device cannot "
                "tell which models it may run; make it anew with 'dlfd-fleet-device init' in another folder."
            )
        self._seen = max(known)
        return self._seen

    def raise_to(self, epoch: int) -> None:
        """Raise the floor, or repair a damaged copy; a lower epoch changes nothing.

        Raises
        ------
        OSError
            If the disk refuses; :meth:`read` returns the raised floor while this process runs.
        DeviceError
            As in :meth:`read`.
        """
        self._seen = max(self.read(), epoch)
        wanted = b"%d" % self._seen
        if read_copies(self._file) != [wanted, wanted]:
            write_twice(self._file, wanted)
