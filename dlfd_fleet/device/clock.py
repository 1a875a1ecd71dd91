"""A clock that does not go back: what leases are measured with on a device whose own clock can be set."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from dlfd_fleet.device.durable import write_durably
from dlfd_fleet.exceptions import DeviceError

_NEWS = timedelta(minutes=1)
_LAST = datetime(9000, 1, 1, tzinfo=UTC)
"""No later time counts, so that a lease can be added to any."""


class Clock:
    """The greatest time that this device has seen, on disk; between two polls it goes on with the monotonic clock.

    Parameters
    ----------
    file
        Where the greatest time is kept. If it is damaged, time begins at the device's own clock.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._kept = _read(file)
        self._greatest = max(self._kept, _wall())
        self._at = time.monotonic()
        self._looking = threading.Lock()

    def now(self) -> datetime:
        """Return the time, never before one that was returned or kept earlier."""
        with self._looking:
            at = time.monotonic()
            self._greatest = min(max(self._greatest + timedelta(seconds=at - self._at), _wall()), _LAST)
            self._at = at
            return self._greatest

    def keep(self) -> None:
        """Put the time on disk, if it is news and the disk takes it."""
        now = self.now()
        if now - self._kept >= _NEWS:
            with suppress(OSError):
                write_durably(self._file, now.isoformat().encode())
                self._kept = now

    def trust(self) -> None:
        """Take the device's own clock for right, even if it is behind: what the owner may say, and nobody else.

        Raises
        ------
        DeviceError
            If the disk refuses.
        """
        self._greatest = self._kept = _wall()
        try:
            write_durably(self._file, self._greatest.isoformat().encode())
        except OSError as error:
            raise DeviceError(f"Cannot write {self._file}: {error.strerror}.") from error


def _read(file: Path) -> datetime:
    with suppress(OSError, ValueError, OverflowError):
        return min(datetime.fromisoformat(file.read_text("ascii")).astimezone(UTC), _LAST)
    return datetime.min.replace(tzinfo=UTC)


def _wall() -> datetime:
    return min(datetime.now(UTC), _LAST)
