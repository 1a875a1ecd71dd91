"""What a job measures goes to MLflow, and what the gate read is kept for the job's pictures."""

from __future__ import annotations

from collections.abc import Mapping

from dlfd_fleet.federation.rounds.job_context import SiteUpdate
from dlfd_fleet.tracking import Tracker


class TrackedJob:
    """Records a job in its MLflow run.

    Attributes
    ----------
    readings
        What the gate read, by number of the round.
    """

    def __init__(self, tracker: Tracker, job: str) -> None:
        self._tracker, self._job = tracker, job
        self.readings = dict[int, Mapping[str, float]]()

    def metrics(self, values: Mapping[str, float], step: int, attempt: int | None = None) -> None:
        """Log metrics of a round; those of an attempt in its own run, too."""
        self._tracker.log_metrics(self._job, values, step=step)
        if attempt is not None:
            self._tracker.log_metrics(self._job, values, step=step, attempt=attempt)

    def gate(self, values: Mapping[str, float], step: int, attempt: int) -> None:
        """Log what the gate read after a round, and keep it."""
        self.metrics(values, step, attempt)
        self.readings[step] = values

    def update(self, update: SiteUpdate) -> None:
        """Log what a site's update was, in the run of its site."""
        self._tracker.log_metrics(self._job, update.metrics(), step=update.round, site=update.site)

    def dataset(self, profile: Mapping[str, object], purpose: str) -> None:
        """Log what the sites hold, in counts."""
        self._tracker.log_dataset(self._job, "fleet", profile, purpose)

    def tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""
        self._tracker.set_tags(self._job, tags)
