"""Send tasks to the sites of a fleet, and track which take part."""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from flwr.app import RecordDict
from flwr.serverapp import Grid

from dlfd_fleet.exceptions import JobError, MessageError
from dlfd_fleet.federation.protocol.held_names import NOTHING_TO_TRAIN_ON
from dlfd_fleet.federation.protocol.messages import PendingQuery, PendingReply
from dlfd_fleet.federation.records.costs import SiteCost
from dlfd_fleet.federation.rounds.counts import Claim
from dlfd_fleet.federation.rounds.exchange import (
    AWAY,
    LONGEST_POLL,
    Exchange,
    activations,
    array_bytes,
    public_keys,
    reason_of,
)
from dlfd_fleet.federation.rounds.held_models import HeldModels
from dlfd_fleet.federation.rounds.site_keys import SiteKeys
from dlfd_fleet.models import ModelCard
from dlfd_fleet.plain_text import visible
from dlfd_fleet.settings import FleetSettings

logger = logging.getLogger(__name__)

WAITING = "waiting"
_LONGEST_REASON = 500
_OF_SITE = re.compile(r"site-(?P<site>[0-9a-f]{8}): ")
_PATIENCE_WITH_SILENT = 5.0


@dataclass(frozen=True)
class Reply:
    """A site's answer; ``sender`` is its pseudonym."""

    node: int
    sender: str
    records: RecordDict


@dataclass(frozen=True)
class Member:
    """A node in a job: its site's first reply, and the number that it counts by."""

    reply: PendingReply
    claim: Claim


@dataclass
class Fleet:
    """The nodes behind a grid.

    Attributes
    ----------
    grid
        Flower's grid.
    timeout
        Longest wait for the replies to one set of tasks, seconds.
    quorum
        Share of the members that must reply in a round.
    return_seconds
        Longest wait for a member whose process or connection was lost.
    late_seconds
        Longest wait for the others after a quorum; None: :attr:`timeout`.
    members
        Nodes that take part: those that answered the job's first question. Before it, all connected ones.
    site_keys
        The key of each site.
    notice
        Called with a site's current activity.
    refused
        Called with a site that the coordinator leaves out, and the reason; not for sites that are away.
    sent_bytes, received_bytes
        Array bytes so far, in both directions.
    sites_took
        Cost of each site so far.
    admitted
        What the members said when the job began, and what they count by; those expelled since are still here.
    said
        What every site of the job said when it began, those included that have not come back since. What a job does
        follows from this, and never from who answers now: else a job that is resumed would go on another way.
    absent
        Sites that did not answer or sent an error in this job, with the reason.
    asked
        Whether the job's first question was sent; from then on nodes may have taken up requests.
    names
        Name of each node's site, once known.
    sites
        The site id of each node, once checked.
    held
        The models that nodes hold, as far as known.
    silent
        Nodes that once did not answer in time; they are only told how the job ended.
    without_half
        Nodes that reported in the last exchange that a reference model's half is too small.
    """

    grid: Grid
    timeout: float
    quorum: float = 0.0
    return_seconds: float = 0.0
    late_seconds: float | None = None
    members: frozenset[int] = frozenset()
    site_keys: SiteKeys = field(default_factory=SiteKeys)
    notice: Callable[[Mapping[str, str]], None] = lambda _: None
    refused: Callable[[str, str], None] = lambda _site, _reason: None
    sent_bytes: int = 0
    sites_took: dict[str, SiteCost] = field(default_factory=dict)
    received_bytes: int = 0
    admitted: dict[int, Member] = field(default_factory=dict, init=False)
    said: tuple[PendingReply, ...] = field(default=(), init=False)
    absent: dict[str, str] = field(default_factory=dict, init=False)
    asked: bool = field(default=False, init=False)
    names: dict[int, str] = field(default_factory=dict, init=False)
    sites: dict[int, str] = field(default_factory=dict, init=False)
    held: HeldModels = field(default_factory=HeldModels, init=False)
    silent: frozenset[int] = field(default=frozenset(), init=False)
    without_half: frozenset[int] = field(default=frozenset(), init=False)
    _narrowed: bool = field(default=False, init=False)
    _recognised: dict[int, str] = field(default_factory=dict, init=False)
    """What nodes are called that have failed before they said who they are."""
    _keys: dict[int, str] = field(default_factory=dict, init=False)
    _missed: list[Callable[[str, str], None]] = field(default_factory=list, init=False)
    _given_up: frozenset[int] = field(default=frozenset(), init=False)
    """Members that were waited for in vain: nothing waits for them again until they are back."""

    @classmethod
    def under(
        cls,
        settings: FleetSettings,
        grid: Grid,
        site_keys: SiteKeys,
        *,
        notice: Callable[[Mapping[str, str]], None] = lambda _: None,
        refused: Callable[[str, str], None] = lambda _site, _reason: None,
    ) -> Fleet:
        """Return the fleet of a job under its settings."""
        return cls(
            grid,
            settings.reply_timeout_seconds,
            settings.quorum,
            settings.return_seconds,
            settings.late_seconds,
            site_keys=site_keys,
            notice=notice,
            refused=refused,
        )

    # ------------------------------------------------------------------ who takes part

    def introduce(self, node: int, reply: PendingReply) -> None:
        """Note a node's site and the model that it reports to hold."""
        self.sites[node] = reply.site
        self.names[node] = site_name(reply.site)
        self.held.note(node, reply.held)

    def narrow(self, nodes: Iterable[int]) -> None:
        """Continue with these nodes only."""
        self.members, self._narrowed = frozenset(nodes), True

    def admit(
        self,
        replies: Mapping[int, PendingReply],
        claims: Mapping[int, Claim] | None = None,
        said: Iterable[PendingReply] | None = None,
    ) -> None:
        """Go on with these nodes alone, on what they said; each counts by its claim, or by what it says without one.

        Parameters
        ----------
        said
            What all sites said when the job began; nobody else did when omitted.
        """
        known, self.said = claims or {}, tuple(replies.values() if said is None else said)
        self.admitted = {node: Member(reply, known.get(node) or Claim.of(reply)) for node, reply in replies.items()}
        self.narrow(replies)

    def replies(self) -> dict[int, PendingReply]:
        """Return the first replies of the members."""
        return {node: member.reply for node, member in self.admitted.items() if node in self.members}

    def claims(self) -> dict[int, Claim]:
        """Return the claim of each admitted node."""
        return {node: member.claim for node, member in self.admitted.items()}

    def requests_of(self, node: int) -> frozenset[str] | None:
        """Return a node's requests in this job, by their ids; None if unknown."""
        member = self.admitted.get(node)
        return frozenset(member.reply.requests) if member else None

    def name(self, node: int) -> str:
        """Return a node's name in logs, MLflow and reports: its site's random id, or Flower's node id."""
        return self.names.get(node) or self._recognised.get(node) or pseudonym(node)

    def keys(self) -> dict[int, str]:
        """Return the fingerprints of the connected nodes' keys, of those that have one."""
        keys = public_keys(self.grid)
        self._keys |= keys
        return keys

    def wait_for_nodes(self, count: int = 1, patience: float = 60.0) -> tuple[int, ...]:
        """Wait until enough nodes are connected, and return those that take part, in order.

        It also waits for members that are away, at most :attr:`return_seconds`.

        Raises
        ------
        JobError
            If none connects in time, or every member was left out.
        """
        began, everybody = time.monotonic(), not self.members and not self._narrowed
        if not self.members and self._narrowed:
            raise JobError(f"No site is left: {self.why_absent()}.")
        while True:
            there = {node for node in activations(self.grid) if everybody or node in self.members}
            self._given_up -= there
            nodes = tuple(sorted(there - self.silent))
            away, waited = self.members - self._given_up - self.silent - there, time.monotonic() - began
            count = min(count, len(there - self.silent) + len(away)) if self.silent else count
            if (len(nodes) >= count or waited >= patience) and (not away or waited >= self.return_seconds):
                break
            self.notice({self.name(node): AWAY for node in away})
            time.sleep(LONGEST_POLL)
        for node in away:
            self._note_absence(node, "is not connected")
        self._given_up |= away
        if not nodes and self.silent:
            raise JobError(f"No site is left that answers: {self.why_absent()}.")
        if not nodes:
            raise JobError(f"No site connected within {waited:.0f} s; start the SuperNodes and try again.")
        return nodes

    def connected(self) -> tuple[int, ...]:
        """Wait for members, and return every connected node, also those that take no part."""
        return tuple(sorted({*self.wait_for_nodes(), *activations(self.grid)}))

    def exchange(
        self,
        kind: str,
        tasks: Mapping[int, RecordDict],
        group: str,
        card: ModelCard | None = None,
        *,
        keep: bool = True,
    ) -> Iterator[Reply]:
        """Send each node its task and yield replies as they arrive; replies are not kept.

        A node that sends an error, or does not answer in time, is noted in :attr:`absent` and skipped. One that does
        not answer in time is :attr:`silent` from then on, so it costs one wait for each job. One whose process died is
        asked once more when it is back. Models and frozen arrays that a node holds are not sent.

        Parameters
        ----------
        keep
            Whether nodes keep the tasks' model, so that it need not be sent again.
        """
        self.without_half = frozenset()
        self.asked = self.asked or kind == PendingQuery.TYPE
        self.notice({self.name(node): kind for node in tasks})

        def notice(node: int, doing: str) -> None:
            self.notice({self.name(node): doing})

        sent = self.held.without_held(tasks, card, keep=keep)
        exchange = Exchange(self.grid, kind, tasks, sent, group, self.return_seconds, notice)
        sent_before = self.sent_bytes
        self.sent_bytes = sent_before + exchange.sent_bytes.total()
        enough = max(1, math.ceil(self.quorum * len(tasks)))
        short = min(_PATIENCE_WITH_SILENT, self.timeout / 10.0)
        for node, message in exchange.replies(self.timeout, enough, self.late_seconds, self.silent, short):
            self.notice({self.name(node): WAITING})
            if message.has_error() and message.error.code == NOTHING_TO_TRAIN_ON:
                self.without_half |= {node}
            elif message.has_error():
                self._note_absence(node, f"failed at {kind}: {self._words_of(node, reason_of(message.error))}")
            else:
                self.held.answered(node, tasks[node])
                if node in exchange.shortened and self.held.gives_up(node, held=exchange.shortened[node]):
                    logger.warning("%s keeps no model; from now on it is sent one with each task", self.name(node))
                received = array_bytes(message.content)
                self.received_bytes += received
                self._count(node, SiteCost(received_bytes=received))
                yield Reply(node, self.name(node), message.content)
        self.sent_bytes = sent_before + exchange.sent_bytes.total()
        for node, size in exchange.sent_bytes.items():
            self._count(node, SiteCost(sent_bytes=size))
        for node, reason in exchange.unanswered.items():
            if node not in self.silent:  # why it was left out is said already
                self._recognise(node)
                self._note_absence(node, reason)
        self.silent |= exchange.silent

    def worked(self, node: int, seconds: float) -> None:
        """Note the time that a node reports for a task."""
        self._count(node, SiteCost(seconds=seconds))

    def _count(self, node: int, cost: SiteCost) -> None:
        self.sites_took[self.name(node)] = self.sites_took.get(self.name(node), SiteCost()).plus(cost)

    def refuse(self, node: int, error: MessageError) -> None:
        """Note that a reply is not valid; the site counts as absent."""
        self.exclude(node, f"was refused: {error}")

    def exclude(self, node: int, reason: str) -> None:
        """Note that a node takes no part in this job, and why."""
        self._note_absence(node, reason)
        self.refused(self.name(node), self.absent[self.name(node)])

    def expel(self, node: int, reason: str) -> None:
        """Note that a member takes no part any more, and why."""
        self.narrow(self.members - {node})
        self.exclude(node, reason)

    def require_quorum(self, answered: int, what: str, able: int | None = None) -> None:
        """Stop a job with too few sites.

        Parameters
        ----------
        able
            Number of members that can do it. Default: all.

        Raises
        ------
        JobError
            If fewer than the quorum have answered, or none.
        """
        able = len(self.members) if able is None else able
        if not answered or answered < self.quorum * able:
            raise JobError(
                f"Only {answered} of {able} sites {what}, and the quorum is {self.quorum:.0%}: {self.why_absent()}."
            )

    def why_absent(self) -> str:
        """Return a sentence: which sites are absent and why."""
        reasons = [f"{sender} {reason.rstrip('.')}" for sender, reason in self.absent.items()]
        return "; ".join(reasons) or "no site replied"

    def tell_absences(self, missed: Callable[[str, str], None]) -> None:
        """Call a function from now on for each absent site, with the reason."""
        self._missed.append(missed)

    def note_absent(self, site: str, reason: str) -> None:
        """Note that a site is absent, by its name, and why."""
        self.absent[site] = reason
        for missed in self._missed:
            missed(site, reason)
        logger.warning("%s %s", site, reason)

    def _words_of(self, node: int, reason: str) -> str:
        """Return the words of a node's error, without the name of its site that they begin with, if it is that site."""
        found = _OF_SITE.match(reason)
        if found is None:
            self._recognise(node)
            return reason
        self._recognise(node, found["site"])
        return reason[found.end() :] if self.name(node) == site_name(found["site"]) else reason

    def _recognise(self, node: int, claimed: str | None = None) -> None:
        """Find out whose node fails that has not answered who it is: by its key, or else by what its error says.

        An error is believed as an answer is: where keys are noted, the node must have the site's.
        """
        if node in self.names or node in self._recognised:
            return
        key = self._keys.get(node)
        site = self.site_keys.site_of(key)
        if site is None and claimed is not None and self.site_keys.may_be(claimed, key):
            site = claimed
        if site is not None and site_name(site) not in self.names.values():
            self.notice({pseudonym(node): WAITING})
            self._recognised[node] = site_name(site)

    def _note_absence(self, node: int, reason: str) -> None:
        reason = visible(reason, _LONGEST_REASON)  # some of it may be a site's own words
        self.notice({self.name(node): reason})
        self.note_absent(self.name(node), reason)


def pseudonym(node: int) -> str:
    """Return a node's name before its site is known: Flower's random node id, shortened."""
    return f"node-{node % 16**8:08x}"


def site_name(site: str) -> str:
    """Return a site's name in logs, MLflow and reports, made from its random id."""
    return f"site-{site}"
