"""The floor: the least erasure epoch that may run on this device. It only rises."""

from __future__ import annotations

import re
from pathlib import Path

from dlfd_fleet.device.contract import MOST
from dlfd_fleet.device.durable import read_copies, write_twice
from dlfd_fleet.exceptions import DeviceError

_NUMBER = re.compile(rb"[0-9]{1,10}")


class Floor:
    """A number on disk, twice; outside of the TUF folder, so that wiping that does not lower it.

    Parameters
    ----------
    file
        Where it is kept; its copy lies beside it.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._seen: int | None = None

    def create(self) -> None:
        """Put the floor of a new device on disk."""
        write_twice(self._file, b"0")

    def read(self) -> int:
        """Return the greatest epoch that any copy tells, or that this process has seen.

        Raises
        ------
        DeviceError
            If there is none: nobody can tell then what this device was told to forget.
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
        """Raise the floor, or mend a damaged copy; a lower epoch changes nothing.

        Raises
        ------
        OSError
            If the disk refuses; :meth:`read` tells the raised floor all the same, as long as this process lives.
        DeviceError
            As of :meth:`read`.
        """
        self._seen = max(self.read(), epoch)
        wanted = b"%d" % self._seen
        if read_copies(self._file) != [wanted, wanted]:
            write_twice(self._file, wanted)
