"""MLflow: the only room that imports it. A job writes into an outbox on disk; one thread carries it to the server."""

from dlfd_fleet.tracking.tracker import ChampionVersion, Tracker, open_tracker

__all__ = ["ChampionVersion", "Tracker", "open_tracker"]
