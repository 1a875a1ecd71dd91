"""Define the states of a request, their order, and the words of its history."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class RequestState(StrEnum):
    """The state of a request."""

    ACCEPTED = "ACCEPTED"
    UNLEARNING = "UNLEARNING"
    EVALUATING = "EVALUATING"
    RELEASED = "RELEASED"
    PURGING = "PURGING"
    ROLLING_OUT = "ROLLING_OUT"
    COMPLETE = "COMPLETE"
    WITHDRAWN = "WITHDRAWN"
    REFUSED = "REFUSED"
    NO_DATA = "NO_DATA"


# Back to ACCEPTED: the job failed or died, and the request waits for the next one. Nothing leads back from RELEASED.
# WITHDRAWN and REFUSED only while no job works on it: what a job has begun is ended by that job.
# NO_DATA: answered when it came, because the site holds nothing of the person; no job ever sees it.
# ROLLING_OUT: the site has purged its images, and devices may still hold models that remember.
FOLLOWERS: Mapping[RequestState, frozenset[RequestState]] = {
    RequestState.ACCEPTED: frozenset({RequestState.UNLEARNING, RequestState.WITHDRAWN, RequestState.REFUSED}),
    RequestState.UNLEARNING: frozenset({RequestState.EVALUATING, RequestState.ACCEPTED}),
    RequestState.EVALUATING: frozenset({RequestState.UNLEARNING, RequestState.RELEASED, RequestState.ACCEPTED}),
    RequestState.RELEASED: frozenset({RequestState.PURGING}),
    RequestState.PURGING: frozenset({RequestState.PURGING, RequestState.ROLLING_OUT}),
    RequestState.ROLLING_OUT: frozenset({RequestState.COMPLETE}),
    RequestState.COMPLETE: frozenset(),
    RequestState.WITHDRAWN: frozenset(),
    RequestState.REFUSED: frozenset(),
    RequestState.NO_DATA: frozenset(),
}
UNDER_WAY = (RequestState.UNLEARNING, RequestState.EVALUATING)
TO_PURGE = (RequestState.RELEASED, RequestState.PURGING)
FORGOTTEN = (RequestState.ROLLING_OUT, RequestState.COMPLETE)
DROPPED = (RequestState.WITHDRAWN, RequestState.REFUSED, RequestState.NO_DATA)
"""States in which the person may be trained on and may ask again."""
CLOSED = (RequestState.COMPLETE, *DROPPED)


class Action(StrEnum):
    """The action of a history row."""

    ASKED = "asked"
    TAKEN = "taken by a job"
    UNLEARNED = "unlearned"
    RETURNED = "returned"
    FORGOTTEN = "forgotten"
    PURGING = "purging"
    PURGED = "purged"
    COMPLETE = "complete"
    WITHDRAWN = "withdrawn"
    REFUSED = "refused"
    NO_DATA = "no data held"
    EXTENDED = "extended"
    LETTER = "letter printed"


ACTIONS: Mapping[RequestState, Action] = {
    RequestState.ACCEPTED: Action.RETURNED,  # a new request is ASKED
    RequestState.UNLEARNING: Action.TAKEN,
    RequestState.EVALUATING: Action.UNLEARNED,
    RequestState.RELEASED: Action.FORGOTTEN,
    RequestState.PURGING: Action.PURGING,
    RequestState.ROLLING_OUT: Action.PURGED,
    RequestState.COMPLETE: Action.COMPLETE,
    RequestState.WITHDRAWN: Action.WITHDRAWN,
    RequestState.REFUSED: Action.REFUSED,
    RequestState.NO_DATA: Action.NO_DATA,
}
"""The action that leads to each state."""


class Ground(StrEnum):
    """Why a request may be refused (GDPR)."""

    FREEDOM_OF_EXPRESSION = "freedom-of-expression"
    LEGAL_OBLIGATION = "legal-obligation"
    PUBLIC_HEALTH = "public-health"
    ARCHIVING = "archiving"
    LEGAL_CLAIMS = "legal-claims"
    MANIFESTLY_UNFOUNDED = "manifestly-unfounded"
    NOT_OUR_DATA = "not-our-data"
    IDENTITY_NOT_VERIFIED = "identity-not-verified"


GROUNDS: Mapping[Ground, str] = {
    Ground.FREEDOM_OF_EXPRESSION: "the data are needed for the right of freedom of expression and information "
    "(Article 17(3)(a) of the GDPR)",
    Ground.LEGAL_OBLIGATION: "the law obliges us to keep the data, or we need them for a task in the public interest "
    "or an official duty (Article 17(3)(b) of the GDPR)",
    Ground.PUBLIC_HEALTH: "the data are needed in the public interest in the area of public health "
    "(Article 17(3)(c) of the GDPR)",
    Ground.ARCHIVING: "the data are needed for archiving in the public interest, for research or for statistics, which "
    "the erasure would make impossible or seriously impair (Article 17(3)(d) of the GDPR)",
    Ground.LEGAL_CLAIMS: "the data are needed to establish, exercise or defend legal claims "
    "(Article 17(3)(e) of the GDPR)",
    Ground.MANIFESTLY_UNFOUNDED: "the request is manifestly unfounded or excessive (Article 12(5) of the GDPR)",
    Ground.NOT_OUR_DATA: "the data that we hold are not about the person who asked",
    Ground.IDENTITY_NOT_VERIFIED: "we could not verify who asked (Article 12(2) and 12(6) of the GDPR)",
}
"""The meaning of each ground, as part of a sentence."""
