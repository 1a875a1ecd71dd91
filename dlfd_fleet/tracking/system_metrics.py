"""Record metrics of the coordinator's machine during a job, through the outbox.

MLflow's own thread stops when the server does not answer; this one does not need the server.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from mlflow.environment_variables import MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

from dlfd_fleet.exceptions import OutboxError
from dlfd_fleet.tracking.tracker import Tracker

_SECONDS = 10.0


@contextmanager
def sampled_system(tracker: Tracker, job: str, wanted: bool) -> Iterator[None]:
    """Record ``system/...`` metrics of a job while the context lasts, every ten seconds.

    The interval is MLflow's ``MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL``; the step of a sample is its second.
    """
    if not wanted:
        yield
        return
    ended = threading.Event()
    thread = threading.Thread(target=_sample, args=(tracker, job, ended), name="system-metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _sample(tracker: Tracker, job: str, ended: threading.Event) -> None:
    # The coordinator computes on no GPU; sites do.
    monitors = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    pause = MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL.get() or _SECONDS  # type: ignore[no-untyped-call]
    started = time.monotonic()
    while not ended.wait(pause):
        metrics: dict[str, float] = {}
        for monitor in monitors:
            monitor.collect_metrics()
            metrics |= monitor.aggregate_metrics()
            monitor.clear_metrics()
        named = {f"system/{name}": value for name, value in metrics.items()}
        with suppress(OutboxError):  # a sample is missing; the job hears of a full disk by what it says itself
            tracker.log_metrics(job, named, step=round(time.monotonic() - started))
