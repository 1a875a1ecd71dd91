"""The ServerApp of the fleet: it runs the job that the run's configuration names."""

from __future__ import annotations

from typing import cast

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from dlfd_fleet.configuration import load_settings
from dlfd_fleet.exceptions import JobError
from dlfd_fleet.federation.app_errors import log_errors_in_words
from dlfd_fleet.federation.jobs.run import run_jobs
from dlfd_fleet.federation.records.job_record import JobKind
from dlfd_fleet.plain_text import PlainConsole
from dlfd_fleet.progress import ConsoleProgress

log_errors_in_words()
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the job that the run's configuration names: ``job = "train"`` or ``job = "erase"``.

    ``fresh = true`` lets a training job begin with fresh weights in place of the champion's.
    """
    kind = str(context.run_config.get("job", "erase"))
    if kind not in ("train", "erase"):
        raise JobError(f"job = '{kind}' is no kind of job; use 'train' or 'erase'.")
    settings = load_settings().settings
    if context.run_config.get("fresh", False):
        settings = settings.model_copy(update={"training": settings.training.model_copy(update={"start": "fresh"})})
    run_jobs(grid, cast("JobKind", kind), settings, ConsoleProgress(PlainConsole()))
