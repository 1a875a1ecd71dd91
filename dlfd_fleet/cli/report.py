"""``dlfd-fleet report``: the report of an erasure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dlfd_fleet.cli.options import Config, Overrides, console, load


def report(
    job: Annotated[str | None, typer.Argument(help="Name of the job; default: the latest erasure.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="HTML file, with JSON beside it; default: in the job's folder.")
    ] = None,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Write an erasure's report: HTML for people, and its JSON."""
    from dlfd_fleet.federation.jobs.command import opened
    from dlfd_fleet.federation.jobs.reporting import latest_erasure, outcome_sentence, said_in_short, write_report

    settings = load(config, overrides).settings
    with opened(settings.state_folder) as store:
        record = store.load(job) if job is not None else latest_erasure(store)
        files = write_report(store, record.job, output, settings)
        for line in (*(said_in_short(store, record) or ()), *map(str, files), outcome_sentence(record)):
            console.print(line, soft_wrap=True, highlight=False, markup=False)
