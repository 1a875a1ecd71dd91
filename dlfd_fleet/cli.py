"""The ``dlfd-fleet`` command: reads arguments, calls the library, prints. No logic of its own."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dlfd_fleet.exceptions import ConfigurationError, FleetError
from dlfd_fleet.settings import LoadedSettings, load_settings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from dlfd_fleet.ledger import ForgetRequest

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # they would print local variables, and with them people's names
    help="Right to be forgotten for federated fleets.",
)
config_app = typer.Typer(no_args_is_help=True, help="Settings.")
data_app = typer.Typer(no_args_is_help=True, help="Face sets: check, make, deal to sites.")
forget_app = typer.Typer(no_args_is_help=True, help="Forget requests of one site.")
job_app = typer.Typer(no_args_is_help=True, help="Training and erasure jobs of a fleet.")
site_app = typer.Typer(no_args_is_help=True, help="The folder of a site: make it, look at it, purge it.")
app.add_typer(config_app, name="config")
app.add_typer(data_app, name="data")
app.add_typer(forget_app, name="forget")
app.add_typer(site_app, name="site")
app.add_typer(job_app, name="job")


class JobKind(StrEnum):
    """What a job is for."""

    TRAIN = "train"
    ERASE = "erase"


Config = Annotated[Path | None, typer.Option("--config", help="TOML or JSON file of settings.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="A setting, as KEY=VALUE; may be repeated.")]
SiteFolder = Annotated[Path, typer.Option("--site", help="The site's folder.")]
JobName = Annotated[str | None, typer.Argument(help="Name of the job; the latest by default.")]
FlowerApp = Annotated[Path | None, typer.Option("--app", help="Folder of the Flower app; this checkout by default.")]
SuperLink = Annotated[str | None, typer.Option(help="SuperLink of Flower's configuration; its default one if omitted.")]
Federation = Annotated[
    str | None, typer.Option("--federation-config", help="For `flwr run`, such as num-supernodes=4.")
]
console = Console()
_INTERRUPTED = 130


@app.command()
def demo(
    config: Config = None,
    overrides: Overrides = None,
    compare_retrain: Annotated[
        bool, typer.Option("--compare-retrain", help="Also retrain without the people, to compare.")
    ] = False,
    seed: Annotated[int | None, typer.Option(help="Seed of splits, training and noise.")] = None,
) -> None:
    """Run the main job on the embedded faces: train, forget four people, prove it, export, predict on a device."""
    from dlfd_fleet.demo import Demo

    flags: dict[str, object] = {}
    if compare_retrain:
        flags["erasure.compare_retrain"] = True
    if seed is not None:
        flags["seed"] = seed
    Demo(_load(config, overrides, flags).settings, console).run()


@app.command()
def unlearn(
    model: Annotated[Path, typer.Option(help="Folder of model.safetensors and card.json.")],
    data: Annotated[Path, typer.Option(help="Manifest of the faces, with people of the splits validation and test.")],
    forget: Annotated[list[str], typer.Option(help="A person to forget; may be repeated.")],
    output: Annotated[Path, typer.Option(help="New folder for the unlearned model and its report.")] = Path(
        "unlearned"
    ),
    root: Annotated[Path | None, typer.Option(help="Folder of the images; the manifest's own by default.")] = None,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Make one model on this machine forget people; no fleet. Exit code 1 if it did not succeed."""
    from dlfd_fleet.audit import SCORE_NAMES
    from dlfd_fleet.progress import ConsoleProgress
    from dlfd_fleet.single import score_text, unlearn_people

    settings = _load(config, overrides).settings
    result = unlearn_people(model, data, root, forget, output, settings, ConsoleProgress(console))
    table = Table("", "original", "unlearned")
    for name in SCORE_NAMES:
        table.add_row(name.replace("_", " "), score_text(result.original, name), score_text(result.unlearned, name))
    console.print(table)
    console.print(f"{result.verdict.outcome.value}: {'; '.join(result.reasons)}.", highlight=False)
    console.print(f"Model and report: {output}", soft_wrap=True)
    if not result.success:
        raise typer.Exit(1)


@app.command()
def bench(
    data: Annotated[str, typer.Option(help="'orl', or a manifest of faces.")] = "orl",
    methods: Annotated[str, typer.Option(help="'all', or names separated by commas.")] = "all",
    seeds: Annotated[int, typer.Option(min=1, help="Splits and trainings to average over.")] = 5,
    budget: Annotated[str, typer.Option(help="Nothing new is begun after this time: 90s, 30m, 2h.")] = "30m",
    federated: Annotated[bool, typer.Option("--federated", help="Compare whole fleets, on virtual nodes.")] = False,
    sites: Annotated[str | None, typer.Option(help="Measure the coordinator with so many sites: 10,100,1000.")] = None,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Compare DLFD with every peer and with retraining; run it again to go on where the budget ended."""
    from dlfd_fleet.bench import bench_command, federated_command, scale_command

    flags: dict[str, object] = (
        {"data.source": data}
        if data == "orl"
        else {
            "data.source": "manifest",
            "data.manifest": data,
        }
    )
    settings = _load(config, overrides, flags).settings
    if sites is not None:
        scale_command(settings, sites, console)
    elif federated:
        federated_command(settings, seeds, budget, console)
    else:
        bench_command(settings, methods, seeds, budget, console)


@config_app.command("show")
def config_show(config: Config = None, overrides: Overrides = None) -> None:
    """Print every effective setting and where its value came from."""
    table = Table("setting", "value", "from")
    for row in _load(config, overrides).rows():
        table.add_row(*row)
    console.print(table)


@data_app.command("check")
def data_check(
    manifest: Annotated[Path, typer.Argument(help="CSV or Parquet manifest.")],
    root: Annotated[Path | None, typer.Option(help="Folder of the images; the manifest's own by default.")] = None,
    classes: Annotated[str | None, typer.Option(help="Allowed labels, separated by commas.")] = None,
) -> None:
    """List every problem of a manifest, with its row; exit code 2 if there is one."""
    from dlfd_fleet.data import check_manifest
    from dlfd_fleet.progress import ConsoleProgress

    allowed = classes.split(",") if classes else None
    problems = check_manifest(manifest, root, allowed, ConsoleProgress(Console(stderr=True)))
    if not problems:
        console.print(f"{manifest}: no problem found.")
        return
    table = Table("row", "column", "problem", title=f"{manifest}: {len(problems)} problems")
    for problem in problems:
        table.add_row(str(problem.row), problem.column, problem.sentence)
    console.print(table)
    raise typer.Exit(2)


@data_app.command("synthesize")
def data_synthesize(
    folder: Annotated[Path, typer.Argument(help="Where the images and manifest.csv go; must be empty or absent.")],
    people: Annotated[int, typer.Option(min=1)] = 40,
    images: Annotated[int, typer.Option(min=1, help="Images a person.")] = 10,
    image_size: Annotated[int, typer.Option(min=16)] = 64,
    classes: Annotated[int, typer.Option(min=2)] = 2,
    seed: int = 0,
) -> None:
    """Make a synthetic face set of any size, for load tests."""
    from dlfd_fleet.data import synthesize
    from dlfd_fleet.progress import ConsoleProgress

    manifest = synthesize(
        folder,
        people=people,
        images_per_person=images,
        image_size=image_size,
        classes=classes,
        seed=seed,
        progress=ConsoleProgress(Console(stderr=True)),
    )
    console.print(f"Wrote {people * images} images and {manifest}.")


@data_app.command("deal")
def data_deal(config: Config = None, overrides: Overrides = None) -> None:
    """Deal the people of the face set to site folders under the state folder, for a simulated fleet."""
    from dlfd_fleet.ledger.site_setup import deal_to_sites
    from dlfd_fleet.progress import ConsoleProgress

    settings = _load(config, overrides).settings
    for name in deal_to_sites(settings, ConsoleProgress(console)):
        console.print(str(settings.state_folder / "sites" / name), soft_wrap=True)


@forget_app.command("request")
def forget_request(
    person: Annotated[str, typer.Argument(help="Identity, as in the site's manifest.")],
    site: SiteFolder,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Write a person's request to be forgotten into the site's ledger."""
    from dlfd_fleet.ledger.site import Site, request_forgetting

    days = _load(config, overrides).settings.erasure.deadline_days
    with Site(site) as opened:
        request = request_forgetting(opened, person, deadline_days=days)
    console.print(f"Accepted as request {request.id}; to be done by {request.deadline:%Y-%m-%d}.")


@forget_app.command("list")
def forget_list(site: SiteFolder) -> None:
    """List the requests of a site, with their deadlines."""
    from datetime import UTC, datetime

    from dlfd_fleet.ledger.site import Site

    with Site(site) as opened:
        requests = opened.ledger.requests()
    console.print(_requests_table(requests, datetime.now(UTC)))


@forget_app.command("show")
def forget_show(request: Annotated[str, typer.Argument(help="Id of the request.")], site: SiteFolder) -> None:
    """Show a request and everything that happened to it."""
    from datetime import UTC, datetime

    from dlfd_fleet.ledger.site import Site

    with Site(site) as opened:
        found, events = opened.ledger.get(request), opened.ledger.history(request)
    console.print(_requests_table([found], datetime.now(UTC)))
    table = Table("at", "state", "reason", "job", "epoch")
    for event in events:
        epoch = "" if event.epoch is None else str(event.epoch)
        table.add_row(f"{event.at:%Y-%m-%d %H:%M:%S}", event.state, event.reason, event.job or "", epoch)
    console.print(table)


@forget_app.command("withdraw")
def forget_withdraw(request: Annotated[str, typer.Argument(help="Id of the request.")], site: SiteFolder) -> None:
    """Take a request back, as long as no job works on it."""
    from dlfd_fleet.ledger.site import Site, withdraw

    with Site(site) as opened:
        found = withdraw(opened, request)
    console.print(
        f"Request {found.id} is withdrawn; the person may be trained on again. Other sites that a job told of it "
        "keep theirs."
    )


@site_app.command("init")
def site_init(
    folder: Annotated[Path, typer.Argument(help="New folder: card, keys, ledger, manifest.")],
    name: Annotated[str, typer.Option(help="Name of the site; the coordinator does not learn it.")],
    manifest: Annotated[Path, typer.Option(help="The site's faces: image,identity,label[,site][,split].")],
    root: Annotated[Path | None, typer.Option(help="Folder of the images; the manifest's own by default.")] = None,
    classes: Annotated[
        str | None,
        typer.Option(help="The fleet's classes in order, separated by commas; the manifest's by default."),
    ] = None,
    image_size: Annotated[int, typer.Option(min=32, max=1024, help="Side of the model's input, pixels.")] = 64,
    validation_people: Annotated[int, typer.Option(min=0, help="People kept out of training for the gate.")] = 0,
    test_people: Annotated[int, typer.Option(min=0, help="People kept out of training for the evidence.")] = 0,
    ledger: Annotated[
        str, typer.Option(help="File in the folder, or postgresql+psycopg://host/database.")
    ] = "ledger.db",
    fleet_secret: Annotated[
        Path | None, typer.Option(help="File of the secret that the sites share (openssl rand -hex 32).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of who is kept out of training.")] = 0,
) -> None:
    """Make the folder of a site; its images stay where they are."""
    from dlfd_fleet.ledger.site_setup import init_site

    init_site(
        folder,
        name=name,
        manifest=manifest,
        root=root,
        classes=tuple(classes.split(",")) if classes else None,
        image_size=image_size,
        validation_people=validation_people,
        test_people=test_people,
        ledger=ledger,
        fleet_secret=fleet_secret,
        seed=seed,
    ).ledger.close()
    site_status(folder)
    console.print(
        f"Start its SuperNode with: flower-supernode --node-config 'site-folder=\"{folder.absolute()}\"' ...",
        soft_wrap=True,
        highlight=False,
    )


@site_app.command("status")
def site_status(site: Annotated[Path, typer.Argument(help="The site's folder.")]) -> None:
    """Show what a site holds, and how its requests stand; checks the ledger's history."""
    from datetime import UTC, datetime

    from dlfd_fleet.ledger import Site
    from dlfd_fleet.ledger import site_status as read_status

    now = datetime.now(UTC)
    with Site(site) as opened:
        card, status = opened.card, read_status(opened, now)
    table = Table(title=f"{card.name} ({card.image_size} pixels; {', '.join(card.classes)})")
    for column in ("split", "people", "images"):
        table.add_column(column)
    for split, images in sorted(status.images.items()):
        table.add_row(split or "(none)", str(status.people[split]), str(images))
    console.print(table)
    states = ", ".join(f"{count} {state}" for state, count in sorted(status.requests.items())) or "none"
    console.print(f"Requests: {states}. Overdue: {len(status.overdue)}. The ledger's history is whole.")
    console.print(f"Images left out of training: {status.left_out}. Images purged so far: {status.purged}.")
    if not status.fleet_secret:
        console.print("Without a fleet secret this site does not learn of people who ask at other sites.")
    if status.open_requests:
        console.print(_requests_table(status.open_requests, now))


@site_app.command("purge")
def site_purge(site: Annotated[Path, typer.Argument(help="The site's folder.")]) -> None:
    """End interrupted purges, and delete images of forgotten people that came back."""
    from dlfd_fleet.ledger import Site, purge_site

    with Site(site) as opened:
        ended, returned = purge_site(opened)
    console.print(f"Deleted {ended} images of released requests, and {returned} that had come back.")


@job_app.command("start")
def job_start(
    kind: Annotated[JobKind, typer.Argument(help="train or erase.")] = JobKind.ERASE,
    app: FlowerApp = None,
    superlink: SuperLink = None,
    federation_config: Federation = None,
) -> None:
    """Hand a job to a SuperLink, as `flwr run` does, and show its log; a job that was interrupted goes on first."""
    from dlfd_fleet.federation.command import submit

    submit(kind.value, app, superlink, federation_config)


@job_app.command("list")
def job_list(config: Config = None, overrides: Overrides = None) -> None:
    """List the jobs of a state folder."""
    from dlfd_fleet.federation.command import job_table, opened

    with opened(_load(config, overrides).settings.state_folder) as store:
        console.print(job_table(store))


@job_app.command("status")
def job_status(job: JobName = None, config: Config = None, overrides: Overrides = None) -> None:
    """Show how far a job is, and what each site does."""
    from dlfd_fleet.federation import command

    with command.opened(_load(config, overrides).settings.state_folder) as store:
        console.print(command.job_status(store, command.choose(store, job).job), soft_wrap=True, highlight=False)


@job_app.command("watch")
def job_watch(job: JobName = None, config: Config = None, overrides: Overrides = None) -> None:
    """Draw a job live until it ends."""
    from dlfd_fleet.federation import command

    with command.opened(_load(config, overrides).settings.state_folder) as store:
        command.watch(store, command.choose(store, job).job, console)


@job_app.command("cancel")
def job_cancel(
    job: Annotated[str, typer.Argument(help="Name of the job.")], config: Config = None, overrides: Overrides = None
) -> None:
    """Stop a job before its next step; its requests wait for the next one."""
    from dlfd_fleet.federation import command

    with command.opened(_load(config, overrides).settings.state_folder) as store:
        console.print(command.cancel(store, job), soft_wrap=True, highlight=False)


@job_app.command("resume")
def job_resume(
    job: Annotated[str | None, typer.Argument(help="Name of the job; the latest that is not settled.")] = None,
    app: FlowerApp = None,
    superlink: SuperLink = None,
    federation_config: Federation = None,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Go on with a job that was interrupted, failed or cancelled, from its last finished step."""
    from dlfd_fleet.federation import command

    with command.opened(_load(config, overrides).settings.state_folder) as store:
        record = command.reopen(store, job)
    console.print(f"Going on with {record.job}.", highlight=False)
    command.submit(record.kind, app, superlink, federation_config)


def _requests_table(requests: Sequence[ForgetRequest], now: datetime) -> Table:
    table = Table()
    for name in ("request", "person", "state", "asked", "deadline", "job"):
        table.add_column(name, overflow="fold")
    for request in requests:
        deadline = f"{request.deadline:%Y-%m-%d}" + (" OVERDUE" if request.overdue(now) else "")
        row = (request.id, request.identity or "(purged)", request.state, f"{request.requested_at:%Y-%m-%d}")
        table.add_row(*row, deadline, request.job or "")
    return table


def _load(config: Path | None, overrides: list[str] | None, flags: dict[str, object] | None = None) -> LoadedSettings:
    values: dict[str, object] = dict(flags or {})
    for text in overrides or []:
        key, separator, value = text.partition("=")
        if not separator:
            raise ConfigurationError(f"--set {text} has no value; write --set KEY=VALUE.")
        values[key.strip()] = value
    return load_settings(config, values)


def main() -> None:
    """Run the command; a person's mistake is one sentence and exit code 2."""
    try:
        app()
    except FleetError as error:
        Console(stderr=True).print(f"[red]Error:[/red] {escape(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(2)
    except SystemExit as end:
        if end.code == _INTERRUPTED:  # typer turns Ctrl-C into this, without a word
            Console(stderr=True).print("Interrupted; the next start goes on from here or starts clean.")
        raise
