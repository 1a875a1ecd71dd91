"""``dlfd-fleet site``: the folder of a site."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from dlfd_fleet.cli.options import By, Classes, FollowLinks, MultiLabel, TrainedOnOption, console, decided_by

app = typer.Typer(no_args_is_help=True, help="Make, show and purge the folder of a site.")


@app.command(
    "init",
    epilog="Example: dlfd-fleet site init /srv/site --name site-a --manifest faces/manifest.csv --classes glasses,none",
)
def init(
    folder: Annotated[Path, typer.Argument(help="New folder: card, keys, ledger, manifest.")],
    name: Annotated[str, typer.Option(help="Name of the site; the coordinator does not learn it.")],
    manifest: Annotated[Path | None, typer.Option(help="Manifest: image,identity,label[,site][,split].")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of the images; default: the manifest's.")] = None,
    follow_links: FollowLinks = False,
    image_folders: Annotated[
        Path | None, typer.Option(help="Instead: a folder of images in two levels of folders.")
    ] = None,
    folders: Annotated[
        str, typer.Option(help="Order of these levels: 'person/label' or 'label/person'.")
    ] = "person/label",
    parquet: Annotated[Path | None, typer.Option(help="Instead: a Parquet file with images as bytes.")] = None,
    npz: Annotated[
        Path | None, typer.Option(help="Instead: an NPZ file with inputs, labels, people[, splits].")
    ] = None,
    loader: Annotated[
        str | None, typer.Option(help="Instead: a loader that returns a PersonDataset, package.module:callable.")
    ] = None,
    loader_arguments: Annotated[
        str, typer.Option(metavar="JSON", help="Arguments of the loader, or column names of the Parquet file, in JSON.")
    ] = "{}",
    classes: Classes = None,
    multi_label: MultiLabel = False,
    numbers: Annotated[
        str | None, typer.Option(metavar="SHAPE", help="Shape of a model input that is no image, such as 30 or 8x8.")
    ] = None,
    image_size: Annotated[
        str, typer.Option(help="Model input in pixels: the side of a square, or HEIGHTxWIDTH.")
    ] = "64",
    channels: Annotated[
        int, typer.Option(min=1, max=3, help="Channels of the model input: 3 (colour) or 1 (grey).")
    ] = 3,
    fit: Annotated[str, typer.Option(help="How images of another aspect ratio fit: 'resize' or 'crop'.")] = "resize",
    value_range: Annotated[
        str, typer.Option(metavar="LOW,HIGH", help="Smallest and largest value that the network takes.")
    ] = "0,1",
    network: Annotated[
        str | None, typer.Option(help="Factory of a network that this site may build, package.module:callable.")
    ] = None,
    arguments: Annotated[str, typer.Option(metavar="JSON", help="Arguments of that factory, in JSON.")] = "{}",
    validation_people: Annotated[
        int, typer.Option(min=0, help="Number of people kept out of training for the gate.")
    ] = 0,
    test_people: Annotated[int, typer.Option(min=0, help="Number of people kept out of training for the audit.")] = 0,
    trained_on: TrainedOnOption = None,
    ledger: Annotated[
        str, typer.Option(help="Ledger: a file in the folder, or postgresql+psycopg://host/database.")
    ] = "ledger.db",
    fleet_secret: Annotated[
        Path | None, typer.Option(help="File of the secret that sites share (openssl rand -hex 32).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed for the choice of people kept out of training.")] = 0,
) -> None:
    """Make the folder of a site; its images stay where they are."""
    from dlfd_fleet.cli.inputs import component, input_of, rows_of
    from dlfd_fleet.components import Component
    from dlfd_fleet.data import TrainedOn, class_names
    from dlfd_fleet.ledger.site_setup import init_site

    rows = rows_of(manifest, loader, loader_arguments, parquet, npz, image_folders, folders, follow_links=follow_links)
    init_site(
        folder,
        name=name,
        manifest=None if isinstance(rows, Component) else rows,
        loader=rows if isinstance(rows, Component) else None,
        root=root,
        links="follow" if follow_links else "refuse",
        classes=class_names(classes, multi_label=multi_label),
        multi_label=multi_label,
        model_input=input_of(image_size, channels, fit, value_range, numbers),
        networks=() if network is None else (component(network, arguments),),
        validation_people=validation_people,
        test_people=test_people,
        trained_on=None if trained_on is None else TrainedOn.read(trained_on),
        ledger=ledger,
        fleet_secret=fleet_secret,
        seed=seed,
    ).ledger.close()
    status(folder)
    console.print(
        f"Start its SuperNode with: flower-supernode --node-config 'site-folder=\"{folder.absolute()}\"' ...",
        soft_wrap=True,
        highlight=False,
    )


@app.command("status", epilog="Example: dlfd-fleet site status /srv/site")
def status(site: Annotated[Path, typer.Argument(help="The site's folder.")]) -> None:
    """Show what a site holds, and how its requests stand; checks the seals of the ledger and of the desk's logins."""
    from datetime import UTC, datetime

    from dlfd_fleet.cli.request_tables import requests_table
    from dlfd_fleet.data import listed
    from dlfd_fleet.desk.login_record import LOGINS_FILE, LoginRecord
    from dlfd_fleet.ledger import Site
    from dlfd_fleet.ledger import site_status as read_status
    from dlfd_fleet.ledger.restored import restored

    now = datetime.now(UTC)
    with Site(site) as opened:
        card, status, put_back = opened.card, read_status(opened, now), restored(opened)
    logins = LoginRecord(site / LOGINS_FILE).all()
    what = "labels " if card.multi_label else ""
    table = Table(title=f"{card.name} ({card.input.sentence()}; {what}{listed(card.classes)})")
    for column in ("split", "people", "images"):
        table.add_column(column)
    for split, images in sorted(status.images.items()):
        table.add_row(split or "(none)", str(status.people[split]), str(images))
    console.print(table)
    states = ", ".join(f"{count} {state}" for state, count in sorted(status.requests.items())) or "none"
    console.print(f"Requests: {states}. Overdue: {len(status.overdue)}. The ledger is as its seals say.")
    if logins:
        console.print(f"Logins at the desk that are kept: {len(logins)}. They are as their seals say.")
    if put_back is not None:
        console.print(put_back.sentence(), soft_wrap=True, markup=False, highlight=False)
    console.print(f"Images left out of training: {status.left_out}. Images purged so far: {status.purged}.")
    if status.references:
        kept = f"Reference models whose answers are kept: {status.references}. {status.references_unseen}".strip()
        console.print(kept, soft_wrap=True, highlight=False)
    for leftover in status.leftovers:
        console.print(
            f"Still there, of request {leftover.request}: {leftover.file}: {leftover.reason}.",
            soft_wrap=True,
            markup=False,
            highlight=False,
        )
    if any(leftover.listed for leftover in status.leftovers):
        console.print(
            f"Make these files deletable, or delete these rows, then run: dlfd-fleet site purge {site}",
            soft_wrap=True,
            markup=False,
        )
    for problem in status.undeletable:
        console.print(problem, soft_wrap=True, markup=False, highlight=False)
    for label, images in sorted(status.unknown_labels.items()):
        console.print(
            f"{images} images have the label '{label}', which is none of the classes in site.json: the site can take "
            "part in no job until the manifest or site.json is corrected.",
            soft_wrap=True,
        )
    for remark in status.remarks:
        console.print(remark, soft_wrap=True, markup=False, highlight=False)
    if not status.fleet_secret:
        console.print("Without a fleet secret this site does not learn of people who ask at other sites.")
    if status.open_requests:
        console.print(requests_table(status.open_requests, now, console.width))


@app.command("refresh", epilog="Example: dlfd-fleet site refresh /srv/site")
def refresh(site: Annotated[Path, typer.Argument(help="The site's folder.")]) -> None:
    """Read the rows of the site's loader again: list those that have come, and drop those that have gone."""
    from dlfd_fleet.ledger import Site, refresh_rows

    with Site(site) as opened:
        come, gone = refresh_rows(opened)
    console.print(f"{come} new rows, and {gone} rows are gone.")


@app.command("reconcile", epilog="Example: dlfd-fleet site reconcile /srv/site")
def reconcile(
    site: Annotated[Path, typer.Argument(help="The site's folder.")],
    confirm: Annotated[
        bool, typer.Option("--confirm", help="Say that nobody who was forgotten is left here, and take part again.")
    ] = False,
    reason: Annotated[str, typer.Option(help="With --confirm: how the people were found; it is kept.")] = "",
    by: By = None,
) -> None:
    """Say what a ledger lacks that was put back from a backup; exit code 1 as long as it is not reconciled."""
    from dlfd_fleet.ledger import Site
    from dlfd_fleet.ledger import restored as put_back

    with Site(site) as opened:
        found = put_back.restored(opened)
        if confirm:
            put_back.reconcile(opened, reason, decided_by(by))
            console.print("The site takes part again.", highlight=False)
            return
    if found is None:
        console.print("The ledger was not put back from a backup, as far as this site was told.", soft_wrap=True)
        return
    said = [f"{found.sentence()}.", *(f"{request}: epoch {epoch}" for request, epoch in sorted(found.lost.items()))]
    if found.lost:
        said.append(
            "These ids are in the reports and certificates of their jobs, with the days of receipt. Find out who these "
            "people are, by the site's letters, mails or records (`forget export`). For everybody of them who is in "
            f"this folder again: dlfd-fleet forget request PERSON --site {site}"
        )
    said.append(f"Then: dlfd-fleet site reconcile {site} --confirm --reason 'how they were found'")
    for line in said:
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    raise typer.Exit(1)


@app.command("prune", epilog="Example: dlfd-fleet site prune /srv/site --dry-run")
def prune(
    site: Annotated[Path, typer.Argument(help="The site's folder.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be deleted, and delete nothing.")] = False,
) -> None:
    """Delete rows that were decoded for other models, and what killed processes have left; no image, no request."""
    from dlfd_fleet.ledger import Site
    from dlfd_fleet.ledger.prune import prune_site

    with Site(site) as opened:
        pruned = prune_site(opened, dry_run=dry_run)
    if not pruned.files:
        console.print("There is nothing to delete.")
        return
    done = "Would delete" if dry_run else "Deleted"
    what = f"{done} {', '.join(pruned.files)}, {pruned.bytes / 2**20:.1f} MiB."
    console.print(what, soft_wrap=True, markup=False, highlight=False)


@app.command("purge", epilog="Example: dlfd-fleet site purge /srv/site")
def purge(site: Annotated[Path, typer.Argument(help="The site's folder.")]) -> None:
    """End interrupted purges, and delete images that came back; exit code 1 if one could not be deleted."""
    from dlfd_fleet.ledger import Site, purge_site

    with Site(site) as opened:
        ended, returned = purge_site(opened)
        left = opened.ledger.leftovers()
    console.print(f"Deleted {ended} images of released requests, and {returned} that had come back.")
    if left:
        console.print(
            f"{len(left)} files are still there; see: dlfd-fleet site status {site}", soft_wrap=True, markup=False
        )
    if any(leftover.listed for leftover in left):
        raise typer.Exit(1)
