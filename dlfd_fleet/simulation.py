"""A fleet of virtual nodes on this machine: Flower's Simulation Runtime, started and stopped in one call."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from dlfd_fleet.configuration import CONFIG_VARIABLE, ENVIRONMENT_PREFIX, write_settings
from dlfd_fleet.cores import usable_cores
from dlfd_fleet.interruption import end, handled, own_children
from dlfd_fleet.ledger.site import site_folders
from dlfd_fleet.settings import Settings

if TYPE_CHECKING:
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid


_SECONDS_BETWEEN_TAKING_SIGNALS = 0.05
_OF_A_NODE = ("An exception was raised when processing a message by", "dlfd_fleet.exceptions.")


def simulate(settings: Settings, jobs: Callable[[Grid], None], client_app: ClientApp | None = None) -> None:
    """Run ``jobs(grid)`` in a ServerApp on Flower's Simulation Runtime, in process.

    Parameters
    ----------
    settings
        ``state_folder/sites`` holds the sites, one virtual node each.
    client_app
        What the nodes run; the fleet's own ClientApp when omitted.
    """
    # As Flower does it, the processes of the nodes import what this one can.
    paths = [*sys.path, *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ |= {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    from flwr.app import Context
    from flwr.serverapp import ServerApp
    from flwr.simulation import run_simulation

    from client.app import app as own_app

    failures: list[BaseException] = []
    interrupted = threading.Event()
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:  # noqa: ARG001 - Flower's signature
        try:
            jobs(InterruptibleGrid(grid, interrupted))  # type: ignore[arg-type]
        except BaseException as error:
            failures.append(error)

    nodes = len(site_folders(settings.state_folder))
    backend = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}

    def work() -> None:
        run_simulation(server_app, client_app or own_app, nodes, backend_config=backend)  # type: ignore[arg-type]

    with _settings_for_nodes(settings), _quiet("flwr", "ray"), _without_errors_of_nodes():
        _on_ray(work, interrupted)
    if failures:
        raise failures[0]


class InterruptibleGrid:
    """A grid whose next use after a signal raises KeyboardInterrupt, in the thread that the job runs in.

    Flower's Simulation Runtime runs a ServerApp beside the main thread, which alone gets the signal and then waits for
    the ServerApp for ever.
    """

    def __init__(self, grid: Grid, interrupted: threading.Event) -> None:
        self._grid, self._interrupted = grid, interrupted

    def __getattr__(self, name: str) -> Any:
        if self._interrupted.is_set():
            raise KeyboardInterrupt
        return getattr(self._grid, name)


def _on_ray(work: Callable[[], None], interrupted: threading.Event) -> None:
    """Do work while Ray runs, which Flower then uses; let the first signal set ``interrupted``.

    When Ray is down the signal is raised again, for whoever had it before; a second one is theirs at once. While Ray
    starts it takes SIGTERM for itself, in Python (not in a thread) and in C++, to end with a dump: it is taken back.

    Ray and the work have a thread of their own. The system may hand a signal to any thread, and Python's handler then
    waits until the main thread runs again, which Flower would block until its ServerApp ends.
    """
    import ray

    received: list[int] = []
    failures: list[BaseException] = []
    worked, over = threading.Event(), threading.Event()

    def start_and_work() -> None:
        try:
            ray.init(num_cpus=usable_cores(), log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
            if not interrupted.is_set():
                work()
        except BaseException as error:
            failures.append(error)
        worked.set()
        over.wait()  # Ray's processes end with the thread that started them

    with ExitStack() as signals:

        def note(number: int) -> None:
            interrupted.set()
            received.append(number)
            if len(received) > 1:
                signals.close()
                signal.raise_signal(number)

        take = signals.enter_context(handled(note))
        threading.Thread(target=start_and_work, name="ray", daemon=True).start()
        try:
            while not worked.wait(_SECONDS_BETWEEN_TAKING_SIGNALS):
                take()
        finally:
            orphans = own_children() if received else []  # some of Ray's see only later that it is gone
            ray.shutdown()
            end(orphans)
            over.set()
    if failures:
        raise failures[0]
    if received:
        signal.raise_signal(received[0])


@contextmanager
def _settings_for_nodes(settings: Settings) -> Iterator[None]:
    """Write the effective settings where the processes of the virtual nodes find them, and nothing but these.

    A variable goes above the file: one that names a real fleet's folder would send the nodes to that fleet's sites.
    """
    file = settings.state_folder / "effective-settings.json"
    write_settings(settings, file)
    before = {name: value for name, value in os.environ.items() if name.startswith(ENVIRONMENT_PREFIX)}
    for name in before:
        del os.environ[name]
    os.environ[CONFIG_VARIABLE] = str(file)
    try:
        yield
    finally:
        del os.environ[CONFIG_VARIABLE]
        os.environ |= before


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Show only errors of these libraries, because other lines would break the progress bars."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _without_errors_of_nodes() -> Iterator[None]:
    """Keep out of Flower's log what our handlers raise at a site: pages that end in the words that its reply has.

    A traceback is in the site's own log. That of a handler of another app is nowhere else, and stays.
    """

    def is_other(record: logging.LogRecord) -> bool:
        said = record.getMessage()
        return not any(words in said for words in _OF_A_NODE)

    logger = logging.getLogger("flwr")
    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)
