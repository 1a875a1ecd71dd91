"""MLflow: a job writes into an outbox on disk; one thread carries it to the server."""

from dlfd_fleet.tracking.tracker import Tracker, open_registry, open_tracker

__all__ = ["Tracker", "open_registry", "open_tracker"]
