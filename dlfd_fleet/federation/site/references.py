"""Draw the halves of reference models at a site, and store their answers.

Only the site knows the halves. It notes on whom a model is trained before it trains, and stores the model's answers for
all of its images. It does not keep the models.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from numpy.typing import NDArray

from dlfd_fleet.answers import decided
from dlfd_fleet.audit import least_drop
from dlfd_fleet.data import canonical, image_digest
from dlfd_fleet.data.dataset import IdentityDataset
from dlfd_fleet.exceptions import DataError, JobError
from dlfd_fleet.federation.protocol.messages import (
    FitTask,
    ReferenceResult,
    ReferenceTask,
    UnseenResult,
    UnseenTask,
)
from dlfd_fleet.federation.protocol.packing import Arrays
from dlfd_fleet.federation.site.images import UsedImages, labelled, used_images, with_people
from dlfd_fleet.federation.site.model import loaded_model, refuse_old_models
from dlfd_fleet.federation.task import Task
from dlfd_fleet.ledger.references import Membership, ReferenceSet, UnseenAccuracy, halves
from dlfd_fleet.ledger.site import Site
from dlfd_fleet.ledger.site_uses import FEWEST_TO_TRAIN
from dlfd_fleet.unlearning import LabelledImages
from dlfd_fleet.unlearning.references import ReferenceAnswers, References
from dlfd_fleet.unlearning.training import predict_logits, predict_probabilities


class TooFewInHalfError(JobError):
    """Too few of a site's people are in a reference model's half, so the site takes no part."""


def half_of(site: Site, task: FitTask, images: UsedImages) -> IdentityDataset:
    """Return the images to train a reference model on, and note the people of its half as trained on.

    Raises
    ------
    TooFewInHalfError
        If there are too few images.
    DataError
        If the note cannot be written.
    """
    if task.reference is None:
        raise JobError("The task names no reference model.")
    chosen, retain = _begun(site, task, images), images.retain()
    number, digests, members = task.reference.number, _digests_of(site, retain), site.references.people(chosen)
    half = retain.of_people(
        [name for name, digest in digests.items() if digest in members and members[digest].half >> number & 1]
    )
    if len(half) < FEWEST_TO_TRAIN:
        raise TooFewInHalfError("This site has fewer than two images of people in this half.")
    site.references.note_trained(chosen, number, {digests[name] for name in half.identities})
    site.note_trained(half.identities)
    return half


def run_reference(site: Site, task: ReferenceTask, arrays: Arrays, own: Task | None = None) -> ReferenceResult:
    """Store a reference model's answers for every image of the site."""
    started = time.perf_counter()
    refuse_old_models(site, task.card)
    used, number, kept = used_images(site), task.reference.number, site.references
    chosen = _begun(site, task, used)
    rows = {digest: row for row, digest in enumerate(used.digests) if digest is not None}  # one of each content
    images = labelled(used.images.select(list(rows.values())))
    logits = predict_logits(loaded_model(site, task.card, arrays, own), images)
    members, digests = kept.people(chosen), _digests_of(site, used.images)
    was_trained = {name for name, digest in digests.items() if _bit(members.get(digest), number)}
    pairs = zip(used.images.identities, used.digests, strict=True)
    seen = {digest for name, digest in pairs if name in was_trained}  # under whatever name
    kept.keep(chosen, number, list(rows), [digest in seen for digest in rows], logits)
    site.purge_references()  # a purge may have come between
    return ReferenceResult(images=len(rows), missing=kept.missing(chosen), seconds=time.perf_counter() - started)


def compare_on_unseen(site: Site, task: UnseenTask, arrays: Arrays, own: Task | None = None) -> UnseenResult:
    """Compare how often reference models and a model are right about people never trained on, and store the result.

    A person is OUT in one model of each pair, so the means over one model of each pair are compared.
    """
    started = time.perf_counter()
    refuse_old_models(site, task.card)
    images, chosen = used_images(site).validation(), site.references.current()
    answers = reference_answers(site, images) if len(images) else None
    known = None if answers is None else answers.out.all(dim=0)
    if answers is None or known is None or chosen is None or not known.any():
        return UnseenResult(unseen=None, seconds=time.perf_counter() - started)
    rows = torch.nonzero(known).flatten()
    unseen = with_people(images).select(rows)
    means = [answers.of_models(range(first, chosen.models, 2)).mean_of_out()[rows].numpy() for first in (0, 1)]
    mine = _right(predict_probabilities(loaded_model(site, task.card, arrays, own), unseen), unseen)
    theirs = np.mean([_right(mean, unseen) for mean in means], axis=0)
    people = images.people[rows].numpy()
    compared = UnseenAccuracy(
        people=len(np.unique(people)),
        model=float(mine.mean()),
        references=float(theirs.mean()),
        too_poor=least_drop(mine, theirs, people) > task.max_drop,
    )
    site.references.note_unseen(chosen, compared)
    return UnseenResult(unseen=compared, seconds=time.perf_counter() - started)


def reference_answers(site: Site, images: IdentityDataset) -> ReferenceAnswers | None:
    """Return the reference models' answers for some of a site's images, in their order.

    Returns
    -------
    ReferenceAnswers or None
        None if the site has no complete set with its classes. Images that are newer than the models have no answers.
    """
    kept = site.references
    chosen = kept.current()
    if chosen is None or chosen.classes != _classes_of(site):
        return None
    manifest = site.manifest()
    wanted = [image_digest(manifest, row) for row in images.rows]
    logits = np.full((chosen.models, len(images), len(chosen.classes)), np.nan, np.float32)
    trained = np.zeros((chosen.models, len(images)), bool)
    try:
        members, digests = kept.people(chosen), _digests_of(site, images)
        for number in range(chosen.models):
            trained[number] = [_bit(members.get(digests[name]), number) for name in images.identities]
            places, records = kept.answers(chosen, number)
            for row, digest in enumerate(wanted):
                if (place := places.get(digest or "")) is not None:
                    logits[number, row] = records["logits"][place]
                    trained[number, row] |= records["trained"][place]
    except DataError:  # a file that is damaged is none
        return None
    return ReferenceAnswers(torch.from_numpy(logits), torch.from_numpy(trained), site.card.multi_label)


def references_of(site: Site, forget: IdentityDataset, validation: IdentityDataset) -> References | None:
    """Return the reference models' answers for people to forget and for validation people.

    None if no OUT model has answered for any person to forget; then an erasure cannot aim at references.
    """
    mine = reference_answers(site, forget)
    if mine is None or not mine.out.any():
        return None
    others = reference_answers(site, validation) if len(validation) else None
    return References(mine, others if others is not None and others.out.any() else None)


def answered_images(site: Site, forget: IdentityDataset, validation: IdentityDataset) -> int:
    """Return the number of images to forget for which references can measure forgetting."""
    known = references_of(site, forget, validation) if len(forget) else None
    return 0 if known is None or known.validation is None else int(known.forget.out.any(dim=0).sum())


def _begun(site: Site, task: FitTask | ReferenceTask, images: UsedImages) -> ReferenceSet:
    """Return the set of a job, which starts with the site's first task of that job."""
    models = task.reference.models if task.reference else 0
    wanted = ReferenceSet(job=task.job, models=models, classes=_classes_of(site))

    def people() -> dict[str, int]:
        names = {canonical(name): name for name in images.retain().identities}
        shared = halves(names, models, lambda pair, name: site.place_in_halves(name, task.job, pair))
        return {site.person_digest(name): bits for name, bits in shared.items()}

    return site.references.begin(wanted, people)


def _digests_of(site: Site, images: IdentityDataset) -> dict[str, str]:
    return {name: site.person_digest(name) for name in set(images.identities)}


def _classes_of(site: Site) -> tuple[str, ...]:
    return tuple(map(canonical, site.card.classes))


def _right(probabilities: NDArray[np.floating], images: LabelledImages) -> NDArray[np.float64]:
    """Return how much of each image ``(N,)`` is right: 1 or 0, or with labels the share of right labels."""
    right = decided(probabilities, multi_label=images.multi_label) == images.labels.numpy()
    share: NDArray[np.float64] = right.reshape(len(images), -1).mean(axis=1)
    return share


def _bit(member: Membership | None, number: int) -> bool:
    return member is not None and bool(member.trained >> number & 1)
