"""``dlfd-fleet job``: the jobs of a fleet."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dlfd_fleet.cli.options import By, Config, Overrides, console, decided_by, load, say_archive

app = typer.Typer(no_args_is_help=True, help="Training, erasure and references jobs of a fleet.")

JobName = Annotated[str | None, typer.Argument(help="Name of the job; the latest by default.")]
FlowerApp = Annotated[Path | None, typer.Option("--app", help="Folder of the Flower app; this checkout by default.")]
SuperLink = Annotated[str | None, typer.Option(help="SuperLink of Flower's configuration; its default one if omitted.")]
Federation = Annotated[
    str | None, typer.Option("--federation-config", help="For `flwr run`, such as num-supernodes=4.")
]
Reason = Annotated[str, typer.Option(help="Why; it is kept with the jobs. It goes to sites, too: no names.")]
KeptReason = Annotated[str, typer.Option(help="Why; it is kept with the jobs.")]


class JobKind(StrEnum):
    """What a job is for."""

    TRAIN = "train"
    ERASE = "erase"
    REFERENCES = "references"


@app.command("start", epilog="Example: dlfd-fleet job start erase")
def start(
    kind: Annotated[JobKind, typer.Argument(help="train, erase or references.")] = JobKind.ERASE,
    app: FlowerApp = None,
    superlink: SuperLink = None,
    federation_config: Federation = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Train from fresh weights, not from the champion's.")] = False,
    if_due: Annotated[
        bool, typer.Option("--if-due", help="Ask the sites first; erase only if it is due (erasure.due.*).")
    ] = False,
    by: By = None,
    reason: Reason = "",
) -> None:
    """Hand a job to a SuperLink, as `flwr run` does, and show its log; a job that was interrupted goes on first."""
    from dlfd_fleet.federation.jobs.submission import submit

    if fresh and kind is not JobKind.TRAIN:
        what = "an erasure always begins with" if kind is JobKind.ERASE else "references are always of"
        raise typer.BadParameter(f"{what} the champion; --fresh is for `job start train`.")
    if if_due and kind is not JobKind.ERASE:
        raise typer.BadParameter("what can be due is an erasure; --if-due is for `job start erase`.")
    submit(
        kind.value,
        app,
        superlink,
        federation_config,
        patience=_patience(),
        by=decided_by(by),
        reason=reason,
        fresh=fresh,
        if_due=if_due,
    )


@app.command("plan", epilog="Example: dlfd-fleet job plan")
def plan(
    app: FlowerApp = None,
    superlink: SuperLink = None,
    federation_config: Federation = None,
    by: By = None,
    reason: Reason = "",
) -> None:
    """Say who asks, what an erasure of them will be able to show, and what it costs; it changes nothing."""
    from dlfd_fleet.federation.jobs.submission import submit

    submit("plan", app, superlink, federation_config, patience=_patience(), by=decided_by(by), reason=reason)


@app.command("list", epilog="Example: dlfd-fleet job list")
def list_jobs(config: Config = None, overrides: Overrides = None) -> None:
    """List the jobs of a state folder, and say what waited when `job start erase --if-due` last asked the sites."""
    from dlfd_fleet.federation.jobs.command import job_table, last_answer, opened

    settings = load(config, overrides).settings
    with opened(settings.state_folder) as store:
        console.print(job_table(store))
        console.print(last_answer(store, settings.erasure.due), soft_wrap=True, highlight=False)


@app.command("status", epilog="Example: dlfd-fleet job status")
def status(job: JobName = None, config: Config = None, overrides: Overrides = None) -> None:
    """Show how far a job is, and what each site does."""
    from dlfd_fleet.federation.jobs import command

    with command.opened(load(config, overrides).settings.state_folder) as store:
        console.print(command.job_status(store, command.choose(store, job).job), soft_wrap=True, highlight=False)


@app.command("watch", epilog="Example: dlfd-fleet job watch")
def watch(job: JobName = None, config: Config = None, overrides: Overrides = None) -> None:
    """Draw a job live until it ends."""
    from dlfd_fleet.federation.jobs import command

    with command.opened(load(config, overrides).settings.state_folder) as store:
        command.watch(store, command.choose(store, job).job, console)


@app.command("export", epilog="Example: dlfd-fleet job export --from 2026-01-01 --to 2026-12-31 -o fleet-2026.zip")
def export(
    first: Annotated[str, typer.Option("--from", metavar="DAY", help="First day: 2026-01-01.")],
    last: Annotated[
        str, typer.Option("--to", metavar="DAY", help="Last day, in UTC: 2026-12-31. If it is to come, it ends today.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="ZIP archive to write.")],
    by: By = None,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Write the jobs of a period, their requests, decisions and certificates as a signed archive; no name is in it."""
    from dlfd_fleet.desk.fleet_records import write_fleet_records
    from dlfd_fleet.federation.jobs.command import opened
    from dlfd_fleet.federation.jobs.reporting import signer_file
    from dlfd_fleet.ledger.dates import day_of
    from dlfd_fleet.report import public_key_file

    settings = load(config, overrides).settings
    with opened(settings.state_folder) as store:
        end = day_of(last, "--to")
        records = write_fleet_records(store, settings, output, day_of(first, "--from"), end, done_by=decided_by(by))
        key = public_key_file(signer_file(settings, store.folder))
    say_archive(output, records, end)
    console.print(
        f"To verify it: dlfd-fleet forget export --verify {output} --key {key}", soft_wrap=True, highlight=False
    )


@app.command("cancel", epilog="Example: dlfd-fleet job cancel erase-20261128-120000-ab12")
def cancel(
    job: Annotated[str, typer.Argument(help="Name of the job.")],
    by: By = None,
    reason: KeptReason = "",
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """End a job before its next step, for good; its requests wait for the next one."""
    from dlfd_fleet.federation.jobs import command

    with command.opened(load(config, overrides).settings.state_folder) as store:
        console.print(command.cancel(store, job, decided_by(by), reason), soft_wrap=True, highlight=False)


@app.command("resume", epilog="Example: dlfd-fleet job resume")
def resume(
    job: Annotated[
        str | None, typer.Argument(help="Name of the job; the latest that is neither settled nor cancelled.")
    ] = None,
    app: FlowerApp = None,
    superlink: SuperLink = None,
    federation_config: Federation = None,
    by: By = None,
    reason: KeptReason = "",
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Go on with a job that was interrupted or failed, from its last finished step; a cancelled job is over."""
    from dlfd_fleet.federation.jobs import command
    from dlfd_fleet.federation.jobs.submission import submit

    settings = load(config, overrides).settings
    with command.opened(settings.state_folder) as store:
        record = command.reopen(store, job, decided_by(by), reason)
    console.print(f"Going on with {record.job}.", highlight=False)
    submit(record.kind, app, superlink, federation_config, patience=settings.fleet.return_seconds)


def _patience() -> float:
    """Return how long to wait for a SuperLink that does not answer: as long as a round waits for a site that died."""
    return load(None, None).settings.fleet.return_seconds
