"""Signals that end a command: SIGINT, SIGTERM and SIGHUP end it in one way, and the processes that it started with it.

A handler raises KeyboardInterrupt in the main thread, so that every ``with`` and ``finally`` on the way does its part.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from psutil import Process

ENDING_SIGNALS = tuple(
    signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP") if name in signal.Signals.__members__
)
_PATIENCE, _SECONDS_UNTIL_AGAIN = 5.0, 0.05


class Interruption:
    """Which signal has come, if one has."""

    def __init__(self) -> None:
        self.number = 0

    def __bool__(self) -> bool:
        return bool(self.number)

    @property
    def exit_code(self) -> int:
        """The exit code that a shell reports for a process ended by the signal."""
        return 128 + self.number


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Make the signals raise KeyboardInterrupt in this block, and note which one came."""
    interruption = Interruption()

    def interrupt(number: int) -> None:
        interruption.number = number
        raise KeyboardInterrupt

    def raise_again(unraisable: sys.UnraisableHookArgs) -> None:
        # Python drops what is raised while it collects garbage or runs a callback of a weak reference.
        if interruption and issubclass(unraisable.exc_type, KeyboardInterrupt):
            threading.Timer(_SECONDS_UNTIL_AGAIN, signal.raise_signal, (interruption.number,)).start()
        else:
            hook(unraisable)

    hook = sys.unraisablehook
    sys.unraisablehook = raise_again
    try:
        with handled(interrupt):
            yield interruption
    finally:
        sys.unraisablehook = hook


@contextmanager
def handled(handle: Callable[[int], None]) -> Iterator[Callable[[], None]]:
    """Call a function for the signals in this block; yield a function that restores this after a library changed it.

    SIGHUP stays ignored under ``nohup``. In another thread than the main one nothing is changed: Python allows it there
    alone.
    """
    before = {number: signal.getsignal(number) for number in ENDING_SIGNALS}
    in_main_thread = threading.current_thread() is threading.main_thread()
    heard = [number for number in before if in_main_thread and not _is_kept_by_nohup(number)]

    def handler(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature of handlers
        handle(number)

    def take() -> None:
        for number in heard:
            signal.signal(number, handler)

    take()
    try:
        yield take
    finally:
        for number in heard:
            signal.signal(number, before[number])


def _is_kept_by_nohup(number: int) -> bool:
    """Tell of SIGHUP. Scripts ignore SIGINT for what they start in the background; who sends it still means it."""
    return number not in (signal.SIGINT, signal.SIGTERM) and signal.getsignal(number) is signal.SIG_IGN


def own_children() -> list[Process]:
    """Return the processes that this one started, and theirs, but for those that were given a session of their own.

    The latter are meant to stay, such as the SuperLink that ``flwr run`` starts. Python's own resource tracker is left
    out, too: it cleans up when this process is gone.
    """
    try:
        import psutil
    except ImportError:
        return []  # an installation whose commands start no processes
    children = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            tracks_resources = any("multiprocessing.resource_tracker" in word for word in child.cmdline())
            if os.getsid(child.pid) == os.getsid(0) and not tracks_resources:
                children.append(child)
    return children


def end(processes: list[Process]) -> None:
    """End processes, if need be by force, and wait until they are gone."""
    if not processes:
        return
    import psutil

    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=_PATIENCE)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=_PATIENCE)
