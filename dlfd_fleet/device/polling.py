"""Run an agent's loop: poll and wait until stopped."""

from __future__ import annotations

import random
import signal
import threading
import traceback
from collections.abc import Callable

from dlfd_fleet.device.agent import Agent
from dlfd_fleet.device.rules import delay
from dlfd_fleet.exceptions import DeviceError, UpdateRefusedError, UpdateUnreachableError

_FIRST_SECONDS = 10.0


def keep_polling(agent: Agent, interval: float, stopped: threading.Event, say: Callable[[str], object]) -> None:
    """Poll until stopped, and print what changed since the last poll.

    Parameters
    ----------
    interval
        Mean seconds between polls; longer after failures.
    stopped
        Ends the loop, after the current poll.
    """
    generator, failures, said = random.Random(), 0, ""  # noqa: S311 - spreads polls, guards nothing
    stopped.wait(
        generator.uniform(0.0, min(interval, _FIRST_SECONDS))
    )  # after a power failure all devices start at once
    while not stopped.is_set():
        words = ""
        try:
            agent.poll()
            failures = 0
        except DeviceError as error:
            failures = failures + 1 if isinstance(error, UpdateRefusedError | UpdateUnreachableError) else 0
            words = f"{error} "
        except Exception:  # a defect of ours must keep the device neither from answering nor from hearing of erasures
            failures += 1
            words = "This poll failed because of a bug; see the traceback. "
            traceback.print_exc()
        words += _state(agent)
        if words != said:
            say(words)
        said = words
        stopped.wait(delay(interval, failures, generator))


class Stopped(threading.Event):
    """Set by SIGTERM, SIGINT or SIGHUP, of which ``number`` is the last that came."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup ignores it
            signal.signal(signal.SIGHUP, self._stop)

    def _stop(self, number: int, _frame: object) -> None:
        self.number = number
        self.set()


def _state(agent: Agent) -> str:
    try:
        release = agent.answering.loaded().release
    except DeviceError as error:
        return str(error)
    unreported = f" {agent.state.unreported}" if agent.state.unreported else ""
    return f"Runs version {release.version} ({release.format}), epoch {release.epoch}.{unreported}"
