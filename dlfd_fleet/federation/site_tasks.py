"""What a site does with each message: its side of the job, on its own images and ledger."""

from __future__ import annotations

import tempfile
import time
import zlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from dlfd_fleet.audit import Role, SampleScores
from dlfd_fleet.audit.samples import ROLES
from dlfd_fleet.data.dataset import IdentityDataset, augmentation, load_dataset
from dlfd_fleet.device.inference import DeviceModel
from dlfd_fleet.exceptions import JobError, MessageError
from dlfd_fleet.federation.differences import difference_of
from dlfd_fleet.federation.held_model import held_name
from dlfd_fleet.federation.messages import (
    Arrays,
    AuditResult,
    AuditTask,
    CalibrateResult,
    CalibrateTask,
    DevicesReached,
    FileAuditResult,
    FileAuditTask,
    FitResult,
    FitTask,
    PendingQuery,
    PendingReply,
    RequestDates,
    SettleResult,
    SettleTask,
    UnlearnResult,
    UnlearnTask,
)
from dlfd_fleet.ledger.ledger import ForgetRequest
from dlfd_fleet.ledger.purge import complete_requests, purge_request
from dlfd_fleet.ledger.site import Site, has_joined, join_requests, withdraw_joined, withdrawn_people
from dlfd_fleet.ledger.states import TO_PURGE, UNDER_WAY, RequestState
from dlfd_fleet.models import FaceClassifier, FeatureClassifier, ModelCard, build_empty, state_arrays, to_best_device
from dlfd_fleet.settings import UnlearningSettings
from dlfd_fleet.unlearning import (
    Augment,
    LabelledImages,
    UnlearnOutcome,
    distance,
    fit,
    predict_probabilities,
    recalibrate,
)


class SiteUnlearner(Protocol):
    """What a site does to a model so that it forgets: no gate, for a site has nobody to look at through it."""

    def __call__(
        self,
        model: FeatureClassifier,
        retain: LabelledImages,
        forget: LabelledImages,
        settings: UnlearningSettings,
        *,
        seed: int,
        class_weights: torch.Tensor,
        augment: Augment | None,
    ) -> UnlearnOutcome:
        """Unlearn in place."""


def answer_pending(site: Site, query: PendingQuery) -> PendingReply:
    """Say what the site holds, and take up the requests that wait for the job.

    One erasure job works at a time, so another one that had taken requests up has ended: what its released model has
    forgotten is purged now, and the rest waits again. So is what an earlier purge left, which a full disk had stopped.
    """
    ledger = site.ledger
    site.raise_epoch(query.epoch)
    ledger.verify()  # a withdrawal that nobody has made would let the job train on the person
    for request in ledger.requests(*TO_PURGE):
        purge_request(site, request)
    if query.take:
        for request in ledger.requests(*UNDER_WAY):
            if request.job == query.job:
                continue
            if request.id in query.released:
                _release(site, request, "released while this site was away", query.released[request.id])
                purge_request(site, ledger.get(request.id))
            else:
                ledger.move(request.id, RequestState.ACCEPTED, f"job {request.job} did not finish")
        withdraw_joined(site, query.job, query.withdrawn)
        join_requests(site, query.job, query.asked)
    _complete(site, query.devices)
    for request in ledger.requests(RequestState.ACCEPTED):
        if query.take or request.id in query.resumed:
            ledger.move(request.id, RequestState.UNLEARNING, "a job took it up", job=query.job)
    requests = _of_job(site, query.job)
    names = {request: site.fleet_pseudonym(request.identity or "", query.job) for request in requests}
    images = _images(site)
    class_images = torch.bincount(_retain(site, images).labels, minlength=len(site.card.classes))
    return PendingReply(
        site=site.card.id,
        requests=tuple(request.id for request in requests),
        dates={
            request.id: RequestDates(asked_at=request.requested_at, deadline=request.deadline) for request in requests
        },
        waiting=len(ledger.requests(RequestState.ACCEPTED)),
        people={name: request.deadline for request, name in names.items() if name},
        joined=tuple(name for request, name in names.items() if name and has_joined(site, request)),
        withdrawn=withdrawn_people(site, query.job) if query.take else {},
        forget_images=len(images.of_people(_people(requests))),
        class_images=tuple(class_images.tolist()),
        classes=site.card.classes,
        image_size=site.card.image_size,
        held=held_name(site.folder),
    )


def run_fit(site: Site, task: FitTask, arrays: Arrays) -> tuple[FitResult, Arrays]:
    """Train on the retain images. Nobody who asked to be forgotten is trained on, whatever the job."""
    started = time.perf_counter()
    _refuse_old_models(site, task.card)
    model = _model(task.card, arrays)
    retain = _retain(site, _images(site))
    if len(retain) < 2:
        raise JobError("This site has fewer than two images to train on.")
    loss = fit(
        model,
        _labelled(retain),
        task.training,
        epochs=task.epochs,
        learning_rate=task.learning_rate,
        seed=_site_seed(site, task.seed),
        class_weights=torch.tensor(task.class_weights),
        augment=augmentation(task.augmentation),
    )
    if task.final:
        recalibrate(model, _labelled(retain))
    seconds = time.perf_counter() - started
    result = FitResult(epoch=task.card.epoch, examples=len(retain), loss=loss, seconds=seconds)
    return result, difference_of(state_arrays(model), arrays, task.precision)


def run_unlearn(
    site: Site, task: UnlearnTask, arrays: Arrays, method: SiteUnlearner = distance
) -> tuple[UnlearnResult, Arrays]:
    """Run DLFD, or another method in its place, on the people of this job's requests."""
    _refuse_old_models(site, task.card)
    requests = _of_job(site, task.job)
    images = _images(site)
    forget = images.of_people(_people(requests))
    if not len(forget):
        raise JobError("This site has no image of anybody who asked to be forgotten.")
    retain = _retain(site, images)
    model = _model(task.card, arrays)
    outcome = method(
        model,
        _labelled(retain),
        _labelled(forget),
        task.unlearning,
        seed=_site_seed(site, task.seed),
        class_weights=torch.tensor(task.class_weights),
        augment=augmentation(task.augmentation),
    )
    for request in requests:
        if request.state is RequestState.UNLEARNING:
            site.ledger.move(request.id, RequestState.EVALUATING, "the update was sent", job=task.job)
    result = UnlearnResult(
        epoch=task.card.epoch,
        requests=tuple(request.id for request in requests),
        forget_examples=len(forget),
        retain_examples=len(retain),
        steps=outcome.chosen_step,
        seconds=outcome.cost.seconds,
    )
    return result, difference_of(state_arrays(model), arrays, task.precision)


def run_audit(site: Site, task: AuditTask, arrays: Arrays) -> tuple[AuditResult, SampleScores]:
    """Say of each image how well a model predicts it."""
    started = time.perf_counter()
    _refuse_old_models(site, task.card)
    images, roles, shared = _audited(site, task.job, task.roles, task.most_retain)
    probabilities = predict_probabilities(_model(task.card, arrays), _labelled(images))
    person = _random_numbers(images.identities)
    samples = SampleScores.from_probabilities(probabilities, images.labels.numpy(), person, roles)
    return AuditResult(shared=shared, seconds=time.perf_counter() - started), samples


def run_file_audit(
    site: Site, task: FileAuditTask, arrays: Arrays, content: bytes
) -> tuple[FileAuditResult, SampleScores]:
    """Audit the very file that ships, with the code that devices run it with, and compare it with torch."""
    started = time.perf_counter()
    _refuse_old_models(site, task.card)
    images, roles, shared = _audited(site, task.job, task.roles)
    expected = predict_probabilities(_model(task.card, arrays), _labelled(images))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        file.write_bytes(content)
        probabilities = DeviceModel(file).predict(images.images.permute(0, 2, 3, 1).contiguous().numpy())
    person = _random_numbers(images.identities)
    samples = SampleScores.from_probabilities(probabilities, images.labels.numpy(), person, roles)
    result = FileAuditResult(
        shared=shared,
        max_abs_difference=float(np.abs(probabilities - expected).max(initial=0.0)),
        images=len(images),
        agreeing=int((probabilities.argmax(axis=1) == expected.argmax(axis=1)).sum()),
        seconds=time.perf_counter() - started,
    )
    return result, samples


def run_calibration(site: Site, task: CalibrateTask, content: bytes) -> CalibrateResult:
    """Measure the ranges of activations on retain images; on nobody's who asked to be forgotten, whatever the job."""
    from dlfd_fleet.export import calibrate

    started = time.perf_counter()
    _refuse_old_models(site, task.card)
    retain = _retain(site, _images(site))
    order = torch.randperm(len(retain), generator=torch.Generator().manual_seed(_site_seed(site, task.seed)))
    images = retain.images[order[: task.images]]
    ranges = calibrate(content, images)
    return CalibrateResult(ranges=ranges, images=len(images), seconds=time.perf_counter() - started)


def settle(site: Site, task: SettleTask) -> SettleResult:
    """Write how a job ended into the ledger, and purge the forgotten people's images once they are released.

    Of a released job's requests, those that its model does not know of wait for the next job: their update came too
    late, or was refused.
    """
    ledger, settled = site.ledger, 0
    epoch = site.raise_epoch(task.epoch)
    for request in ledger.requests(*UNDER_WAY, *TO_PURGE):
        if request.job != task.job:
            continue
        settled += 1
        released = task.outcome == "released" and request.id in task.requests
        if request.state in UNDER_WAY and not released:
            ledger.move(request.id, RequestState.ACCEPTED, task.reason, job=task.job)
            continue
        if request.state in UNDER_WAY:
            _release(site, request, task.reason, task.epoch)
        if task.purge:
            purge_request(site, ledger.get(request.id))
    _complete(site, task.devices)
    return SettleResult(requests=settled, purged_images=ledger.count_purged(task.job), epoch=epoch)


def _complete(site: Site, devices: DevicesReached | None) -> None:
    if devices is not None:
        complete_requests(site, devices.epoch, devices.reason)


def _release(site: Site, request: ForgetRequest, reason: str, epoch: int) -> None:
    if request.state is RequestState.UNLEARNING:  # a model trained anew has forgotten without an update
        site.ledger.move(request.id, RequestState.EVALUATING, "nobody trains on the images", job=request.job)
    site.ledger.move(request.id, RequestState.RELEASED, reason, job=request.job, epoch=epoch)


def _of_job(site: Site, job: str) -> list[ForgetRequest]:
    """Return the requests that a job has taken up."""
    return [request for request in site.ledger.requests(*UNDER_WAY) if request.job == job]


def _people(requests: Iterable[ForgetRequest]) -> list[str]:
    return [request.identity for request in requests if request.identity is not None]


def _refuse_old_models(site: Site, card: ModelCard) -> None:
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


def _images(site: Site) -> IdentityDataset:
    """Return the site's decoded images; decoded once a process, and again when the manifest has changed."""
    file = site.manifest_file
    return _decoded(site.folder, file.stat().st_mtime_ns, site.card.image_size, site.card.classes)


@lru_cache(maxsize=64)
def _decoded(folder: Path, _changed: int, image_size: int, classes: tuple[str, ...]) -> IdentityDataset:
    with Site(folder) as site:
        return load_dataset(site.usable_manifest(), image_size=image_size, classes=classes)


def _retain(site: Site, images: IdentityDataset) -> IdentityDataset:
    return images.of_split("train").without_people(site.gone(images.identities))


def _audited(
    site: Site, job: str, roles_asked: Sequence[str], most_retain: int | None = None
) -> tuple[IdentityDataset, NDArray[np.uint8], int]:
    """Return the images of the roles that are asked for, each image's role, and how many of the last are everybody's.

    Unseen people of no site in particular are held by every site; each site says what it sees, so that none of them
    can say it alone.
    """
    images = _images(site)
    under_way = set(_people(_of_job(site, job)))
    gone = site.gone(images.identities)
    own, shared = list[tuple[int, Role]](), list[tuple[int, Role]]()
    for index, row in enumerate(images.rows):
        if row.split != "train":
            (own if row.site else shared).append((index, Role(row.split)))
        elif row.identity in under_way:
            own.append((index, Role.FORGET))
        elif row.identity not in gone:
            own.append((index, Role.RETAIN))
    own, shared = ([(index, role) for index, role in rows if role.value in roles_asked] for rows in (own, shared))
    retain = [index for index, role in own if role is Role.RETAIN]
    if most_retain is not None and len(retain) > most_retain:
        retain = sorted(retain, key=lambda index: int(images.labels[index]))
        kept = {retain[number * len(retain) // most_retain] for number in range(most_retain)}
        own = [(index, role) for index, role in own if role is not Role.RETAIN or index in kept]
    rows = own + shared
    numbers = np.array([ROLES.index(role) for _, role in rows], dtype=np.uint8)
    return images.select([index for index, _ in rows]), numbers, len(shared)


def _random_numbers(identities: Sequence[str]) -> NDArray[np.int64]:
    """Give each person a random number, anew at each audit: nobody is to be followed from one to the next."""
    people = sorted(set(identities))
    numbers = dict(zip(people, np.random.default_rng().permutation(len(people)), strict=True))
    return np.array([numbers[identity] for identity in identities], dtype=np.int64)


def _model(card: ModelCard, arrays: Arrays) -> FaceClassifier:
    model = build_empty(card)
    try:
        model.load_state_dict(arrays)
    except RuntimeError as error:
        raise MessageError(f"The coordinator sent arrays that are not those of a {card.architecture}.") from error
    return to_best_device(model)


def _labelled(images: IdentityDataset) -> LabelledImages:
    return LabelledImages(images.images, images.labels)


def _site_seed(site: Site, seed: int) -> int:
    """Give each site its own batches and noise, the same in every run."""
    return zlib.crc32(f"{seed}|{site.card.name}".encode()) % 2**31
