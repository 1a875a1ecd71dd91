"""Runs that somebody starts beside a job (``mlflow.start_run``) carry the job's tags."""

from __future__ import annotations

from mlflow.tracking.context.abstract_context import RunContextProvider

from dlfd_fleet.current_job import current_job_tags


class FleetRunContext(RunContextProvider):
    """Tags ``dlfd.job``, ``dlfd.kind`` and ``dlfd.epoch`` of the job that this process works on."""

    def in_context(self) -> bool:
        """Tell whether a job is going on in this process."""
        return bool(current_job_tags())

    def tags(self) -> dict[str, str]:
        """Return the job's tags; ``dlfd.beside`` is in place of ``dlfd.job``, for this is not the job's own run."""
        tags = current_job_tags()
        tags["dlfd.beside"] = tags.pop("dlfd.job", "")
        return tags
