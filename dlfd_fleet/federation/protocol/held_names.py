"""How a task names the model that it is about, so that a site which holds that model need not be sent it again.

The name is the model's digest (:func:`~dlfd_fleet.models.digest`). A task may carry the model under its name; leave it
out; or carry the difference from another one, named too. Arrays that a difference leaves out are as in that one: of a
model with frozen layers, their arrays.
"""

from __future__ import annotations

from flwr.app import ConfigRecord, RecordDict

MODEL_NOT_HELD = 1001
"""Code of a site's error reply; none of Flower's own."""
NOTHING_TO_TRAIN_ON = 1002
"""Code of the reply of a site that has too few people for a half: it takes no part in this reference model."""
NAMED, SHA256, KEPT = "model-named", "sha256", "kept"
"""The record that names a task's model; its fields: the name, and whether the site keeps the model afterwards."""
DIFFERENCE, BASE, PRECISION = "model-difference", "base", "precision"
"""The record of a difference; fields of the name: the model that it is from, and how it was rounded."""


def name_of(records: RecordDict) -> str:
    """Return the name of a task's model; empty if it has none."""
    named = records.get(NAMED)
    return str(named[SHA256]) if isinstance(named, ConfigRecord) else ""


def is_kept(records: RecordDict) -> bool:
    """Tell whether a site keeps a task's model once the task is done."""
    named = records.get(NAMED)
    return not isinstance(named, ConfigRecord) or bool(named.get(KEPT, True))
