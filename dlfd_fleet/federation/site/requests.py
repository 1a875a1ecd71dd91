"""Take up a site's requests for a job, and note in the ledger how the job ended."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, date, datetime
from datetime import time as clock_time

from dlfd_fleet.exceptions import DataError, JobError
from dlfd_fleet.federation.protocol.messages import (
    DevicesReached,
    LedgerHead,
    PendingQuery,
    PendingReply,
    RequestDates,
    SettleResult,
    SettleTask,
)
from dlfd_fleet.federation.site.held_model import held_name
from dlfd_fleet.federation.site.images import used_images
from dlfd_fleet.federation.site.job_requests import requests_of_job, requests_that_count
from dlfd_fleet.federation.site.references import answered_images
from dlfd_fleet.ledger.entries import ForgetRequest
from dlfd_fleet.ledger.prune import prune_site
from dlfd_fleet.ledger.purge import complete_requests, purge_request
from dlfd_fleet.ledger.requests import extend_joined, join_requests
from dlfd_fleet.ledger.restored import compare_head
from dlfd_fleet.ledger.site import Site
from dlfd_fleet.ledger.states import TO_PURGE, UNDER_WAY, RequestState
from dlfd_fleet.ledger.withdrawals import joined_people, withdraw_joined, withdrawn_people


def answer_pending(site: Site, query: PendingQuery) -> PendingReply:
    """Report what the site holds, and take up waiting requests for the job.

    A job asks up to twice. The first question takes up waiting requests. Then the coordinator knows the site, and tells
    it how earlier jobs ended of whose end it was not told. Requests that a released model has forgotten are purged, and
    the others are taken up. Purges that a full disk had stopped are finished, too.
    """
    ledger = site.ledger
    site.raise_epoch(query.epoch)
    site.references.drop(query.expired)
    if query.take:
        site.own_answers.keep_only(query.job)
    if query.seen is not None:
        _refuse_restored(site, query.seen, query.released)
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
        asked = {person: _end_of(day) for person, day in query.asked.items()}
        extend_joined(site, query.job, asked)
        join_requests(site, query.job, asked)
    _complete(site, query.devices)
    for request in ledger.requests(RequestState.ACCEPTED):
        if query.take or site.job_request_id(request.id, query.job) in query.resumed:
            ledger.move(request.id, RequestState.UNLEARNING, "a job took it up", job=query.job)
    requests, others = requests_of_job(site, query.job), list[ForgetRequest]()
    if query.take:  # those of jobs whose end is not known here will be this job's, or are purged
        others = [request for request in ledger.requests(*UNDER_WAY) if request.job != query.job]
    asking = [*requests, *others]
    # The order of a ledger is the same in each job; the order of ids and pseudonyms is not.
    ids = {request: site.job_request_id(request.id, query.job) for request in requests}
    named = {name: each for each in asking if (name := site.fleet_pseudonym(each.identity or "", query.job))}
    images = used_images(site)
    retain = images.retain()
    waiting = ledger.requests(RequestState.ACCEPTED)
    begun = ledger.requests(*UNDER_WAY) if query.plan else []
    forget = images.forget(requests_that_count(site, query.job, plan=query.plan))
    return PendingReply(
        site=site.card.id,
        requests=tuple(sorted(ids.values())),
        dates={
            ids[request]: RequestDates(asked_at=request.received, deadline=request.due)
            for request in sorted(requests, key=ids.__getitem__)
        },
        waiting=len(waiting),
        begun=len(begun),
        first_due=min((request.due for request in (*waiting, *begun)), default=None) if query.plan else None,
        unsettled=tuple(sorted({request.job for request in others if request.job})),
        people={name: request.due for name, request in sorted(named.items())},
        joined=dict(sorted(joined_people(site, query.job, asking).items())),
        withdrawn=dict(sorted(withdrawn_people(site, query.job).items())) if query.take else {},
        forget_images=len(forget),
        answered_images=answered_images(site, forget, images.validation()),
        unseen_images=len(images.validation()),
        class_images=tuple(retain.class_images().tolist()),
        labelled_images=len(retain) if site.card.multi_label else None,
        classes=site.card.classes,
        input=site.card.input,
        epoch=ledger.epoch(),
        ledger=None if query.plan else _head(site, query.job),
        held=held_name(site.folder),
    )


def _refuse_restored(site: Site, seen: LedgerHead, forgotten: dict[str, int]) -> None:
    """Refuse to take part with a ledger that was put back from a backup: it does not know who was forgotten since.

    Raises
    ------
    JobError
        If it was.
    """
    found = compare_head(site, seen.sequence, seen.job, seen.digest, forgotten)
    if found is not None:
        raise JobError(found.sentence())


def _head(site: Site, job: str) -> LedgerHead:
    sequence, digest = site.ledger.head(job)
    return LedgerHead(sequence=sequence, job=job, digest=digest)


def settle(site: Site, task: SettleTask) -> SettleResult:
    """Note in the ledger how a job ended, and after a release purge the forgotten people's images.

    Requests whose update came too late or was refused are not in the released model; they wait for the next job.
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
    purged = ledger.count_purged(task.job)
    with suppress(DataError):  # what cannot be deleted now is tried again in and after the next job
        site.own_answers.drop([task.job])
        prune_site(site)
    return SettleResult(requests=settled, purged_images=purged, epoch=epoch, ledger=_head(site, task.job))


def _complete(site: Site, devices: DevicesReached | None) -> None:
    if devices is not None:
        complete_requests(site, devices.epoch, devices.reason)


def _release(site: Site, request: ForgetRequest, reason: str, epoch: int) -> None:
    # A model trained anew has forgotten without an update of this site's; so has one that never knew the person.
    if request.state is RequestState.UNLEARNING:
        site.ledger.move(request.id, RequestState.EVALUATING, "nobody trains on the images", job=request.job)
    site.ledger.move(request.id, RequestState.RELEASED, reason, job=request.job, epoch=epoch)


def _end_of(day: date) -> datetime:
    return datetime.combine(day, clock_time.max, UTC)
