"""Ask sites for their requests at the start of a job, and tell them how it ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from itertools import chain
from typing import Literal

from dlfd_fleet.data import balanced_weights, canonical, listed
from dlfd_fleet.exceptions import JobError, MessageError
from dlfd_fleet.federation.protocol.messages import (
    DevicesReached,
    LedgerHead,
    PendingQuery,
    PendingReply,
    SettleResult,
    SettleTask,
)
from dlfd_fleet.federation.rounds.counts import Claim, PlausibleCounts, plausible_images
from dlfd_fleet.federation.rounds.fleet import Fleet, site_name
from dlfd_fleet.model_input import ModelInput
from dlfd_fleet.models import ModelCard
from dlfd_fleet.plain_text import visible
from dlfd_fleet.progress import ProgressDisplay

NOTHING_TO_UNLEARN = "nobody who asks was trained on"
_WORDS_SHOWN = 200


@dataclass(frozen=True)
class EarlierRequests:
    """One site's requests from earlier jobs; told only to that site.

    Attributes
    ----------
    resumed
        Requests that the job had taken up before an interruption.
    released
        Requests that released models have forgotten, with epochs.
    ledger
        Where the site's ledger was at the last contact.
    """

    resumed: tuple[str, ...] = ()
    released: Mapping[str, int] = field(default_factory=dict)
    ledger: LedgerHead | None = None


def ask_pending(
    fleet: Fleet,
    query: PendingQuery,
    largest_share: float = 1.0,
    card: ModelCard | None = None,
    earlier: Mapping[str, EarlierRequests] | None = None,
    plausible: PlausibleCounts | None = None,
    *,
    behind: bool = False,
) -> dict[int, PendingReply]:
    """Ask every node what it holds and which requests wait; the answers are counts and pseudonyms.

    Nodes are asked a second time if, now that their sites are known, there is something to tell:

    - the end of earlier jobs to a site that was away then, and to each site what is known of its own requests alone;
    - the last known state of its ledger, by which the site knows whether that was restored from a backup;
    - if sites share a secret, the pseudonyms of everybody who asked, so that other sites with the person join, and of
      people who withdrew, so that joined sites withdraw.

    Parameters
    ----------
    largest_share
        Largest share of the fleet's training images that one site may ask to forget; a site that asks for more takes no
        part.
    card
        Card of the job's model; a site with other classes or another input takes no part.
    earlier
        By the name of a site: its requests in earlier jobs, and in this one before it was interrupted.
    plausible
        Limits of the images that a site counts by. Default: no limit.
    behind
        Whether sites may have been told of a later epoch: of a model that begins with fresh weights, which takes it.

    Raises
    ------
    JobError
        If no node answers, or one was told of a later erasure epoch than the question has.
    """
    replies = _query(fleet, dict.fromkeys(fleet.wait_for_nodes(), query))
    if not behind:
        _refuse_restored_coordinator(fleet, replies, query.epoch)
    everybody = query
    if query.take and len(replies) > 1:
        asked, withdrawn = _people(replies.values())
        everybody = PendingQuery(**{**dict(query), "asked": asked, "withdrawn": withdrawn})
    second = {
        node: _with_its_own(everybody, reply, (earlier or {}).get(fleet.name(node), EarlierRequests()))
        for node, reply in replies.items()
    }
    if any(each != query for each in second.values()):
        replies = _query(fleet, {node: second[node] for node in fleet.wait_for_nodes()})
    _refuse_shared_ids(fleet, replies)
    if card is not None:
        for node in [node for node, reply in replies.items() if not fits(reply, card)]:
            reply = replies.pop(node)
            what = "" if reply.multi_label else "classes "
            fleet.exclude(
                node, f"has the {what}{_shape(reply)}, and the model has {_shape(card)}; its site.json must agree"
            )
    else:
        _leave_out_other_shapes(fleet, replies)
    claims = (plausible or PlausibleCounts()).claims(replies)
    _refuse_large_shares(fleet, replies, claims, largest_share)
    if not replies:
        raise JobError(f"No site takes part: {fleet.why_absent()}.")
    fleet.admit(replies, claims)
    return replies


def _refuse_large_shares(
    fleet: Fleet, replies: dict[int, PendingReply], claims: Mapping[int, Claim], largest: float
) -> None:
    """Leave out sites that ask to forget too large a share; their images do not reduce other shares."""
    trained = sum(claim.weight for claim in claims.values())
    while replies:
        total = trained + sum(reply.forget_images for reply in replies.values())
        node = max(replies, key=lambda each: replies[each].forget_images)
        if replies[node].forget_images <= largest * total:
            return
        share = replies.pop(node).forget_images / total
        fleet.exclude(
            node,
            f"asks to forget {share:.0%} of the fleet's images, above {largest:.0%} (erasure.largest_forget_share)",
        )


def _with_its_own(query: PendingQuery, reply: PendingReply, earlier: EarlierRequests) -> PendingQuery:
    """Return a question that says to one site what is known of its own requests."""
    if set(earlier.resumed) - set(reply.requests):
        query = query.model_copy(update={"resumed": earlier.resumed})
    if query.take and reply.unsettled:
        query = query.model_copy(update={"ended": reply.unsettled, "released": dict(earlier.released)})
    if earlier.ledger is not None and not query.plan:
        query = query.model_copy(update={"seen": earlier.ledger, "released": dict(earlier.released)})
    return query


def _refuse_restored_coordinator(fleet: Fleet, replies: Mapping[int, PendingReply], epoch: int) -> None:
    """Stop where sites have been told of a release that this coordinator does not know of.

    Raises
    ------
    JobError
        If one has: the champion here may remember whom the fleet has forgotten since.
    """
    ahead = {fleet.name(node): reply.epoch for node, reply in replies.items() if reply.epoch > epoch}
    if ahead:
        said = ", ".join(f"{site} {seen}" for site, seen in sorted(ahead.items()))
        raise JobError(
            f"This coordinator's erasure epoch is {epoch}, and sites were told of later ones ({said}): its state "
            "folder was put back from a backup, and its champion may remember whom the fleet has forgotten since. "
            "Restore a newer backup, or train a model that has seen none of them: `dlfd-fleet job start train --fresh`."
        )


def _refuse_shared_ids(fleet: Fleet, replies: dict[int, PendingReply]) -> None:
    """Leave out sites that report the same request id; ids are random, so one of them copied it."""
    owners: dict[str, list[int]] = {}
    for node, reply in replies.items():
        for request in set(reply.requests):
            owners.setdefault(request, []).append(node)
    for node in sorted({node for nodes in owners.values() if len(nodes) > 1 for node in nodes}):
        del replies[node]
        fleet.exclude(node, "reports a request that another site reports, too")


def _people(replies: Iterable[PendingReply]) -> tuple[dict[str, date], dict[str, tuple[str, ...]]]:
    """Return people who ask at any site, and people who withdrew and ask nowhere else.

    A joined request is withdrawn if it was in a job together with a withdrawn request, or with a joined one that is
    withdrawn.
    """
    asked, own = dict[str, date](), dict[str, date]()
    withdrawn, joined = dict[str, set[str]](), dict[str, list[frozenset[str]]]()
    for reply in replies:
        for person, deadline in reply.people.items():
            asked[person] = min(deadline, asked.get(person, deadline))
            if person not in reply.joined:
                own[person] = min(deadline, own.get(person, deadline))
        for person, marks in reply.withdrawn.items():
            withdrawn.setdefault(person, set()).update(marks)
        for person, marks in reply.joined.items():
            joined.setdefault(person, []).append(frozenset(marks))
    gone = dict[str, tuple[str, ...]]()
    for person in sorted(withdrawn.keys() & asked.keys() - own.keys()):
        reached, standing = withdrawn[person], joined.get(person, [])
        while falling := [each for each in standing if reached & each]:
            reached = reached.union(*falling)
            standing = [each for each in standing if each not in falling]
        if not standing:
            gone[person] = tuple(sorted(reached))
    asked |= own  # who joined in may not know yet that the deadline was extended
    return {person: asked[person] for person in sorted(asked.keys() - gone.keys())}, gone


def _leave_out_other_shapes(fleet: Fleet, replies: dict[int, PendingReply]) -> None:
    """Leave out sites whose classes or input differ from those of most sites.

    Raises
    ------
    JobError
        If at most half of them agree.
    """
    shapes = {node: _compared(reply) for node, reply in replies.items()}
    if not shapes:
        return
    (usual, agreeing) = Counter(shapes.values()).most_common(1)[0]
    if 2 * agreeing <= len(replies):
        said = "; ".join(f"{fleet.name(node)} has {_shape(reply)}" for node, reply in sorted(replies.items()))
        raise JobError(f"The sites disagree about classes or input: {said}; make their site.json agree.")
    for node in [node for node, shape in shapes.items() if shape != usual]:
        reply = replies.pop(node)
        fleet.exclude(
            node,
            f"has other classes or another input than most sites ({_shape(reply)}); its site.json must agree",
        )


def _shape(one: PendingReply | ModelCard) -> str:
    what = "labels " if one.multi_label else ""
    return f"{what}{visible(listed(one.classes), _WORDS_SHOWN)} of {one.input.sentence()}"


def _compared(one: PendingReply | ModelCard) -> tuple[tuple[str, ...], bool, ModelInput]:
    return tuple(map(canonical, one.classes)), one.multi_label, one.input


def fits(reply: PendingReply, card: ModelCard) -> bool:
    """Tell whether a site has the classes or labels (in any spelling) and the input of a model."""
    return _compared(reply) == _compared(card)


def agreed_shape(replies: Iterable[PendingReply]) -> PendingReply:
    """Return the first of the replies, all of which have its classes or labels, and its input.

    Raises
    ------
    JobError
        If one has others, which :func:`ask_pending` lets none of them have.
    """
    first, *others = sorted(replies, key=lambda reply: reply.classes)
    if any(_compared(reply) != _compared(first) for reply in others):
        raise JobError("The sites disagree about classes or input; make their site.json agree.")
    return first


def _query(fleet: Fleet, queries: Mapping[int, PendingQuery]) -> dict[int, PendingReply]:
    """Return the replies of the nodes that answered and are who they say; only they take part from now on."""
    answers: dict[int, PendingReply] = {}
    keys = fleet.keys()
    records = {node: query.to_records() for node, query in queries.items()}
    for reply in fleet.exchange(PendingQuery.TYPE, records, "0"):
        try:
            answers[reply.node] = PendingReply.from_records(reply.records, reply.sender)
        except MessageError as error:
            fleet.refuse(reply.node, error)
    before, claimed = {site: node for node, site in fleet.sites.items()}, dict[int, str]()
    for node, answer in list(answers.items()):
        claimed[node] = answer.site
        if fleet.sites.get(node, answer.site) != answer.site:
            del answers[node], claimed[node]
            fleet.exclude(node, f"says now that it is {site_name(answer.site)}")
    posing = fleet.site_keys.refused(claimed, fleet.keys() | keys, before)
    for node, reason in posing.items():
        del answers[node]
        fleet.exclude(node, reason)
    for node, answer in answers.items():
        fleet.introduce(node, answer)
    if not answers:
        raise JobError(f"No site answered: {fleet.why_absent()}.")
    fleet.narrow(answers)
    return answers


def class_weights(pending: Mapping[int, PendingReply], claims: Mapping[int, Claim] | None = None) -> tuple[float, ...]:
    """Return a weight for each class, inverse to its share of the images that the fleet trains on.

    For labels there are two weights each: for 0 and for 1.

    Parameters
    ----------
    claims
        Images that each node counts by. Default: its reported number.
    """
    counts = []
    for node, reply in pending.items():
        claim = claims[node] if claims is not None else Claim.of(reply)
        share = claim.weight / claim.retain if claim.retain else 1.0
        shown, images = list(reply.class_images), reply.labelled_images
        if images is not None:
            shown = [count for applies in shown for count in (images - applies, applies)]
        counts.append([count * share for count in shown])
    # Who claims far too much counts by a small part of each image: less than one in all is a made-up share.
    totals = [max(1.0, total) if (total := sum(column)) else 0.0 for column in zip(*counts, strict=True)]
    if not next(iter(pending.values())).multi_label:
        return balanced_weights(totals)
    return tuple(chain.from_iterable(map(balanced_weights, zip(totals[::2], totals[1::2], strict=True))))


def forgotten_without_update(pending: Mapping[int, PendingReply]) -> frozenset[str]:
    """Return the requests that a released model has forgotten without an update of their site.

    These are people who were never trained on. They are also people of a site without anybody else to train on: the
    other sites' rounds forget them, and this site's audit tells whether they did.
    """
    return frozenset(request for reply in pending.values() if not reply.can_unlearn for request in reply.requests)


def someone_to_unlearn(pending: Mapping[int, PendingReply]) -> bool:
    """Tell whether anybody who asks was trained on.

    Raises
    ------
    JobError
        If somebody was, but no site has anybody else to train on.
    """
    if not any(reply.forget_images for reply in pending.values()):
        return False
    if not any(reply.can_train for reply in pending.values()):
        raise JobError(
            "Everybody whom the sites train on asks to be forgotten, so nobody is left to train on: add people at a "
            "site, or revoke the model's versions (dlfd-fleet registry revoke); the requests wait."
        )
    return True


@dataclass(frozen=True)
class Settled:
    """The sites' answers at the end of a job: purged images, and the epoch that each knows."""

    purged_images: int
    acknowledged: dict[str, int]
    ledgers: dict[str, LedgerHead] = field(default_factory=dict)
    """Where each site's ledger was afterwards."""


def settle(
    fleet: Fleet,
    job: str,
    progress: ProgressDisplay,
    outcome: Literal["released", "returned"],
    reason: str,
    epoch: int,
    requests: Iterable[str],
    devices: DevicesReached | None = None,
) -> Settled:
    """Tell every site how a job ended; after a release, sites purge the images of forgotten people.

    Sites that take no part are told, too: they may have taken up requests, which then wait again, and may hold a model
    that remembers.

    Parameters
    ----------
    epoch
        The fleet's erasure epoch from now on.
    requests
        Requests that the released model has forgotten; each site is told only its own.
    devices
        Progress of erasures on devices. Default: no request is completed.
    """
    task = SettleTask(
        job=job,
        outcome=outcome,
        reason=reason,
        epoch=epoch,
        purge=outcome == "released",
        devices=devices,
    )
    forgotten, purged, acknowledged = frozenset(requests), 0, dict[str, int]()
    ledgers = dict[str, LedgerHead]()
    own = {node: tuple(sorted(forgotten & (fleet.requests_of(node) or frozenset()))) for node in fleet.connected()}
    tasks = {node: task.model_copy(update={"requests": ids}).to_records() for node, ids in own.items()}
    with progress.phase("Settling the requests at the sites", len(tasks)) as advance:
        for reply in fleet.exchange(SettleTask.TYPE, tasks, "settle"):
            advance()
            try:
                result = SettleResult.from_records(reply.records, reply.sender)
                _check_purged(fleet, reply.node, result.purged_images)
            except MessageError as error:
                fleet.refuse(reply.node, error)
                continue
            purged += result.purged_images
            if reply.node in fleet.names:  # others were not asked who they are
                acknowledged[reply.sender] = result.epoch
                ledgers |= {reply.sender: result.ledger} if result.ledger else {}
    return Settled(purged, acknowledged, ledgers)


def _check_purged(fleet: Fleet, node: int, images: int) -> None:
    """Refuse an impossible number of purged images, because a certificate will state it.

    A site without a request in the job purges nothing. The number at another site is limited, not known exactly,
    because people who were never trained on may ask, too.
    """
    requests = fleet.requests_of(node)
    most = plausible_images(fleet.claims()) if requests is None or requests else 0
    if images > most:
        raise MessageError(f"{fleet.name(node)} says it purged {images} images, above the {most} that are plausible.")
