"""Audit a model or a file at a site, and measure ranges for int8."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dlfd_fleet.answers import decided
from dlfd_fleet.audit import ReferenceSums, Role, SampleScores, reference_sums
from dlfd_fleet.audit.samples import ROLES
from dlfd_fleet.data import Use, canonical
from dlfd_fleet.data.dataset import IdentityDataset
from dlfd_fleet.device.inference import BATCH, DeviceModel
from dlfd_fleet.federation.protocol.messages import (
    AuditResult,
    AuditTask,
    CalibrateResult,
    CalibrateTask,
    FileAuditResult,
    FileAuditTask,
)
from dlfd_fleet.federation.protocol.packing import Arrays
from dlfd_fleet.federation.site.images import labelled, used_images
from dlfd_fleet.federation.site.job_requests import people_of, refuse_job_that_lost_its_requests, requests_that_count
from dlfd_fleet.federation.site.model import loaded_model, refuse_old_models, site_seed
from dlfd_fleet.federation.site.references import reference_answers
from dlfd_fleet.federation.task import Task
from dlfd_fleet.ledger.site import Site
from dlfd_fleet.model_input import ModelInput
from dlfd_fleet.unlearning import (
    predict_probabilities,
)

_AT_ONCE = 64 * BATCH  # images
_MOST_RETAINED = 64  # people, beside what reference models say


def run_audit(site: Site, task: AuditTask, arrays: Arrays, own: Task | None = None) -> tuple[AuditResult, SampleScores]:
    """Predict the site's images with a model, and return the samples to send."""
    started = time.perf_counter()
    refuse_old_models(site, task.card)
    images, roles, shared, withheld = _audited(site, task.job, task.roles, task.most_retain, plan=task.plan)
    probabilities = predict_probabilities(loaded_model(site, task.card, arrays, own), labelled(images))
    samples = _sent(probabilities, images, roles, shared)
    sums = _beside_references(site, probabilities, images, roles, shared) if task.references else None
    result = AuditResult(shared=shared, withheld=withheld, references=sums, seconds=time.perf_counter() - started)
    return result, samples


def run_file_audit(
    site: Site, task: FileAuditTask, arrays: Arrays, content: bytes, own: Task | None = None
) -> tuple[FileAuditResult, SampleScores]:
    """Audit an exported file with the devices' own code, and compare it with torch."""
    started = time.perf_counter()
    refuse_old_models(site, task.card)
    images, roles, shared, withheld = _audited(site, task.job, task.roles)
    expected = predict_probabilities(loaded_model(site, task.card, arrays, own), labelled(images))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        file.write_bytes(content)
        probabilities = _predicted(DeviceModel(file), images, task.card.input)
    samples, multi = _sent(probabilities, images, roles, shared), task.card.multi_label
    result = FileAuditResult(
        shared=shared,
        withheld=withheld,
        references=_beside_references(site, probabilities, images, roles, shared) if task.references else None,
        max_abs_difference=float(np.abs(probabilities - expected).max(initial=0.0)),
        images=len(images),
        agreeing=int((decided(probabilities, multi_label=multi) == decided(expected, multi_label=multi)).sum()),
        seconds=time.perf_counter() - started,
    )
    return result, samples


def run_calibration(site: Site, task: CalibrateTask, content: bytes) -> CalibrateResult:
    """Measure the ranges of activations on retain images, never on those of people who asked to be forgotten."""
    from dlfd_fleet.export import calibrate

    started = time.perf_counter()
    refuse_old_models(site, task.card)
    retain = used_images(site).retain()
    if not len(retain):
        return CalibrateResult(ranges={}, images=0, seconds=time.perf_counter() - started)
    order = torch.randperm(len(retain), generator=torch.Generator().manual_seed(site_seed(site, task.seed)))
    images = retain.images[order[: task.images]]
    ranges = calibrate(content, task.card.input.on_device(images.numpy()))
    return CalibrateResult(ranges=ranges, images=len(images), seconds=time.perf_counter() - started)


def _predicted(model: DeviceModel, images: IdentityDataset, model_input: ModelInput) -> NDArray[np.float32]:
    """Return a device's probabilities for images, without loading all of them."""
    parts = [
        model.predict(model_input.on_device(images.images[slice(start, start + _AT_ONCE)].numpy()))
        for start in range(0, max(1, len(images)), _AT_ONCE)
    ]
    return np.concatenate(parts)


def _audited(
    site: Site, job: str, roles_asked: Sequence[str], most_retain: int | None = None, *, plan: bool = False
) -> tuple[IdentityDataset, NDArray[np.uint8], int, int]:
    """Return the images of the asked roles, their roles, and how many of the last ones every site holds.

    Unseen people without a site are held by every site, and every site answers for them. The last value is the number
    of such images that this site leaves out, because it knows that they are not unseen.
    """
    if Role.FORGET.value in roles_asked:
        refuse_job_that_lost_its_requests(site, job)
    used = used_images(site)
    if Role.RETAIN.value in roles_asked:
        used.note_trained(site)  # an imported model was trained on them without a task
    images, asking = used.images, requests_that_count(site, job, plan=plan)
    under_way = {canonical(name) for name in people_of(asking)}
    own, shared, withheld = list[tuple[int, Role]](), list[tuple[int, Role]](), 0
    for index, (row, use) in enumerate(zip(images.rows, used.uses, strict=True)):
        if use.use in (Use.VALIDATION, Use.TEST):
            (own if row.site else shared).append((index, Role(use.use)))
        elif use.use is Use.FORGET and canonical(row.identity) in under_way:
            own.append((index, Role.FORGET))
        elif use.use is Use.TRAIN:
            own.append((index, Role.RETAIN))
        elif not row.site and row.split in roles_asked:
            withheld += 1
    own, shared = ([(index, role) for index, role in rows if role.value in roles_asked] for rows in (own, shared))
    retain = [index for index, role in own if role is Role.RETAIN]
    if most_retain is not None and len(retain) > most_retain:
        retain = sorted(retain, key=images.labels.tolist().__getitem__)
        kept = {retain[number * len(retain) // most_retain] for number in range(most_retain)}
        own = [(index, role) for index, role in own if role is not Role.RETAIN or index in kept]
    rows = own + shared
    numbers = np.array([ROLES.index(role) for _, role in rows], dtype=np.uint8)
    return images.select([index for index, _ in rows]), numbers, len(shared), withheld


def _sent(
    probabilities: NDArray[np.floating], images: IdentityDataset, roles: NDArray[np.uint8], shared: int
) -> SampleScores:
    """Return the samples to send: coarse losses, and person numbers and an order that are new in each audit.

    In the manifest's order an image could be followed by its position. Rows of people whom all sites hold stay last.
    """
    person = _random_numbers(images.identities)
    samples = SampleScores.from_probabilities(probabilities, images.labels.numpy(), person, roles)
    first = len(samples) - shared
    losses = [samples.rows(part).coarse().loss for part in (slice(first), slice(first, None))]
    order = np.concatenate([_random_order(first), first + _random_order(shared)])
    return replace(samples, loss=np.concatenate(losses)).rows(order)


def _beside_references(
    site: Site, probabilities: NDArray[np.floating], images: IdentityDataset, roles: NDArray[np.uint8], shared: int
) -> ReferenceSums | None:
    """Return sums that compare answers with those of reference models; None without references.

    A sample of retained people is enough; it is the same each time, so it reveals nothing new.
    """
    names = np.array(images.identities)
    retain = roles == ROLES.index(Role.RETAIN)
    kept = sorted(set(names[retain]))
    few = (
        {kept[place] for place in np.unique(np.linspace(0, len(kept) - 1, _MOST_RETAINED).astype(int))} if kept else ()
    )
    retain &= np.isin(names, list(few))
    forget, test = (roles == ROLES.index(role) for role in (Role.FORGET, Role.TEST))
    rows = np.flatnonzero(retain | forget | test)
    chosen = images.select(rows.tolist())
    answers = reference_answers(site, chosen)
    if answers is None:
        return None
    person, labels = np.unique(names[rows], return_inverse=True)[1], chosen.labels
    said = SampleScores.from_probabilities(probabilities[rows], labels.numpy(), person, roles[rows])
    of_all = rows >= len(images) - shared
    return reference_sums(
        said.loss,
        answers.losses(labels),
        person,
        forget=forget[rows],
        retain=retain[rows],
        unseen=test[rows] & ~of_all,
        shared=test[rows] & of_all,
    )


def _random_order(count: int) -> NDArray[np.intp]:
    return np.random.default_rng().permutation(count)


def _random_numbers(identities: Sequence[str]) -> NDArray[np.int64]:
    """Give each person a random number, new in each audit, so that nobody can be followed."""
    people = sorted(set(identities))
    numbers = dict(zip(people, np.random.default_rng().permutation(len(people)), strict=True))
    return np.array([numbers[identity] for identity in identities], dtype=np.int64)
