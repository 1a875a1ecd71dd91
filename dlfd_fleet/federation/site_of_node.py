"""Which site folder a node works on: named by the node's own configuration, never by a message."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flwr.app import Context

from dlfd_fleet.exceptions import ConfigurationError
from dlfd_fleet.ledger.site import Site, site_folders
from dlfd_fleet.settings import load_settings


@contextmanager
def site_of_node(context: Context) -> Iterator[Site]:
    """Open the site of a node, and close its ledger again.

    A SuperNode names its folder: ``--node-config 'site-folder="/srv/site"'``. A virtual node of the Simulation Runtime
    has the number of one of the folders under ``state_folder/sites``.

    Raises
    ------
    ConfigurationError
        If the node has no site.
    """
    named = context.node_config.get("site-folder")
    if named is not None:
        folder = Path(str(named))
    else:
        state_folder = load_settings().settings.state_folder
        folders = site_folders(state_folder)
        number = int(context.node_config.get("partition-id", -1))
        if not 0 <= number < len(folders):
            raise ConfigurationError(
                f"Node {number} has no site: {state_folder / 'sites'} holds {len(folders)}; start as many SuperNodes "
                "as there are sites, or name a folder with --node-config 'site-folder=\"...\"'."
            )
        folder = folders[number]
    with Site(folder) as site:
        yield site
