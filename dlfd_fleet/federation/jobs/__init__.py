"""Jobs from beginning to end: training, erasure, and the commands that start, show, stop and report them.

In go a Flower grid and the settings; out comes a :class:`~dlfd_fleet.federation.records.JobRecord`, and everything
that the job made, in the state folder and in MLflow. The erasure itself, step by step, is
:mod:`~dlfd_fleet.federation.jobs.erase`.

Examples
--------
What the fleet's own ServerApp does::

    record = run_jobs(grid, "erase", load_settings().settings, ConsoleProgress(console))
    print(record.note)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dlfd_fleet.federation.jobs.run import run_jobs
    from dlfd_fleet.federation.jobs.strategy import FederatedUnlearning, JobResult

__all__ = ["FederatedUnlearning", "JobResult", "run_jobs"]


def __getattr__(name: str) -> object:
    """Load what runs jobs when it is asked for: the commands that only show them answer in half the time."""
    if name == "run_jobs":
        from dlfd_fleet.federation.jobs.run import run_jobs

        return run_jobs
    if name in __all__:
        from dlfd_fleet.federation.jobs import strategy

        return getattr(strategy, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
