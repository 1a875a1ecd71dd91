"""Find the site folder of a node, by the node's own configuration, never by a message."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from flwr.app import Context

from dlfd_fleet.components import Component
from dlfd_fleet.configuration import load_settings
from dlfd_fleet.data import canonical, listed
from dlfd_fleet.exceptions import ConfigurationError, DataError, FleetError, JobError, MessageError
from dlfd_fleet.federation.task import Task
from dlfd_fleet.ledger.restored import restored
from dlfd_fleet.ledger.site import CARD_FILE, LOG_FILE, Site, SiteCard, site_folders
from dlfd_fleet.ledger.site_setup import init_site


def site_folder(context: Context) -> Path:
    """Return the folder of a node's site.

    A SuperNode names its folder: ``--node-config 'site-folder="/srv/site"'``. A virtual node of the Simulation Runtime
    uses a folder under ``state_folder/sites`` by its number.

    Raises
    ------
    ConfigurationError
        If the node has no site.
    """
    named = context.node_config.get("site-folder")
    if named is not None:
        return Path(str(named))
    state_folder = load_settings().settings.state_folder
    folders = site_folders(state_folder)
    number = int(context.node_config.get("partition-id", -1))
    if not 0 <= number < len(folders):
        raise ConfigurationError(
            f"Node {number} has no site: {state_folder / 'sites'} holds {len(folders)}; start as many SuperNodes "
            "as there are sites, or name a folder with --node-config 'site-folder=\"...\"'."
        )
    return folders[number]


@contextmanager
def site_of_node(context: Context, task: Task | None = None) -> Iterator[Site]:
    """Open the site of a node, and close its ledger afterwards.

    Flower sends the text of an error to the coordinator. A text that may name a person or a path goes to the site's
    ``site.log`` instead, and the coordinator learns only the kind of error. The text begins with the site's id, if its
    card can be read.

    Raises
    ------
    ConfigurationError
        If the node has no site.
    JobError
        In place of any other error, without its text.
    """
    folder = site_folder(context)
    try:
        if task is not None and task.loader is not None and not (folder / CARD_FILE).exists():
            _make_site(folder, task, task.loader, context)
        with Site(folder) as site:
            if (found := restored(site)) is not None:
                raise JobError(found.sentence())
            if task is not None:
                _refuse_other_data(site, task)
            yield site
    except (MessageError, JobError) as error:
        raise type(error)(f"{_named(folder)}{error}") from error  # their words are about messages and counts
    except Exception as error:
        noted = _note(folder, error)
        more = "its site.log says more" if noted else "its site.log cannot be written; check space and rights there"
        raise JobError(f"{_named(folder)}{type(error).__name__} at this site; {more}.") from None


def _named(folder: Path) -> str:
    """Return the prefix of a site's errors; empty if its card cannot be read."""
    try:
        card = SiteCard.model_validate_json((folder / CARD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    return f"site-{card.id}: " if "id" in card.model_fields_set else ""


def _make_site(folder: Path, task: Task, loader: Component, context: Context) -> None:
    """Make the folder of a node's site from the rows of its app's loader.

    Raises
    ------
    FleetError
        If the loader or one of its rows cannot be used; then no site is made.
    """
    folder.mkdir(parents=True, exist_ok=True)  # the site's log says what is wrong, if something is
    try:
        known = inspect.signature(loader.resolve()).parameters
    except ImportError as error:
        raise DataError(
            f"The loader '{loader.name}' of the app's task cannot be imported ({error}); install its package, or "
            "correct its name."
        ) from error
    given = {key.replace("-", "_"): value for key, value in context.node_config.items()}
    arguments = {name: given[name] for name in known if name in given and name != "site_folder"}
    init_site(
        folder,
        name=folder.name,
        loader=loader.model_copy(update={"arguments": arguments}),
        classes=tuple(task.classes),
        multi_label=task.multi_label,
        model_input=task.input,
        validation_people=task.validation_people,
        test_people=task.test_people,
    ).ledger.close()


def _refuse_other_data(site: Site, task: Task) -> None:
    """Refuse a site whose data differ from the app's task.

    Raises
    ------
    ConfigurationError
        If its classes or its input differ.
    """
    shapes = ((list(map(canonical, one.classes)), one.multi_label, one.input) for one in (site.card, task))
    if next(shapes) != next(shapes):
        said, other = (f"{listed(one.classes)} of {one.input.sentence()}" for one in (site.card, task))
        ours, theirs = ("labels" if one.multi_label else "classes" for one in (site.card, task))
        raise ConfigurationError(
            f"site.json has the {ours} {said}, and the app's task the {theirs} {other}; they must agree."
        )


def _note(folder: Path, error: Exception) -> bool:
    """Write an error to the site's log; return False if that fails."""
    # An OSError says what the site's operator can mend, as our own errors do; all others are defects.
    words = str(error) if isinstance(error, (FleetError, OSError)) else "".join(traceback.format_exception(error))
    try:
        with (folder / LOG_FILE).open("a", encoding="utf-8") as log:
            log.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} {type(error).__name__}: {words}\n")
    except OSError:
        return False
    return True
