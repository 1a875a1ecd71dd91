"""The model that answers: exchanged between two predictions, and withheld when none may run."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from dlfd_fleet.device.clock import Clock
from dlfd_fleet.device.contract import Release
from dlfd_fleet.device.inference import DeviceModel
from dlfd_fleet.device.lease import NEVER
from dlfd_fleet.exceptions import DeviceError

WAIT_SECONDS = 30.0
"""Longest wait for a model that is being installed, where the one before may not run any more."""


class NoAnswerError(DeviceError):
    """No answer may be given now, or none can; the text says why."""


@dataclass(frozen=True)
class Loaded:
    """A model in memory, and what was signed of it."""

    model: DeviceModel
    release: Release


class Answering:
    """Holds the model of an agent for the threads that predict with it.

    Parameters
    ----------
    clock
        Measures the lease.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._loaded: Loaded | None = None
        self._why = "no model is installed yet"
        self._lease_until: datetime | None = None
        self._installing = False

    @property
    def has_model(self) -> bool:
        """Whether there is a model that may answer, lease or not."""
        return self._loaded is not None

    def answer_with(self, loaded: Loaded) -> None:
        """Take this model from the next prediction on; those that have begun end with the one that they began with."""
        with self._changed:
            self._loaded = loaded
            self._changed.notify_all()

    def withhold(self, why: str) -> None:
        """Answer no more."""
        with self._changed:
            self._loaded, self._why = None, why

    def lease(self, until: datetime | None) -> None:
        """Set when to stop to answer; None for never."""
        with self._changed:
            self._lease_until = until

    @contextmanager
    def installing(self) -> Iterator[None]:
        """Let predictions that find no model wait for the one that is being installed."""
        with self._changed:
            self._installing = True
        try:
            yield
        finally:
            with self._changed:
                self._installing = False
                self._changed.notify_all()

    def loaded(self, wait: float = 0.0) -> Loaded:
        """Return the model to predict with.

        Parameters
        ----------
        wait
            Seconds to wait for a model that is being installed.

        Raises
        ------
        NoAnswerError
            If the lease has run out, or no model may run.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._loaded or not self._installing, wait)
            check_lease(self._lease_until, self._clock.now())
            if self._loaded is None:
                raise NoAnswerError(f"This device has no model that may run: {self._why}.")
            return self._loaded


def check_lease(until: datetime | None, now: datetime) -> None:
    """Refuse to answer after the end of a lease; None is no lease.

    Raises
    ------
    NoAnswerError
        If it has run out.
    """
    if until == NEVER:
        raise NoAnswerError("This device has a lease, and has never heard from its coordinator: update it first.")
    if until is not None and now >= until:
        raise NoAnswerError(
            f"The lease ran out at {until:%Y-%m-%d %H:%M} UTC: this device answers again when it has heard from its "
            "coordinator, and the coordinator has taken a report of it."
        )
