"""Withdraw joined requests when the person withdraws, or is refused, at the first site.

Other sites are told of a refusal as of a withdrawal, because they joined only for that request.

A site joins in a job, so jobs decide which request came first, not clocks. Both sites send marks of the jobs that had
taken up their request, keyed with the fleet's secret. A mark that both have stands for a job in which both asked. Then
the withdrawn request is the one that the other site joined.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from dlfd_fleet.ledger.entries import ForgetRequest
from dlfd_fleet.ledger.requests import has_joined
from dlfd_fleet.ledger.site import Site
from dlfd_fleet.ledger.states import DROPPED, RequestState


def _jobs_of_requests(site: Site) -> dict[str, list[str]]:
    """Return the jobs that have taken up each request, oldest first."""
    jobs: dict[str, list[str]] = {}
    for event in site.ledger.history():
        if event.state is RequestState.UNLEARNING and event.job:
            jobs.setdefault(event.request, []).append(event.job)
    return jobs


def withdrawn_people(site: Site, job: str) -> dict[str, tuple[str, ...]]:
    """Return people who withdrew or were refused here, did not ask again, and of whom the fleet was told.

    They are given by pseudonym in a job, with marks of the jobs that had taken up their requests.
    """
    asked, jobs, taken_by = site.ledger.person_digests(), _jobs_of_requests(site), dict[str, list[str]]()
    for request in site.ledger.requests(*DROPPED):
        if request.identity is not None and request.id in jobs and site.person_digest(request.identity) not in asked:
            taken_by.setdefault(request.identity, []).extend(jobs[request.id])
    named = {identity: site.fleet_pseudonym(identity, job) for identity in taken_by}
    return {name: site.job_marks(identity, job, taken_by[identity]) for identity, name in named.items() if name}


def joined_people(site: Site, job: str, requests: Iterable[ForgetRequest]) -> dict[str, tuple[str, ...]]:
    """Return the people of joined requests, by pseudonym in a job, with marks of their jobs."""
    jobs, found = _jobs_of_requests(site), dict[str, tuple[str, ...]]()
    for request in requests:
        name = site.fleet_pseudonym(request.identity, job) if request.identity is not None else None
        if name is not None and request.identity is not None and has_joined(site, request):
            earlier = [taken for taken in jobs.get(request.id, ()) if taken != job]
            found[name] = site.job_marks(request.identity, job, earlier)
    return found


def withdraw_joined(site: Site, job: str, withdrawn: Mapping[str, Collection[str]]) -> None:
    """Withdraw joined requests of people who withdrew, or were refused, at the site where they had asked.

    Parameters
    ----------
    withdrawn
        Pseudonyms in this job, with marks of the jobs in which they had asked. A request that was joined in none of
        these jobs stays.
    """
    requests = site.ledger.requests(RequestState.ACCEPTED, RequestState.UNLEARNING)
    marks = joined_people(site, job, requests)
    for request in requests:
        name = site.fleet_pseudonym(request.identity, job) if request.identity is not None else None
        if name not in withdrawn or name not in marks or set(marks[name]).isdisjoint(withdrawn[name]):
            continue
        reason = "withdrawn at another site"
        if request.state is RequestState.UNLEARNING:  # the job's first question took it up
            site.ledger.move(request.id, RequestState.ACCEPTED, reason, job=job)
        site.ledger.move(request.id, RequestState.WITHDRAWN, reason)
