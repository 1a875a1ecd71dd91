"""Load a site's decoded images, with the current use of each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from dlfd_fleet.data import ImageUse, Use, image_digests
from dlfd_fleet.data.dataset import IdentityDataset, stored_dataset
from dlfd_fleet.data.decoded import DecodedRows
from dlfd_fleet.data.uses import of_who_asked
from dlfd_fleet.federation.site.job_requests import people_of
from dlfd_fleet.ledger.entries import ForgetRequest
from dlfd_fleet.ledger.site import Site
from dlfd_fleet.ledger.site_uses import note_trained, site_uses
from dlfd_fleet.model_input import ModelInput
from dlfd_fleet.unlearning import (
    LabelledImages,
)

_Key = tuple[int, ModelInput, tuple[str, ...], bool]
_Decoded = tuple[IdentityDataset, tuple[str | None, ...]]


@dataclass(frozen=True)
class UsedImages:
    """A site's decoded images in a file, with the current use and the SHA-256 of each."""

    images: IdentityDataset
    uses: tuple[ImageUse, ...]
    digests: tuple[str | None, ...]

    def retain(self) -> IdentityDataset:
        """Return the images to train on."""
        return self.images.select([index for index, use in enumerate(self.uses) if use.use is Use.TRAIN])

    def validation(self) -> IdentityDataset:
        """Return the images of people never trained on, for a gate."""
        return self.images.select([index for index, use in enumerate(self.uses) if use.use is Use.VALIDATION])

    def note_trained(self, site: Site) -> None:
        """Note in the ledger on whom the site trains; these people are never unseen again."""
        note_trained(site, self.images.rows, self.uses)

    def forget(self, requests: Iterable[ForgetRequest]) -> IdentityDataset:
        """Return the images of the people of these requests that were trained on."""
        trained = self.images.select([index for index, use in enumerate(self.uses) if use.use is Use.FORGET])
        return trained.of_people(people_of(requests))


def used_images(site: Site) -> UsedImages:
    """Return the site's images, cached until the manifest changes."""
    file = site.manifest_file
    changed, card = file.stat().st_mtime_ns, site.card
    key, latest = (changed, card.input, card.classes, card.multi_label), _latest(site.folder)
    if key not in latest:
        latest.clear()  # whom a purge has deleted must not stay in memory
        latest[key] = _decoded(site.folder, card.input, card.classes, multi_label=card.multi_label)
    images, digests = latest[key]
    uses = site_uses(site, images.rows, digests)
    rows = tuple(of_who_asked(row, use) for row, use in zip(images.rows, uses, strict=True))
    return UsedImages(replace(images, rows=rows), uses, digests)


@lru_cache(maxsize=64)
def _latest(_folder: Path) -> dict[_Key, _Decoded]:
    """Return where the images of a site's folder are kept as long as its manifest does not change."""
    return {}


def _decoded(folder: Path, model_input: ModelInput, classes: tuple[str, ...], *, multi_label: bool) -> _Decoded:
    with Site(folder) as site:
        manifest = site.usable_manifest()
        digests = image_digests(manifest)
        images = stored_dataset(manifest, digests, DecodedRows(folder, model_input), classes, multi_label=multi_label)
        site.decoded.erase(site.ledger.tombstones())  # a purge may have come between
        return images, digests


def labelled(images: IdentityDataset) -> LabelledImages:
    """Return images in the form for training."""
    return LabelledImages(images.images, images.labels)


def with_people(images: IdentityDataset) -> LabelledImages:
    """Return images in the form for unlearning, with people."""
    return LabelledImages(images.images, images.labels, images.people)
