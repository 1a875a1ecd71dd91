"""Make the folder of a site, or of all sites of a simulated fleet."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from dlfd_fleet.components import Component
from dlfd_fleet.data import (
    Links,
    Manifest,
    Row,
    TrainedOn,
    assign_people,
    canonical,
    copy_images,
    listed,
    open_source,
    read_manifest,
    refuse_leaks,
    refuse_wrong_classes,
    unknown_label,
    write_manifest,
)
from dlfd_fleet.data.classes import too_few
from dlfd_fleet.data.decoded import Content, DecodedRows
from dlfd_fleet.data.loaded import LoadedRows, classes_of
from dlfd_fleet.data.loaders import write_npz
from dlfd_fleet.exceptions import ConfigurationError, DataError
from dlfd_fleet.ledger.site import CARD_FILE, LEDGER_FILE, Site, SiteCard, create_site, read_secret
from dlfd_fleet.model_input import ModelInput, image_input
from dlfd_fleet.names import refuse_alike
from dlfd_fleet.progress import ProgressDisplay
from dlfd_fleet.settings import Settings

_USUAL_INPUT = image_input(64)
_NPZ = "dlfd_fleet.data.loaders:npz"


def init_site(
    folder: Path,
    *,
    name: str,
    manifest: Path | Manifest | None = None,
    loader: Component | None = None,
    root: Path | None = None,
    links: Links = "refuse",
    classes: tuple[str, ...] | None = None,
    multi_label: bool = False,
    model_input: ModelInput = _USUAL_INPUT,
    networks: tuple[Component, ...] = (),
    validation_people: int = 0,
    test_people: int = 0,
    trained_on: TrainedOn | None = None,
    ledger: str = LEDGER_FILE,
    fleet_secret: Path | None = None,
    seed: int = 0,
) -> Site:
    """Make the folder of a site: card, keys, empty ledger and manifest. Images are not moved.

    Parameters
    ----------
    manifest, root
        The site's manifest; if it has sites, the rows of this site are used. Default image folder: that of the
        manifest.
    loader
        Instead of a manifest, a loader of the site's rows, which are decoded into the folder.
    links
        Whether images may be links that leave the image folder; a purge deletes the file that they lead to.
    classes
        All classes of the fleet in order. Default: those of the manifest.
    multi_label
        Whether a cell of the manifest may hold several labels.
    model_input
        Input of the fleet's models.
    networks
        Factories of networks that the site builds if a message names them.
    validation_people, test_people
        Numbers of people kept out of training for the gate and for the audit, if the manifest has no splits.
    trained_on
        People on whom the fleet's model was trained before. They get the split train, and the ledger notes them, so
        none of them counts as unseen.
    ledger
        A file in the folder, or the URL of a PostgreSQL database.
    fleet_secret
        File of the secret that sites of a fleet share, to recognise people whom several sites hold.

    Raises
    ------
    ConfigurationError
        If the folder is a site's already, or the secret or a setting cannot be used.
    DataError
        If the manifest cannot be read, has labels that are no classes, links that leave the image folder, too few
        people, or an image or a person that is trained on among the unseen ones; or the loader's rows cannot be used.
    LedgerError
        If the ledger cannot be made.
    """
    if (folder / CARD_FILE).exists():
        raise ConfigurationError(f"{folder} is a site's folder already; name another one.")
    secret = read_secret(fleet_secret) if fleet_secret else None
    with _nothing_left_of_a_failure(folder):
        if loader is not None:
            faces, names = index_rows(
                folder, LoadedRows(loader, model_input, classes or (), folder.absolute(), multi_label)
            )
        elif manifest is not None:
            faces = manifest if isinstance(manifest, Manifest) else read_manifest(manifest, root, links)
            faces, names = faces.of_site(name), classes or ()
            _refuse_links_and_labels(faces, names, multi_label=multi_label)
        else:
            raise ConfigurationError("A site needs a manifest, or a loader.")
        source = manifest if isinstance(manifest, Path) else folder / CARD_FILE
        marked = faces if trained_on is None else trained_on.marked(faces, source)
        dealt = assign_people(marked, validation_people=validation_people, test_people=test_people, sites=1, seed=seed)
        refuse_leaks(dealt)
        # Unseen people that this site set aside are its own; those that came with a split are everybody's.
        pairs = zip(faces.rows, dealt.rows, strict=True)
        rows = [replace(new, site=old.site if old.split else name) for old, new in pairs]
        try:
            card = SiteCard(
                name=name,
                input=model_input,
                networks=networks,
                multi_label=multi_label,
                classes=names or (faces.labels if multi_label else faces.classes),
                root=faces.root,
                links=links,
                ledger=ledger,
                data=loader,
            )
        except ValidationError as error:
            first = error.errors()[0]
            raise ConfigurationError(
                f"The site's '{first['loc'][0]}': {first['msg'].removeprefix('Value error, ')}."
            ) from error
        write_manifest(rows, folder / card.manifest)
        create_site(folder, card, secret)
        site = Site(folder)
        if trained_on is not None:
            site.note_trained(trained_on.people(faces))
    return site


def index_rows(folder: Path, loaded: LoadedRows) -> tuple[Manifest, tuple[str, ...]]:
    """Decode a loader's rows into a site's folder; return their manifest, and their classes if the order is known.

    Raises
    ------
    DataError
        If a row cannot be used, or the disk refuses.
    """
    rows = list[Row]()

    def contents() -> Iterator[Content]:
        for each in loaded.rows():
            rows.append(each.row)
            yield each.digest, each.content

    listed = tuple(loaded.classes or loaded.open().classes or ())
    DecodedRows(folder, loaded.model_input).write(contents())
    return Manifest(tuple(rows), Path(), loaded=loaded), classes_of(rows, listed)


def _refuse_links_and_labels(faces: Manifest, classes: Sequence[str], *, multi_label: bool) -> None:
    known = {canonical(label) for label in classes}
    for row in faces.rows:
        faces.file_of(row)
        if classes and (unknown := unknown_label(row.label, known, multi_label=multi_label)) is not None:
            raise DataError(f"The image {row.image} has the label '{unknown}'; the classes are {listed(classes)}.")


@contextmanager
def _nothing_left_of_a_failure(folder: Path) -> Iterator[None]:
    """Delete what an error leaves of a new site, and nothing that was in its folder before."""
    before = set(folder.iterdir()) if folder.is_dir() else None
    try:
        yield
    except BaseException:
        for file in set(folder.iterdir()) - (before or set()) if folder.is_dir() else ():
            with suppress(OSError):
                shutil.rmtree(file) if file.is_dir() and not file.is_symlink() else file.unlink()
        if before is None:
            with suppress(OSError):
                folder.rmdir()
        raise


def deal_to_sites(settings: Settings, progress: ProgressDisplay) -> list[str]:
    """Deal people to sites, each with its own copy of its images; return the sites' names.

    All folders appear at once, under ``state_folder/sites``, or none.

    Raises
    ------
    ConfigurationError
        If there are sites already, or the folder cannot be written.
    DataError
        If the data set is missing, damaged or too small, or an image is both trained on and unseen.
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
    refuse_leaks(manifest)
    names = sorted({row.site for row in manifest.rows if row.site})
    if not names:
        raise DataError("Nobody is left to train on; lower data.test_people or data.validation_people.")
    try:
        refuse_alike(names)
    except ValueError as error:
        raise DataError(f"Two sites cannot be told apart: {error}.") from error
    classes = manifest.labels if data.multi_label else manifest.classes
    refuse_wrong_classes(classes, multi_label=data.multi_label)
    if why := too_few(classes, multi_label=data.multi_label):
        raise ConfigurationError(f"The data set cannot be used for training: {why}.")
    networks = settings.model.components
    new = folder.with_name("sites.new")
    try:
        shutil.rmtree(new, ignore_errors=True)
        secret = secrets.token_bytes(32)
        with progress.phase(f"Dealing {len(manifest.identities)} people to {len(names)} sites", len(names)) as advance:
            for name in names:
                loader = _copy_to_site(manifest.of_site(name), new / name, data.input)
                card = SiteCard(
                    name=name,
                    input=data.input,
                    multi_label=data.multi_label,
                    classes=classes,
                    networks=networks,
                    data=loader,
                )
                create_site(new / name, card, secret)
                advance()
        new.replace(folder)
    except OSError as error:
        raise ConfigurationError(f"The state folder {settings.state_folder} cannot be written: {error}.") from error
    return names


def _copy_to_site(manifest: Manifest, folder: Path, model_input: ModelInput) -> Component | None:
    """Copy a site's rows: image files, or an NPZ file whose loader is returned."""
    if manifest.loaded is None:
        copy_images(manifest, folder)
        return None
    from dlfd_fleet.data.dataset import as_arrays

    loader = Component(name=_NPZ, arguments={"file": "rows.npz"})
    folder.mkdir(parents=True)
    write_npz(folder / "rows.npz", as_arrays(manifest, model_input))
    own, _ = index_rows(folder, LoadedRows(loader, model_input, folder=folder))
    pairs = zip(own.rows, manifest.rows, strict=True)
    write_manifest([replace(new, site=dealt.site, split=dealt.split) for new, dealt in pairs], folder / "manifest.csv")
    return loader
