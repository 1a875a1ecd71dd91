"""The model of a task, as a site works on it: of which epoch, with which weights, under which seed."""

from __future__ import annotations

import zlib

from dlfd_fleet.exceptions import JobError, MessageError
from dlfd_fleet.federation.protocol.packing import Arrays
from dlfd_fleet.ledger.site import Site
from dlfd_fleet.models import FaceClassifier, ModelCard, build_empty, to_best_device


def loaded_model(card: ModelCard, arrays: Arrays) -> FaceClassifier:
    """Return a task's model on the best device; a :class:`MessageError` if the arrays are not those of its card."""
    model = build_empty(card)
    try:
        model.load_state_dict(arrays)
    except RuntimeError as error:
        raise MessageError(f"The coordinator sent arrays that are not those of a {card.architecture}.") from error
    return to_best_device(model)


def refuse_old_models(site: Site, card: ModelCard) -> None:
    """Work on no model that remembers people whom a release has forgotten.

    Raises
    ------
    JobError
        If the model is under the fleet's erasure epoch.
    """
    epoch = site.ledger.epoch()
    if card.epoch < epoch:
        raise JobError(
            f"The model has the epoch {card.epoch}, under the fleet's {epoch}: this site does not work on it."
        )


def site_seed(site: Site, seed: int) -> int:
    """Give each site its own batches and noise, the same in every run."""
    return zlib.crc32(f"{seed}|{site.card.name}".encode()) % 2**31
