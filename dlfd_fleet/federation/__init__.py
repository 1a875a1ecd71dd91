"""Forget people in a Flower fleet: a task, the site's side and the coordinator's side.

A fleet needs two calls: ``add_unlearning`` around its ClientApp, and ``FederatedUnlearning`` in its ServerApp. Only
this package and the apps import Flower. Stable: the names in ``__all__``.

Examples
--------
>>> from dlfd_fleet.federation import FederatedUnlearning, Task, add_unlearning

A :class:`Task` names the model and the data of a fleet. ``add_unlearning(app, task)`` makes a site's ClientApp answer
the messages of an erasure. ``FederatedUnlearning(task=task).start(grid)`` asks the sites for requests, unlearns these
people, audits the result and returns it with its verdict.

See Also
--------
protocol : The messages between both sides. site : The site's side. records : Jobs and models on the coordinator's disk.
rounds : Rounds and audits, the parts of jobs. release : The model that the fleet and its devices use. jobs : Whole
jobs: training, erasure, references.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dlfd_fleet.federation.jobs.strategy import FederatedUnlearning
    from dlfd_fleet.federation.site.handlers import add_unlearning
    from dlfd_fleet.federation.task import Task

__all__ = ["FederatedUnlearning", "Task", "add_unlearning"]


def __getattr__(name: str) -> object:
    """Load only the side that is used, because a site's process starts for each message."""
    if name == "FederatedUnlearning":
        from dlfd_fleet.federation.jobs.strategy import FederatedUnlearning

        return FederatedUnlearning
    if name == "add_unlearning":
        from dlfd_fleet.federation.site.handlers import add_unlearning

        return add_unlearning
    if name == "Task":
        from dlfd_fleet.federation.task import Task

        return Task
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
