"""Enter, extend, refuse and withdraw requests at a site."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from difflib import get_close_matches

from dlfd_fleet.data import canonical
from dlfd_fleet.exceptions import LedgerError
from dlfd_fleet.ledger.dates import (
    add_months,
    end_of,
    first_deadline,
    latest_deadline,
    refuse_extension,
    refuse_notice,
    site_day,
)
from dlfd_fleet.ledger.entries import ForgetRequest
from dlfd_fleet.ledger.site import Site
from dlfd_fleet.ledger.states import UNDER_WAY, Ground, RequestState
from dlfd_fleet.plain_text import is_text

JOINED = "asked at another site"
"""Reason of a request that a site has joined."""
LONGEST_TEXT, LONGEST_NAME = 2000, 200


def request_forgetting(
    site: Site,
    identity: str,
    *,
    deadline_days: int,
    received: date | None = None,
    verified_by: str = "",
    note: str = "",
    done_by: str = "",
    no_data: bool = False,
) -> ForgetRequest:
    """Accept a person's request to be forgotten; the site must have an image of the person.

    People who were never trained on may ask, too: their images leave every audit at once and are purged with the next
    release. It may be the last person of the site, or of a class.

    Parameters
    ----------
    deadline_days
        Calendar days from the day of receipt to the deadline.
    received
        Day of receipt. Default: today.
    verified_by, note
        How the person's identity was verified, and a note; both are deleted with the name.
    done_by
        Who enters the request.
    no_data
        Record the request of somebody of whom the site has no image: it is received, and answered at once.

    Raises
    ------
    LedgerError
        If the person is unknown, or known and ``no_data`` is said; if they asked before, or a day or a text is not
        valid.
    """
    identity = _text(identity, "identity", "The person's name")
    if not identity:
        raise LedgerError("The person's name is empty; write who asks.", "identity")
    identities = site.manifest().identities
    spelled = _spelled(identities, identity)
    if no_data and spelled is not None:
        raise LedgerError(f"There are images of '{spelled}' at {site.card.name}: take the request in.", "identity")
    if not no_data and spelled is None and not _stands(site, identity):
        near = get_close_matches(identity, identities, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"{len(identities)} people are in its manifest."
        raise LedgerError(
            f"There is no person '{identity}' at {site.card.name}; {hint} If it holds nothing of the person, "
            "record that (--no-data).",
            "identity",
        )
    today = site_day(datetime.now(UTC))
    received = received or today
    deadline = end_of(first_deadline(received, deadline_days, today))
    told = {
        "verified_by": _text(verified_by, "verified_by", "How the identity was verified (--verified-by)"),
        "note": _text(note, "note", "The note (--note)"),
        "done_by": _text(done_by, "done_by", "Who takes the request in (--by)", LONGEST_NAME),
    }
    joined = _joined_request(site, identity)
    if joined is not None:
        deadline = min(deadline, joined.deadline)
        site.ledger.move(joined.id, RequestState.WITHDRAWN, "asked at this site, too", done_by=told["done_by"])
    digest = site.person_digest(identity)
    return site.ledger.request(spelled or identity, digest, deadline, received=received, no_data=no_data, **told)


def is_unknown(site: Site, identity: str) -> bool:
    """Tell whether a site has no image of a person, and no request that stands."""
    return _spelled(site.manifest().identities, identity) is None and not _stands(site, identity)


def _spelled(identities: Iterable[str], identity: str) -> str | None:
    wanted = canonical(identity)
    return next((name for name in identities if canonical(name) == wanted), None)


def _stands(site: Site, identity: str) -> bool:
    return site.person_digest(identity) in site.ledger.person_digests()


def extend(
    site: Site,
    request: str,
    *,
    until: date | None = None,
    months: int | None = None,
    reason: str,
    noticed: date,
    done_by: str = "",
) -> ForgetRequest:
    """Extend the deadline of an open request, by up to two months in all (GDPR, Article 12(3)).

    Parameters
    ----------
    until, months
        The new deadline, or the months to add to the current one.
    reason
        Why more time is needed: the person must be told.
    noticed
        The day on which the person was told; no later than the deadline that is extended.

    Raises
    ------
    LedgerError
        If the law does not allow this extension.
    """
    planned = plan_extension(site, request, until=until, months=months, reason=reason, noticed=noticed)
    site.ledger.extend(
        request,
        end_of(planned.due),
        "more time is needed",
        noticed=noticed,
        done_by=_text(done_by, "done_by", "Who extends the request (--by)", LONGEST_NAME),
        remark=planned.reason,
    )
    return site.ledger.get(request)


@dataclass(frozen=True)
class Extension:
    """An extension that the law allows: the new deadline, and why more time is needed."""

    due: date
    reason: str


def plan_extension(
    site: Site,
    request: str,
    *,
    until: date | None = None,
    months: int | None = None,
    reason: str,
    noticed: date | None = None,
) -> Extension:
    """Return what :func:`extend` would record, and record nothing: the person must be told of it first.

    Parameters
    ----------
    noticed
        As of :func:`extend`; today when omitted.

    Raises
    ------
    LedgerError
        If the law does not allow this extension, or the request is closed.
    """
    found, today = _asked_here(site, request, "extended"), site_day(datetime.now(UTC))
    if not found.is_open:
        raise LedgerError(f"Request {request} is {found.state}; its deadline cannot be extended any more.")
    if (until is None) == (months is None):
        raise LedgerError("Say how long the request is extended: either --until DAY or --months 1 or 2.", "until")
    due = until if until is not None else add_months(found.due, months or 0)
    refuse_extension(due, found.first_deadline.date(), found.due)
    refuse_notice(noticed or today, found.received, found.due, today)
    return Extension(due, _text(reason, "reason", "The reason (--reason)", needed=True))


def refuse(site: Site, request: str, ground: Ground, *, reason: str, done_by: str = "") -> ForgetRequest:
    """Refuse a request while no job works on it; the person may ask again.

    As after a withdrawal, the site trains on the person again, and sites that had joined withdraw theirs.

    Raises
    ------
    LedgerError
        If there is no such request, or it is under way, closed, or was made at another site.
    """
    found = _asked_here(site, request, "refused")
    _refuse_begun(found, "refused")
    site.ledger.move(
        found.id,
        RequestState.REFUSED,
        "refused by this site",
        ground=ground,
        done_by=_text(done_by, "done_by", "Who refuses the request (--by)", LONGEST_NAME),
        remark=_text(reason, "reason", "The reason (--reason)", needed=True),
    )
    return site.ledger.get(found.id)


def withdraw(site: Site, request: str, *, reason: str = "", done_by: str = "") -> ForgetRequest:
    """Withdraw a request while no job works on it.

    Parameters
    ----------
    reason
        Why the person takes it back, if they said so.

    Raises
    ------
    LedgerError
        If there is no such request, or it is under way, done or withdrawn already.
    """
    found = site.ledger.get(request)
    _refuse_begun(found, "withdrawn")
    name = _text(done_by, "done_by", "Who takes the withdrawal in (--by)", LONGEST_NAME)
    remark = _text(reason, "reason", "The reason (--reason)")
    site.ledger.move(request, RequestState.WITHDRAWN, "withdrawn by the person", done_by=name, remark=remark)
    return site.ledger.get(request)


def join_requests(site: Site, job: str, asked: Mapping[str, datetime]) -> list[ForgetRequest]:
    """Accept at this site the requests of people who asked at another site, in any split.

    A site cannot refuse them, even if these are its last images.

    Parameters
    ----------
    asked
        The people's pseudonyms in this job, and their deadlines.
    """
    people = set(site.manifest().identities)
    here = {identity: site.fleet_pseudonym(identity, job) for identity in sorted(people - site.gone(people))}
    return [
        site.ledger.request(identity, site.person_digest(identity), asked[pseudonym], JOINED)
        for identity, pseudonym in here.items()
        if pseudonym is not None and pseudonym in asked
    ]


def extend_joined(site: Site, job: str, asked: Mapping[str, datetime]) -> None:
    """Take over the later deadlines of requests that this site has joined in, if they were extended where they began.

    Parameters
    ----------
    asked
        The people's pseudonyms in this job, and their deadlines; one that the law does not allow changes nothing.
    """
    for request in site.ledger.requests(RequestState.ACCEPTED, *UNDER_WAY):
        name = site.fleet_pseudonym(request.identity, job) if request.identity is not None else None
        deadline = None if name is None else asked.get(name)
        if deadline is None or not has_joined(site, request):
            continue
        latest = latest_deadline(request.first_deadline.date())
        if request.due < deadline.date() <= latest:
            site.ledger.extend(request.id, deadline, "extended at another site")


def has_joined(site: Site, request: ForgetRequest) -> bool:
    """Tell whether a person has asked at another site of the fleet, and not at this one."""
    return site.ledger.history(request.id)[0].reason == JOINED


def _joined_request(site: Site, identity: str) -> ForgetRequest | None:
    """Return the request that this site has joined in for a person, if one waits here.

    Raises
    ------
    LedgerError
        If a job works on it: it cannot become the site's own then.
    """
    digest = site.person_digest(identity)
    for request in site.ledger.requests(RequestState.ACCEPTED, *UNDER_WAY):
        if request.identity is None or site.person_digest(request.identity) != digest or not has_joined(site, request):
            continue
        if request.state in UNDER_WAY:
            raise LedgerError(
                f"'{identity}' has asked at another site already, and the job {request.job} works on it here, too; ask "
                "again if that job ends without a release."
            )
        return request
    return None


def _asked_here(site: Site, request: str, what: str) -> ForgetRequest:
    found = site.ledger.get(request)
    if has_joined(site, found):
        raise LedgerError(f"Request {request} was made at another site; it is {what} there.")
    return found


def _refuse_begun(request: ForgetRequest, what: str) -> None:
    """Refuse to end a request that a job works on, or that is past that: what a job has begun is ended by that job."""
    if request.state is not RequestState.ACCEPTED:
        under_way = f"the job {request.job} works on it" if request.state in UNDER_WAY else f"it is {request.state}"
        raise LedgerError(f"Request {request.id} cannot be {what}: {under_way}.")


def _text(text: str, field: str, what: str, most: int = LONGEST_TEXT, *, needed: bool = False) -> str:
    """Return a text that somebody wrote, if a ledger can keep it."""
    text = text.strip()
    if needed and not text:
        raise LedgerError(f"{what} is empty; write it in a sentence.", field)
    if len(text) > most:
        raise LedgerError(f"{what} has {len(text)} characters; write {most} at most.", field)
    if not is_text(text):
        raise LedgerError(f"{what} is no text; write it in UTF-8.", field)
    return text
