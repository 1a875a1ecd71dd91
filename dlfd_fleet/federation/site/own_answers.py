"""Store what an erasure's first model says of a site's images and of changed copies, for the rounds that follow."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from dlfd_fleet.data import image_digest
from dlfd_fleet.data.dataset import IdentityDataset, augmentation
from dlfd_fleet.exceptions import DataError
from dlfd_fleet.federation.protocol.messages import Aim, UnlearnTask
from dlfd_fleet.federation.site.images import with_people
from dlfd_fleet.federation.site.model import site_seed
from dlfd_fleet.ledger.references import ReferenceSet
from dlfd_fleet.ledger.site import Site
from dlfd_fleet.models import FeatureClassifier
from dlfd_fleet.unlearning.contract import LabelledImages
from dlfd_fleet.unlearning.own_answers import MOST_OTHERS, OwnAnswers

_PLAIN, _CHANGED = 0, 1  # the numbers under which both are stored


def few(unseen: IdentityDataset) -> IdentityDataset:
    """Return all images of people never trained on, or an even sample of many."""
    if len(unseen) <= MOST_OTHERS:
        return unseen
    return unseen.select(torch.linspace(0, len(unseen) - 1, MOST_OTHERS).long().tolist())


def own_answers_of(
    site: Site,
    task: UnlearnTask,
    model: FeatureClassifier,
    forget: IdentityDataset,
    unseen: IdentityDataset,
    retain: LabelledImages,
) -> OwnAnswers | None:
    """Return the answers of the model that a job's erasure began with.

    In the erasure's first round these are the answers of the model that came, and are stored. A site that was not there
    then stores those of the first model that it gets.

    Returns
    -------
    OwnAnswers or None
        None if the site has nobody whom no model was trained on, if these bear no change of images, or if the answer to
        an image to forget is not known.
    """
    if not len(unseen):
        return None
    files, manifest = site.own_answers, site.manifest()
    chosen = files.begin(_set_of(site, task), dict)
    rows = [image_digest(manifest, row) for row in (*forget.rows, *unseen.rows)]
    if task.aim is Aim.OWN_ANSWERS or not files.is_finished(chosen):
        new = OwnAnswers.of(
            model,
            with_people(forget),
            with_people(unseen),
            retain,
            site_seed(site, task.seed),
            # Towards targets images are changed as in training.
            trained_on_copies=augmentation(task.augmentation) is not None,
        )
        if new is None:
            files.drop([task.job])
            return None
        known = [place for place, digest in enumerate(rows) if digest is not None]
        digests = [digest for digest in rows if digest is not None]
        # Of unseen people no changed copies are needed, and of nobody whether a model was trained on them.
        for number, answers in ((_PLAIN, (new.forget, new.unseen)), (_CHANGED, (new.changed, new.unseen))):
            logits: NDArray[np.float32] = torch.cat(answers).numpy()[known]
            files.keep(chosen, number, digests, [False] * len(known), logits)
        site.purge_references()  # a purge may have come between
    plain, changed = (_stored(site, chosen, number, rows) for number in (_PLAIN, _CHANGED))
    count = len(forget)
    own = OwnAnswers(plain[:count], changed[:count], plain[count:], site.card.multi_label)
    unknown = own.forget.isnan().any() or own.changed.isnan().any() or own.unseen.isnan().any(dim=1).all()
    return None if unknown else own


def has_own_answers(site: Site, task: UnlearnTask) -> bool:
    """Tell whether a model's answers are stored for a job, so that the site has unlearned towards them before."""
    return site.own_answers.has(_set_of(site, task))


def _set_of(site: Site, task: UnlearnTask) -> ReferenceSet:
    return ReferenceSet(job=task.job, models=2, classes=site.card.classes)


def _stored(site: Site, chosen: ReferenceSet, number: int, rows: list[str | None]) -> torch.Tensor:
    """Return stored logits ``(N, C)`` of images by their digests; NaN where there are none."""
    logits = np.full((len(rows), len(chosen.classes)), np.nan, np.float32)
    try:
        places, records = site.own_answers.answers(chosen, number)
    except DataError:  # a file that is damaged is none
        return torch.from_numpy(logits)
    for row, digest in enumerate(rows):
        if (place := places.get(digest or "")) is not None:
            logits[row] = records["logits"][place]
    return torch.from_numpy(logits)
