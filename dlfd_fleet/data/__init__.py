"""Data sets in which each row has a person: manifests, checks, splits by person, sources and drawn sets.

A manifest is a table with one row an image: path, person, class, and optionally site and split. Files, loaders and
registered sources become a :class:`Manifest`::

    manifest = read_manifest(Path("faces/manifest.csv"))
    print(manifest.identities, manifest.classes)

Images are decoded by :mod:`dlfd_fleet.data.dataset`, which needs torch; this package does not. Stable: the names in
``__all__``. A data source of your own: docs/how-to/source.md.
"""

from dlfd_fleet.data.check import Problem, check_manifest
from dlfd_fleet.data.classes import (
    balanced_weights,
    class_names,
    labels_in,
    listed,
    refuse_wrong_classes,
    unknown_label,
)
from dlfd_fleet.data.identity import canonical
from dlfd_fleet.data.image_files import Links, names_of
from dlfd_fleet.data.manifest import Manifest, Row, read_manifest, write_manifest
from dlfd_fleet.data.people import PersonDataset
from dlfd_fleet.data.purging import Purge, PurgePlan, delete_files, file_digest, plan_purge
from dlfd_fleet.data.site_images import copy_images, drop_rows, image_digest, returned_images
from dlfd_fleet.data.sources import SOURCES, DataSource, celeba_manifest, open_source, orl_manifest
from dlfd_fleet.data.splits import assign_people, choose_people_to_forget, order_by_appearance, systematic_sample
from dlfd_fleet.data.synthetic import drawn_inputs, synthesize
from dlfd_fleet.data.trained_on import TrainedOn
from dlfd_fleet.data.uses import ImageUse, LeftOut, Use, image_digests, image_uses, refuse_leaks, with_whole_splits

__all__ = [
    "SOURCES",
    "DataSource",
    "ImageUse",
    "LeftOut",
    "Links",
    "Manifest",
    "PersonDataset",
    "Problem",
    "Purge",
    "PurgePlan",
    "Row",
    "TrainedOn",
    "Use",
    "assign_people",
    "balanced_weights",
    "canonical",
    "celeba_manifest",
    "check_manifest",
    "choose_people_to_forget",
    "class_names",
    "copy_images",
    "delete_files",
    "drawn_inputs",
    "drop_rows",
    "file_digest",
    "image_digest",
    "image_digests",
    "image_uses",
    "labels_in",
    "listed",
    "names_of",
    "open_source",
    "order_by_appearance",
    "orl_manifest",
    "plan_purge",
    "read_manifest",
    "refuse_leaks",
    "refuse_wrong_classes",
    "returned_images",
    "synthesize",
    "systematic_sample",
    "unknown_label",
    "with_whole_splits",
    "write_manifest",
]
