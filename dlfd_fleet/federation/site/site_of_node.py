"""Which site folder a node works on: named by the node's own configuration, never by a message."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from flwr.app import Context

from dlfd_fleet.configuration import load_settings
from dlfd_fleet.exceptions import ConfigurationError, FleetError, JobError, MessageError
from dlfd_fleet.ledger.site import LOG_FILE, Site, site_folders


def site_folder(context: Context) -> Path:
    """Return the folder of a node's site.

    A SuperNode names its folder: ``--node-config 'site-folder="/srv/site"'``. A virtual node of the Simulation Runtime
    has the number of one of the folders under ``state_folder/sites``.

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
def site_of_node(context: Context) -> Iterator[Site]:
    """Open the site of a node, and close its ledger again.

    Flower sends the text of an error to the coordinator. One that may name a person or a path is written into the
    site's own ``site.log`` instead, and the coordinator learns its kind.

    Raises
    ------
    ConfigurationError
        If the node has no site.
    JobError
        Instead of any other error, without its words.
    """
    folder = site_folder(context)
    try:
        with Site(folder) as site:
            yield site
    except (MessageError, JobError):
        raise  # their words are about messages and counts
    except Exception as error:
        noted = _note(folder, error)
        more = "its site.log says more" if noted else "its site.log cannot be written; check space and rights there"
        raise JobError(f"{type(error).__name__} at this site; {more}.") from None


def _note(folder: Path, error: Exception) -> bool:
    """Write an error into the site's log; return False if that cannot be written either."""
    # An OSError says what the site's operator can mend, as our own errors do; all others are defects.
    words = str(error) if isinstance(error, (FleetError, OSError)) else "".join(traceback.format_exception(error))
    try:
        with (folder / LOG_FILE).open("a", encoding="utf-8") as log:
            log.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} {type(error).__name__}: {words}\n")
    except OSError:
        return False
    return True
