"""``dlfd-fleet data``: face sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from dlfd_fleet.cli.options import Classes, Config, FollowLinks, MultiLabel, Overrides, console, load
from dlfd_fleet.plain_text import PlainConsole

app = typer.Typer(no_args_is_help=True, help="Check, make and deal data sets.")


@app.command("check", epilog="Example: dlfd-fleet data check faces/manifest.csv")
def check(
    manifest: Annotated[Path, typer.Argument(help="CSV or Parquet manifest.")],
    root: Annotated[Path | None, typer.Option(help="Folder of the images; default: the manifest's.")] = None,
    classes: Classes = None,
    multi_label: MultiLabel = False,
    follow_links: FollowLinks = False,
) -> None:
    """List every problem of a manifest, with its row; exit code 2 if there is one.

    Spellings that are read as one name are listed too, and are no problem.
    """
    from dlfd_fleet.data import Links, check_manifest, class_names, read_manifest
    from dlfd_fleet.progress import ConsoleProgress

    links: Links = "follow" if follow_links else "refuse"
    names, progress = class_names(classes, multi_label=multi_label), ConsoleProgress(PlainConsole(stderr=True))
    found = check_manifest(manifest, root, names, progress, links, multi_label=multi_label)
    problems, notices = ([one for one in found if one.notice is kind] for kind in (False, True))
    wrong = "problem" if len(problems) == 1 else "problems"
    for title, listed in ((wrong, problems), ("spellings are read as another one", notices)):
        if listed:
            table = Table("row", "column", "problem", title=f"{manifest}: {len(listed)} {title}")
            for one in listed:
                table.add_row(str(one.row), one.column, one.sentence)
            console.print(table)
    if problems:
        raise typer.Exit(2)
    read = read_manifest(manifest, root, links)
    of_people = f"{len(read.rows)} images of {len(read.by_person())} people"
    kind, found_names = ("labels", read.labels) if multi_label else ("classes", read.classes)
    console.print(
        f"{manifest}: no problem found. {of_people}; {kind}: {', '.join(names or found_names)}.",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )


@app.command("synthesize", epilog="Example: dlfd-fleet data synthesize faces --people 60 --images 8 --image-size 32")
def synthesize(
    folder: Annotated[Path, typer.Argument(help="Folder for images and manifest.csv; must be empty or absent.")],
    people: Annotated[int, typer.Option(min=1, help="Number of people.")] = 40,
    images: Annotated[int, typer.Option(min=1, help="Images of each person.")] = 10,
    image_size: Annotated[int, typer.Option(min=16, help="Side of an image in pixels.")] = 64,
    classes: Annotated[int, typer.Option(min=2, help="Number of classes.")] = 2,
    contrast: Annotated[float, typer.Option(min=0.0, max=1.0, help="How dark the eyewear is.")] = 1.0,
    grain: Annotated[
        float, typer.Option(min=0.0, max=128.0, help="Standard deviation of the pixel noise, of 255.")
    ] = 8.0,
    mislabelled: Annotated[float, typer.Option(min=0.0, max=0.5, help="Share of wrong labels.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of random draws.")] = 0,
) -> None:
    """Make a synthetic face set of any size and difficulty."""
    from dlfd_fleet.data import synthesize
    from dlfd_fleet.progress import ConsoleProgress

    manifest = synthesize(
        folder,
        people=people,
        images_per_person=images,
        image_size=image_size,
        classes=classes,
        seed=seed,
        contrast=contrast,
        grain=grain,
        mislabelled=mislabelled,
        progress=ConsoleProgress(PlainConsole(stderr=True)),
    )
    console.print(f"Wrote {people * images} images and {manifest}.")


@app.command("deal", epilog="Example: dlfd-fleet data deal --set data.manifest=faces/manifest.csv --set data.sites=4")
def deal(config: Config = None, overrides: Overrides = None) -> None:
    """Deal the people of the face set to site folders under the state folder, for a simulated fleet."""
    from dlfd_fleet.ledger.site_setup import deal_to_sites
    from dlfd_fleet.progress import ConsoleProgress

    settings = load(config, overrides).settings
    for name in deal_to_sites(settings, ConsoleProgress(console)):
        console.print(str(settings.state_folder / "sites" / name), soft_wrap=True)
