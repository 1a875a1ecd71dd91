"""What a site does with each message: its side of the job, on its own images and ledger."""

from __future__ import annotations

import tempfile
import time
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from datetime import time as clock_time
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dlfd_fleet.audit import Role, SampleScores
from dlfd_fleet.audit.samples import ROLES
from dlfd_fleet.data import ImageUse, Use, canonical, image_digests
from dlfd_fleet.data.dataset import IdentityDataset, augmentation, load_dataset
from dlfd_fleet.data.uses import of_who_asked
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
from dlfd_fleet.ledger.site import Site, join_requests
from dlfd_fleet.ledger.site_uses import FEWEST_TO_TRAIN, site_uses
from dlfd_fleet.ledger.states import TO_PURGE, UNDER_WAY, RequestState
from dlfd_fleet.ledger.withdrawals import joined_people, withdraw_joined, withdrawn_people
from dlfd_fleet.models import FaceClassifier, ModelCard, build_empty, state_arrays, to_best_device
from dlfd_fleet.unlearning import (
    LabelledImages,
    Unlearner,
    UnlearningProblem,
    distance,
    fit,
    predict_probabilities,
    recalibrate,
)


def answer_pending(site: Site, query: PendingQuery) -> PendingReply:
    """Say what the site holds, and take up the requests that wait for the job.

    A job asks up to twice. Its first question takes up what waits. Then the coordinator knows who the site is, and says
    how those jobs have ended whose end the site was not told: what a released model has forgotten is purged, and the
    rest is taken up, too. What an earlier purge left, which a full disk had stopped, is purged as well.
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
            epoch = query.released.get(site.job_request_id(request.id, request.job or ""))
            if epoch is not None:
                _release(site, request, "released while this site was away", epoch)
                purge_request(site, ledger.get(request.id))
            elif request.job in query.ended:
                ledger.move(request.id, RequestState.ACCEPTED, f"job {request.job} did not finish")
        withdraw_joined(site, query.job, query.withdrawn)
        join_requests(site, query.job, {person: _end_of(day) for person, day in query.asked.items()})
    _complete(site, query.devices)
    for request in ledger.requests(RequestState.ACCEPTED):
        if query.take or site.job_request_id(request.id, query.job) in query.resumed:
            ledger.move(request.id, RequestState.UNLEARNING, "a job took it up", job=query.job)
    requests, others = _of_job(site, query.job), list[ForgetRequest]()
    if query.take:  # those of jobs whose end is not known here will be this job's, or are purged
        others = [request for request in ledger.requests(*UNDER_WAY) if request.job != query.job]
    asking = [*requests, *others]
    # The order of a ledger is the same in each job; the order of ids and pseudonyms is not.
    ids = {request: site.job_request_id(request.id, query.job) for request in requests}
    named = {name: each for each in asking if (name := site.fleet_pseudonym(each.identity or "", query.job))}
    images = _used_images(site)
    class_images = torch.bincount(images.retain().labels, minlength=len(site.card.classes))
    return PendingReply(
        site=site.card.id,
        requests=tuple(sorted(ids.values())),
        dates={
            ids[request]: RequestDates(asked_at=_day(request.requested_at), deadline=_day(request.deadline))
            for request in sorted(requests, key=ids.__getitem__)
        },
        waiting=len(ledger.requests(RequestState.ACCEPTED)),
        unsettled=tuple(sorted({request.job for request in others if request.job})),
        people={name: _day(request.deadline) for name, request in sorted(named.items())},
        joined=dict(sorted(joined_people(site, query.job, asking).items())),
        withdrawn=dict(sorted(withdrawn_people(site, query.job).items())) if query.take else {},
        forget_images=len(images.forget(requests)),
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
    retain = _used_images(site).retain()
    if len(retain) < FEWEST_TO_TRAIN:
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
    site: Site, task: UnlearnTask, arrays: Arrays, method: Unlearner = distance
) -> tuple[UnlearnResult, Arrays]:
    """Run DLFD, or another method in its place, on the people of this job's requests."""
    _refuse_old_models(site, task.card)
    _refuse_job_that_lost_its_requests(site, task.job)
    requests = _of_job(site, task.job)
    images = _used_images(site)
    forget, retain = images.forget(requests), images.retain()
    if not len(forget):
        raise JobError("This site has trained on no image of anybody who asked to be forgotten.")
    if len(retain) < FEWEST_TO_TRAIN:
        raise JobError("This site has fewer than two images to train on.")
    model = _model(task.card, arrays)
    outcome = method(
        UnlearningProblem(
            model=model,
            retain=_labelled(retain),
            forget=_labelled(forget),
            settings=task.unlearning,
            seed=_site_seed(site, task.seed),
            class_weights=torch.tensor(task.class_weights),
            augment=augmentation(task.augmentation),
        )
    )
    for request in requests:
        if request.state is RequestState.UNLEARNING:
            site.ledger.move(request.id, RequestState.EVALUATING, "the update was sent", job=task.job)
    result = UnlearnResult(
        epoch=task.card.epoch,
        requests=tuple(sorted(site.job_request_id(request.id, task.job) for request in requests)),
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
    images, roles, shared, withheld = _audited(site, task.job, task.roles, task.most_retain)
    probabilities = predict_probabilities(_model(task.card, arrays), _labelled(images))
    samples = _sent(probabilities, images, roles, shared)
    return AuditResult(shared=shared, withheld=withheld, seconds=time.perf_counter() - started), samples


def run_file_audit(
    site: Site, task: FileAuditTask, arrays: Arrays, content: bytes
) -> tuple[FileAuditResult, SampleScores]:
    """Audit the very file that ships, with the code that devices run it with, and compare it with torch."""
    started = time.perf_counter()
    _refuse_old_models(site, task.card)
    images, roles, shared, withheld = _audited(site, task.job, task.roles)
    expected = predict_probabilities(_model(task.card, arrays), _labelled(images))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        file.write_bytes(content)
        probabilities = DeviceModel(file).predict(images.images.permute(0, 2, 3, 1).contiguous().numpy())
    samples = _sent(probabilities, images, roles, shared)
    result = FileAuditResult(
        shared=shared,
        withheld=withheld,
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
    retain = _used_images(site).retain()
    if not len(retain):
        return CalibrateResult(ranges={}, images=0, seconds=time.perf_counter() - started)
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
        released = task.outcome == "released" and site.job_request_id(request.id, task.job) in task.requests
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
    # A model trained anew has forgotten without an update of this site's; so has one that never knew the person.
    if request.state is RequestState.UNLEARNING:
        site.ledger.move(request.id, RequestState.EVALUATING, "nobody trains on the images", job=request.job)
    site.ledger.move(request.id, RequestState.RELEASED, reason, job=request.job, epoch=epoch)


def _of_job(site: Site, job: str) -> list[ForgetRequest]:
    """Return the requests that a job has taken up."""
    return [request for request in site.ledger.requests(*UNDER_WAY) if request.job == job]


def _day(moment: datetime) -> date:
    """Return the day of a moment in UTC: to the microsecond it would name a request in every job."""
    return moment.astimezone(UTC).date()


def _end_of(day: date) -> datetime:
    return datetime.combine(day, clock_time.max, UTC)


def _people(requests: Iterable[ForgetRequest]) -> list[str]:
    return [request.identity for request in requests if request.identity is not None]


def _refuse_job_that_lost_its_requests(site: Site, job: str) -> None:
    """Do nothing for a job whose requests another job has now: what it would show is of fewer people than it says.

    Raises
    ------
    JobError
        If another coordinator has told this site that the job has ended.
    """
    taken = {event.request for event in site.ledger.history() if event.job == job}
    lost = [request for request in site.ledger.requests() if request.id in taken and request.job != job]
    if any(request.state is not RequestState.WITHDRAWN for request in lost):
        other = next((f"the job {request.job}" for request in lost if request.job), "another job")
        raise JobError(
            f"The requests that {job} had taken up here are not its own any more: {other} took them up since, from "
            "another state folder. Run the jobs of a fleet one after the other, from one state folder"
        )


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


@dataclass(frozen=True)
class _UsedImages:
    """A site's decoded images, and what each may be used for now."""

    images: IdentityDataset
    uses: tuple[ImageUse, ...]

    def retain(self) -> IdentityDataset:
        """Return the images to train on."""
        return self.images.select([index for index, use in enumerate(self.uses) if use.use is Use.TRAIN])

    def forget(self, requests: Iterable[ForgetRequest]) -> IdentityDataset:
        """Return the images that were trained on, of the people of these requests."""
        trained = self.images.select([index for index, use in enumerate(self.uses) if use.use is Use.FORGET])
        return trained.of_people(_people(requests))


def _used_images(site: Site) -> _UsedImages:
    """Return the site's images; decoded once a process, and again when the manifest has changed."""
    file = site.manifest_file
    images, digests = _decoded(site.folder, file.stat().st_mtime_ns, site.card.image_size, site.card.classes)
    uses = site_uses(site, images.rows, digests)
    rows = tuple(of_who_asked(row, use) for row, use in zip(images.rows, uses, strict=True))
    return _UsedImages(replace(images, rows=rows), uses)


@lru_cache(maxsize=64)
def _decoded(
    folder: Path, _changed: int, image_size: int, classes: tuple[str, ...]
) -> tuple[IdentityDataset, tuple[str | None, ...]]:
    with Site(folder) as site:
        manifest = site.usable_manifest()
        return load_dataset(manifest, image_size=image_size, classes=classes), image_digests(manifest)


def _audited(
    site: Site, job: str, roles_asked: Sequence[str], most_retain: int | None = None
) -> tuple[IdentityDataset, NDArray[np.uint8], int, int]:
    """Return the images of the roles that are asked for, each image's role, and how many of the last are everybody's.

    Unseen people of no site in particular are held by every site; each site says what it sees, so that none of them
    can say it alone. Last comes how many images of such people this site leaves out, for it knows that they are not
    unseen.
    """
    if Role.FORGET.value in roles_asked:
        _refuse_job_that_lost_its_requests(site, job)
    used = _used_images(site)
    images, under_way = used.images, {canonical(name) for name in _people(_of_job(site, job))}
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
        retain = sorted(retain, key=lambda index: int(images.labels[index]))
        kept = {retain[number * len(retain) // most_retain] for number in range(most_retain)}
        own = [(index, role) for index, role in own if role is not Role.RETAIN or index in kept]
    rows = own + shared
    numbers = np.array([ROLES.index(role) for _, role in rows], dtype=np.uint8)
    return images.select([index for index, _ in rows]), numbers, len(shared), withheld


def _sent(
    probabilities: NDArray[np.floating], images: IdentityDataset, roles: NDArray[np.uint8], shared: int
) -> SampleScores:
    """Return what is sent of an audit: coarse losses, numbers of people and an order of rows that are of it alone.

    In the manifest's order an image could be followed by its place. The rows of people whom all sites hold stay last.
    """
    person = _random_numbers(images.identities)
    samples = SampleScores.from_probabilities(probabilities, images.labels.numpy(), person, roles)
    first = len(samples) - shared
    losses = [samples.rows(part).coarse().loss for part in (slice(first), slice(first, None))]
    order = np.concatenate([_random_order(first), first + _random_order(shared)])
    return replace(samples, loss=np.concatenate(losses)).rows(order)


def _random_order(count: int) -> NDArray[np.intp]:
    return np.random.default_rng().permutation(count)


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
