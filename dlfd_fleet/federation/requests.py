"""The forget requests of a job: asking the sites for them at its start, and telling the sites how it ended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from dlfd_fleet.data import balanced_weights, canonical
from dlfd_fleet.exceptions import JobError, MessageError
from dlfd_fleet.federation.fleet import Fleet, site_name
from dlfd_fleet.federation.messages import DevicesReached, PendingQuery, PendingReply, SettleResult, SettleTask
from dlfd_fleet.models import ModelCard
from dlfd_fleet.progress import ProgressDisplay

NOTHING_TO_UNLEARN = "no model was trained on anybody who asks"


def ask_pending(
    fleet: Fleet, query: PendingQuery, largest_share: float = 1.0, card: ModelCard | None = None
) -> dict[int, PendingReply]:
    """Ask every node what it holds and who asks to be forgotten; counts and keyed pseudonyms only.

    Where sites share a secret and the job takes up what waits, they are asked twice: the second time with the
    pseudonyms of everybody who asked, so that other sites that have the person forget too, and of those who have
    withdrawn since, so that sites which had joined in do not.

    Parameters
    ----------
    largest_share
        Largest share of the fleet's training images that one site may ask to forget in a job; one that asks for more
        takes no part.
    card
        Of the model that the job works on; a site of other classes or another image size takes no part.

    Raises
    ------
    JobError
        If no node answers.
    """
    replies = _query(fleet, query)
    if query.take and len(replies) > 1:
        told = _people(replies.values())
        if told["asked"] or told["withdrawn"]:
            replies = _query(fleet, query.model_copy(update=told))
    if card is not None:
        for node in [node for node, reply in replies.items() if not _fits(reply, card)]:
            reply = replies.pop(node)
            fleet.exclude(
                node,
                f"has the classes {', '.join(reply.classes)} at {reply.image_size} pixels, and the model has "
                f"{', '.join(card.classes)} at {card.image_size}; its site.json must agree",
            )
    total = sum(reply.retain_images + reply.forget_images for reply in replies.values())
    for node in [node for node, reply in replies.items() if reply.forget_images > largest_share * total]:
        share = replies.pop(node).forget_images / total
        fleet.exclude(node, f"asks to forget {share:.0%} of the fleet's images, above {largest_share:.0%}")
    if not replies:
        raise JobError(f"No site takes part: {fleet.why_absent()}.")
    fleet.members = frozenset(replies)
    return replies


def _people(replies: Iterable[PendingReply]) -> dict[str, dict[str, datetime]]:
    """Return who asks at any site, and who has withdrawn where they had asked and asks nowhere else."""
    asked, withdrawn, own = dict[str, datetime](), dict[str, datetime](), set[str]()
    for reply in replies:
        for person, deadline in reply.people.items():
            asked[person] = min(deadline, asked.get(person, deadline))
        for person, at in reply.withdrawn.items():
            withdrawn[person] = max(at, withdrawn.get(person, at))
        own |= reply.people.keys() - set(reply.joined)
    gone = withdrawn.keys() & asked.keys() - own
    return {
        "asked": {person: deadline for person, deadline in asked.items() if person not in gone},
        "withdrawn": {person: withdrawn[person] for person in sorted(gone)},
    }


def _fits(reply: PendingReply, card: ModelCard) -> bool:
    names = ([canonical(name) for name in classes] for classes in (reply.classes, card.classes))
    return next(names) == next(names) and reply.image_size == card.image_size


def _query(fleet: Fleet, query: PendingQuery) -> dict[int, PendingReply]:
    """Return the replies of the nodes that answered; only they take part from now on."""
    replies: dict[int, PendingReply] = {}
    fleet.asked = True
    for reply in fleet.exchange(query.TYPE, dict.fromkeys(fleet.wait_for_nodes(), query.to_records()), "0"):
        try:
            answer = PendingReply.from_records(reply.records, reply.sender)
        except MessageError as error:
            fleet.refuse(reply.node, error)
            continue
        if answer.site in {other.site for other in replies.values()}:
            fleet.exclude(reply.node, f"says that it is {site_name(answer.site)}, which another node is")
            continue
        replies[reply.node] = answer
        fleet.names[reply.node] = site_name(answer.site)
        fleet.held.note(reply.node, answer.held)
    if not replies:
        raise JobError(f"No site answered: {fleet.why_absent()}.")
    fleet.members = frozenset(replies)
    return replies


def class_weights(pending: Mapping[int, PendingReply]) -> tuple[float, ...]:
    """Return a weight for each class, inverse to its share of the images that the fleet trains on."""
    return balanced_weights(
        sum(column) for column in zip(*(reply.class_images for reply in pending.values()), strict=True)
    )


def forgotten_without_update(pending: Mapping[int, PendingReply]) -> frozenset[str]:
    """Return the requests that a released model has forgotten though their site sends no update.

    Nobody has trained on the images of people who were always unseen; and a site without anybody else to train on
    cannot unlearn by itself, so that the rounds of the others forget its people, and its audit says whether they have.
    """
    return frozenset(request for reply in pending.values() if not reply.can_unlearn for request in reply.requests)


def someone_to_unlearn(pending: Mapping[int, PendingReply]) -> bool:
    """Tell whether anybody who asks was trained on.

    Raises
    ------
    JobError
        If somebody was, and no site has anybody else to train on.
    """
    if not any(reply.forget_images for reply in pending.values()):
        return False
    if not any(reply.can_train for reply in pending.values()):
        raise JobError(
            "Everybody whom the sites train on asks to be forgotten, and no model can be made of nobody: add people at "
            "a site, or withdraw the model and its versions by hand (dlfd-fleet registry revoke); the requests wait."
        )
    return True


@dataclass(frozen=True)
class Settled:
    """What the sites answered to the end of a job: images purged, and the epoch that each one knows."""

    purged_images: int
    acknowledged: dict[str, int]


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
    """Tell every site how a job ended; those whose requests a released model has forgotten purge their images.

    Those that take no part in it are told, too: they may have taken up requests, which wait again then, and they may
    hold a model that remembers.

    Parameters
    ----------
    epoch
        The fleet's erasure epoch from now on.
    requests
        Those that the released model has forgotten.
    devices
        How far erasures have come on devices; when omitted, no request is closed.
    """
    task = SettleTask(
        job=job,
        outcome=outcome,
        requests=tuple(requests),
        reason=reason,
        epoch=epoch,
        purge=outcome == "released",
        devices=devices,
    )
    nodes, purged, acknowledged = fleet.connected(), 0, dict[str, int]()
    with progress.phase("Settling the requests at the sites", len(nodes)) as advance:
        for reply in fleet.exchange(SettleTask.TYPE, dict.fromkeys(nodes, task.to_records()), "settle"):
            advance()
            try:
                result = SettleResult.from_records(reply.records, reply.sender)
            except MessageError as error:
                fleet.refuse(reply.node, error)
                continue
            purged += result.purged_images
            if reply.node in fleet.names:  # others were not asked who they are
                acknowledged[reply.sender] = result.epoch
    return Settled(purged, acknowledged)
