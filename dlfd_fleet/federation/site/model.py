"""Load the model of a task at a site, and check its epoch and factory."""

from __future__ import annotations

import zlib

from dlfd_fleet.exceptions import JobError, MessageError, ModelFileError
from dlfd_fleet.federation.protocol.packing import Arrays
from dlfd_fleet.federation.task import Task
from dlfd_fleet.ledger.site import Site
from dlfd_fleet.models import FeatureClassifier, ModelCard, build_empty, load_arrays, permit, to_best_device


def loaded_model(site: Site, card: ModelCard, arrays: Arrays, own: Task | None = None) -> FeatureClassifier:
    """Return a message's model on the best device.

    Parameters
    ----------
    own
        The task of the site's app, which may name the network.

    Raises
    ------
    JobError
        If this site does not name this network.
    MessageError
        If the arrays are not those of the card.
    ModelFileError
        If the network cannot be built here.
    """
    if card.of_factory:
        _permit_if_named(site, card, own)
    model = build_empty(card)
    try:
        load_arrays(model, arrays)
    except ModelFileError as error:
        raise MessageError(f"The coordinator sent arrays that are not those of a {card.architecture}.") from error
    return to_best_device(model)


def _permit_if_named(site: Site, card: ModelCard, own: Task | None) -> None:
    """Refuse a factory or arguments in a message that this site does not name itself."""
    components = [*site.card.networks, *([own.network] if own and own.network else [])]
    named = {component.name: component.arguments for component in components}
    if card.architecture not in named:
        raise JobError(
            f"This site builds no network '{card.architecture}' for a message: its site.json names none of that name "
            "under 'networks', and its app has no task with it."
        )
    if named[card.architecture] != card.arguments:
        raise JobError(
            f"This site names '{card.architecture}' with other arguments than the message; its site.json or its app's "
            "task must agree with the coordinator's."
        )
    permit(card.architecture)


def refuse_old_models(site: Site, card: ModelCard) -> None:
    """Refuse a model that may remember people whom a release has forgotten.

    Raises
    ------
    JobError
        If the model is below the fleet's erasure epoch.
    """
    epoch = site.ledger.epoch()
    if card.epoch < epoch:
        raise JobError(
            f"The model has the epoch {card.epoch}, under the fleet's {epoch}: this site does not work on it."
        )


def site_seed(site: Site, seed: int) -> int:
    """Return a seed for this site, the same in every run."""
    return zlib.crc32(f"{seed}|{site.card.name}".encode()) % 2**31
