"""A clock that does not go back: what leases are measured with on a device whose own clock can be set."""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from dlfd_fleet.device.durable import write_durably

_NEWS = timedelta(minutes=1)


class Clock:
    """The greatest time that this device has seen, on disk; between two looks it goes on with the monotonic clock.

    Parameters
    ----------
    file
        Where the greatest time is kept. If it is damaged, time begins at the device's own clock.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._kept = _read(file)
        self._greatest = max(self._kept, datetime.now(UTC))
        self._at = time.monotonic()

    def now(self) -> datetime:
        """Return the time, never before one that was returned or kept earlier."""
        passed = timedelta(seconds=time.monotonic() - self._at)
        self._greatest, self._at = max(self._greatest + passed, datetime.now(UTC)), time.monotonic()
        return self._greatest

    def keep(self) -> None:
        """Put the time on disk, if it is news; a disk that refuses costs no more than a minute of memory."""
        if self.now() - self._kept >= _NEWS:
            with suppress(OSError):
                write_durably(self._file, self._greatest.isoformat().encode())
                self._kept = self._greatest

    def trust(self) -> None:
        """Take the device's own clock for right, even if it is behind: what the owner may say, and nobody else."""
        self._greatest = self._kept = datetime.now(UTC)
        write_durably(self._file, self._greatest.isoformat().encode())


def _read(file: Path) -> datetime:
    with suppress(OSError, ValueError):
        return datetime.fromisoformat(file.read_text("ascii")).astimezone(UTC)
    return datetime.min.replace(tzinfo=UTC)
