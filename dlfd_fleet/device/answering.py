"""Hold the model that predicts; replace it between predictions, and withhold it if it may not run."""

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
"""Longest wait for a model that is being installed, if the earlier one may not run."""


class NoAnswerError(DeviceError):
    """There is no answer now; the text says why."""


@dataclass(frozen=True)
class Loaded:
    """A model in memory with its signed release."""

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
        """Whether there is a model, whatever the lease."""
        return self._loaded is not None

    def answer_with(self, loaded: Loaded) -> None:
        """Use this model from the next prediction on; running predictions finish with their model."""
        with self._changed:
            self._loaded = loaded
            self._changed.notify_all()

    def withhold(self, why: str) -> None:
        """Stop answering."""
        with self._changed:
            self._loaded, self._why = None, why

    def lease(self, until: datetime | None) -> None:
        """Set the end of the lease; None for no end."""
        with self._changed:
            self._lease_until = until

    @contextmanager
    def installing(self) -> Iterator[None]:
        """Make predictions wait for the model that is being installed."""
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
            If the lease is over, or no model may run.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._loaded or not self._installing, wait)
            check_lease(self._lease_until, self._clock.now())
            if self._loaded is None:
                raise NoAnswerError(f"This device has no model that may run: {self._why}.")
            return self._loaded


def check_lease(until: datetime | None, now: datetime) -> None:
    """Refuse to answer after the end of a lease; None means no lease.

    Raises
    ------
    NoAnswerError
        If it has run out.
    """
    if until == NEVER:
        raise NoAnswerError("This device has a lease, and was never in contact with its coordinator: update it first.")
    if until is not None and now >= until:
        raise NoAnswerError(
            f"The lease ran out at {until:%Y-%m-%d %H:%M} UTC: this device answers again when it has heard from its "
            "coordinator, and the coordinator has taken a report of it."
        )
