"""Build classifiers from their cards, and read and write both.

A :class:`ModelCard` names the network, its input and its classes. :func:`build` makes a :class:`FeatureClassifier` of
it, which gives features and logits in one pass::

    card = ModelCard(architecture="resnet18", classes=("glasses", "none"), input=image_input(64))
    features, logits = build(card).features_and_logits(images)

A user's own network is named by its factory, ``package.module:callable``; :func:`permit` allows a process to build
it.
"""

from dlfd_fleet.models.card import ModelCard, Name
from dlfd_fleet.models.classifiers import FaceClassifier, FeatureClassifier, WrappedClassifier
from dlfd_fleet.models.files import (
    CARD_FILE,
    MODEL_FILE,
    card_of,
    digest,
    load_arrays,
    load_model,
    save_model,
    state_arrays,
)
from dlfd_fleet.models.freezing import frozen_values
from dlfd_fleet.models.frozen_outputs import frozen_outputs_kept
from dlfd_fleet.models.networks import (
    ARCHITECTURES,
    NETWORKS,
    Network,
    build,
    build_empty,
    permit,
    to_best_device,
    with_frozen,
)
from dlfd_fleet.models.starting import described, given_weights, normalised, start

__all__ = [
    "ARCHITECTURES",
    "CARD_FILE",
    "MODEL_FILE",
    "NETWORKS",
    "FaceClassifier",
    "FeatureClassifier",
    "ModelCard",
    "Name",
    "Network",
    "WrappedClassifier",
    "build",
    "build_empty",
    "card_of",
    "described",
    "digest",
    "frozen_outputs_kept",
    "frozen_values",
    "given_weights",
    "load_arrays",
    "load_model",
    "normalised",
    "permit",
    "save_model",
    "start",
    "state_arrays",
    "to_best_device",
    "with_frozen",
]
