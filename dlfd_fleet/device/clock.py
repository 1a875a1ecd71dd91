"""A clock that never goes back, for leases on a device whose own clock can be set."""

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
"""Latest valid time, so that a lease can always be added."""


class Clock:
    """The greatest time that this device has seen, kept on disk; between polls the monotonic clock continues it.

    Parameters
    ----------
    file
        File of the greatest time. If it is damaged, time starts at the device's own clock.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._kept = _read(file)
        self._greatest = max(self._kept, _wall())
        self._at = time.monotonic()
        self._looking = threading.Lock()

    def now(self) -> datetime:
        """Return the time, which never decreases."""
        with self._looking:
            at = time.monotonic()
            self._greatest = min(max(self._greatest + timedelta(seconds=at - self._at), _wall()), _LAST)
            self._at = at
            return self._greatest

    def keep(self) -> None:
        """Write the time to disk if it has changed and the disk accepts it."""
        now = self.now()
        if now - self._kept >= _NEWS:
            with suppress(OSError):
                write_durably(self._file, now.isoformat().encode())
                self._kept = now

    def trust(self) -> None:
        """Trust the device's own clock, even if it is behind; only the owner may do this.

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
