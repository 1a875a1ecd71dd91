"""Find the requests of a job at a site."""

from __future__ import annotations

from collections.abc import Iterable

from dlfd_fleet.exceptions import JobError
from dlfd_fleet.ledger.entries import ForgetRequest
from dlfd_fleet.ledger.site import Site
from dlfd_fleet.ledger.states import DROPPED, UNDER_WAY, RequestState


def requests_of_job(site: Site, job: str) -> list[ForgetRequest]:
    """Return the requests that a job has taken up."""
    return [request for request in site.ledger.requests(*UNDER_WAY) if request.job == job]


def requests_that_count(site: Site, job: str, *, plan: bool = False) -> list[ForgetRequest]:
    """Return the requests that a job has taken up, or for a plan those that wait."""
    return site.ledger.requests(RequestState.ACCEPTED) if plan else requests_of_job(site, job)


def people_of(requests: Iterable[ForgetRequest]) -> list[str]:
    """Return the people of requests whose names are not purged."""
    return [request.identity for request in requests if request.identity is not None]


def refuse_job_that_lost_its_requests(site: Site, job: str) -> None:
    """Refuse a job whose requests another job has taken, because its result would cover fewer people than it says.

    Raises
    ------
    JobError
        If another coordinator has told this site that the job has ended.
    """
    taken = {event.request for event in site.ledger.history() if event.job == job}
    lost = [request for request in site.ledger.requests() if request.id in taken and request.job != job]
    if any(request.state not in DROPPED for request in lost):
        other = next((f"the job {request.job}" for request in lost if request.job), "another job")
        raise JobError(
            f"The requests that {job} had taken up here are not its own any more: {other} took them up since, from "
            "another state folder. Run the jobs of a fleet one after the other, from one state folder"
        )
