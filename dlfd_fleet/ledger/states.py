"""The states of a forget request, and which may follow which."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class RequestState(StrEnum):
    """How far a request is."""

    ACCEPTED = "ACCEPTED"
    UNLEARNING = "UNLEARNING"
    EVALUATING = "EVALUATING"
    RELEASED = "RELEASED"
    PURGING = "PURGING"
    ROLLING_OUT = "ROLLING_OUT"
    COMPLETE = "COMPLETE"
    WITHDRAWN = "WITHDRAWN"


# Back to ACCEPTED: the job failed or died, and the request waits for the next one. Nothing leads back from RELEASED.
# WITHDRAWN only while no job works on it: what a job has begun is ended by that job.
# ROLLING_OUT: the site has purged its images, and devices may still hold models that remember.
FOLLOWERS: Mapping[RequestState, frozenset[RequestState]] = {
    RequestState.ACCEPTED: frozenset({RequestState.UNLEARNING, RequestState.WITHDRAWN}),
    RequestState.UNLEARNING: frozenset({RequestState.EVALUATING, RequestState.ACCEPTED}),
    RequestState.EVALUATING: frozenset({RequestState.UNLEARNING, RequestState.RELEASED, RequestState.ACCEPTED}),
    RequestState.RELEASED: frozenset({RequestState.PURGING}),
    RequestState.PURGING: frozenset({RequestState.PURGING, RequestState.ROLLING_OUT}),
    RequestState.ROLLING_OUT: frozenset({RequestState.COMPLETE}),
    RequestState.COMPLETE: frozenset(),
    RequestState.WITHDRAWN: frozenset(),
}
UNDER_WAY = (RequestState.UNLEARNING, RequestState.EVALUATING)
TO_PURGE = (RequestState.RELEASED, RequestState.PURGING)
FORGOTTEN = (RequestState.ROLLING_OUT, RequestState.COMPLETE)
CLOSED = (RequestState.COMPLETE, RequestState.WITHDRAWN)
