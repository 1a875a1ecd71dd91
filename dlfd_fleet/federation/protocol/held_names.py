"""Name the model of a task, so that a site that holds it is not sent it again.

The name is the model's digest (:func:`~dlfd_fleet.models.digest`). A task can hold the model, leave it out, or hold a
difference from another named model. Arrays that a difference leaves out, such as frozen ones, are those of that model.
"""

from __future__ import annotations

from flwr.app import ConfigRecord, RecordDict

MODEL_NOT_HELD = 1001
"""Error code of a site that does not hold the named model; not one of Flower's."""
NOTHING_TO_TRAIN_ON = 1002
"""Error code of a site with too few people in a half; it takes no part in this reference model."""
NAMED, SHA256, KEPT = "model-named", "sha256", "kept"
"""The record that names a task's model, with fields for the name and whether the site keeps the model."""
DIFFERENCE, BASE, PRECISION = "model-difference", "base", "precision"
"""The record of a difference, and fields for its base model and its precision."""


def name_of(records: RecordDict) -> str:
    """Return the name of a task's model; empty if it has none."""
    named = records.get(NAMED)
    return str(named[SHA256]) if isinstance(named, ConfigRecord) else ""


def is_kept(records: RecordDict) -> bool:
    """Tell whether a site keeps a task's model once the task is done."""
    named = records.get(NAMED)
    return not isinstance(named, ConfigRecord) or bool(named.get(KEPT, True))
