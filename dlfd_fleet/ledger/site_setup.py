"""Dealing a face set to the folders of a simulated fleet."""

from __future__ import annotations

import shutil

from dlfd_fleet.data import assign_people, copy_images, open_source
from dlfd_fleet.exceptions import ConfigurationError
from dlfd_fleet.ledger.site import SiteCard, create_site
from dlfd_fleet.progress import ProgressDisplay
from dlfd_fleet.settings import Settings


def deal_to_sites(settings: Settings, progress: ProgressDisplay) -> list[str]:
    """Deal the people of the face set to sites, each with its own copy of its images; return the sites' names.

    All folders appear at once, under ``state_folder/sites``, or none.

    Raises
    ------
    ConfigurationError
        If there are sites already, or the folder cannot be written.
    DataError
        If the face set is missing, damaged or too small.
    """
    folder = settings.state_folder / "sites"
    if folder.exists():
        raise ConfigurationError(f"{folder} exists; name another state folder, or move that one away.")
    data = settings.data
    manifest = assign_people(
        open_source(data),
        validation_people=data.validation_people,
        test_people=data.test_people,
        sites=data.sites,
        seed=settings.seed,
    )
    names = sorted({row.site for row in manifest.rows if row.site})
    if len(manifest.classes) < 2:
        raise ConfigurationError("The face set shows one class only; a classifier needs two or more.")
    new = folder.with_name("sites.new")
    try:
        shutil.rmtree(new, ignore_errors=True)
        with progress.phase(f"Dealing {len(manifest.identities)} people to {len(names)} sites", len(names)) as advance:
            for name in names:
                copy_images(manifest.of_site(name), new / name)
                create_site(new / name, SiteCard(name=name, image_size=data.image_size, classes=manifest.classes))
                advance()
        new.replace(folder)
    except OSError as error:
        raise ConfigurationError(f"The state folder {settings.state_folder} cannot be written: {error}.") from error
    return names
