"""Record jobs in MLflow, through an outbox on disk that one thread sends to the server.

:class:`Tracker` takes a job's metrics, tags, figures, files and models, writes them to the outbox and returns at once.
If the server is away, they wait for the next job. :class:`Registry` reads and changes the versions of the registered
model.

Not stable: use MLflow's own API, or ``dlfd-fleet registry`` and ``dlfd-fleet outbox``.
"""

from dlfd_fleet.tracking.tracker import Tracker, open_registry, open_tracker

__all__ = ["Tracker", "open_registry", "open_tracker"]
