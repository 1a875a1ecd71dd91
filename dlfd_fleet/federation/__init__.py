"""Flower: what travels, the strategy, and the coordinator of a job. With the apps, the only package that imports it.

A fleet learns to forget by two calls, one in its ClientApp and one in its ServerApp.

Examples
--------
>>> from dlfd_fleet.federation import FederatedUnlearning, Task, add_unlearning

A :class:`Task` is the model and the data of a fleet. ``add_unlearning(app, task)`` lets a site's ClientApp answer the
messages of an erasure. ``FederatedUnlearning(task=task).start(grid)`` asks the sites who wants to be forgotten, forgets
them, and judges the result by attack.

See Also
--------
protocol : The messages, which both sides know.
site : A site's side of them.
records : What the coordinator keeps on disk.
rounds : The rounds and audits that jobs are made of.
release : Which model the fleet and its devices run.
jobs : Training and erasure from beginning to end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dlfd_fleet.federation.jobs.strategy import FederatedUnlearning
    from dlfd_fleet.federation.site.handlers import add_unlearning
    from dlfd_fleet.federation.task import Task

__all__ = ["FederatedUnlearning", "Task", "add_unlearning"]


def __getattr__(name: str) -> object:
    """Load one side only: a site's process, which is started for each message, has no use for the coordinator's."""
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
