"""The sites as the coordinator sees them: send a task to each, take the replies as they come."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

from dlfd_fleet.exceptions import JobError, MessageError

logger = logging.getLogger(__name__)

WAITING = "waiting"
_SHORTEST_POLL, _LONGEST_POLL = 0.05, 1.0


@dataclass(frozen=True)
class Reply:
    """A site's answer; ``sender`` is its pseudonym."""

    node: int
    sender: str
    records: RecordDict


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
        Share of the members whose replies a round needs.
    sent_bytes, received_bytes
        Array bytes so far, in both directions.
    members
        Nodes that take part: those that answered the job's first question. All connected ones until then.
    absent
        Sites that did not answer or answered with an error, and why, in this job.
    names
        What each node's site calls itself, once it has said so.
    notice
        Told what sites do now, by site.
    """

    grid: Grid
    timeout: float
    quorum: float = 0.0
    sent_bytes: int = 0
    received_bytes: int = 0
    members: frozenset[int] = frozenset()
    absent: dict[str, str] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    notice: Callable[[Mapping[str, str]], None] = lambda _: None

    def name(self, node: int) -> str:
        """Return what a node is called in logs, MLflow and reports: its site's random id, or Flower's of the node."""
        return self.names.get(node) or pseudonym(node)

    def wait_for_nodes(self, count: int = 1, patience: float = 60.0) -> tuple[int, ...]:
        """Return the connected nodes that take part, in order, after waiting until there are enough.

        Raises
        ------
        JobError
            If none connects in time.
        """
        deadline = time.monotonic() + patience
        while len(nodes := self._connected()) < count and time.monotonic() < deadline:
            time.sleep(_LONGEST_POLL)
        if not nodes:
            raise JobError(f"No site connected within {patience:.0f} s; start the SuperNodes and try again.")
        return nodes

    def _connected(self) -> tuple[int, ...]:
        return tuple(sorted(node for node in self.grid.get_node_ids() if not self.members or node in self.members))

    def exchange(self, kind: str, tasks: Mapping[int, RecordDict], group: str) -> Iterator[Reply]:
        """Send each node its task and yield the replies as they arrive; each is dropped once it is used.

        A node that answers with an error, or not in time, is noted in :attr:`absent` and skipped: one bad site must not
        end a job.
        """
        messages = [Message(records, node, kind, group_id=group) for node, records in tasks.items()]
        self.sent_bytes += sum(_array_bytes(records) for records in tasks.values())
        nodes = list(tasks)
        self.notice({self.name(node): kind for node in nodes})
        outstanding = dict(zip(self.grid.push_messages(messages), nodes, strict=True))
        deadline, poll = time.monotonic() + self.timeout, _SHORTEST_POLL
        while outstanding and time.monotonic() < deadline:
            before = len(outstanding)
            # One id at a time: only one reply's arrays are in memory while it is folded in.
            for message_id in list(outstanding):
                for message in self.grid.pull_messages([message_id]):
                    node = outstanding.pop(message_id)
                    self.notice({self.name(node): WAITING})
                    if message.has_error():
                        self._note_absence(node, f"failed at {kind}: {message.error.reason or message.error.code}")
                    else:
                        self.received_bytes += _array_bytes(message.content)
                        yield Reply(node, self.name(node), message.content)
            poll = _SHORTEST_POLL if len(outstanding) < before else min(_LONGEST_POLL, poll * 1.5)
            if outstanding:
                time.sleep(poll)
        for node in outstanding.values():
            self._note_absence(node, f"did not answer {kind} within {self.timeout:.0f} s")

    def refuse(self, reply: Reply, error: MessageError) -> None:
        """Note that a reply breaks the contract; the site counts as absent."""
        self._note_absence(reply.node, f"was refused: {error}")

    def exclude(self, node: int, reason: str) -> None:
        """Note that a node takes no part in this job, and why."""
        self._note_absence(node, reason)

    def expel(self, node: int, reason: str) -> None:
        """Note that a member takes no part any more, and why."""
        self.members -= {node}
        self._note_absence(node, reason)

    def require_quorum(self, answered: int, what: str) -> None:
        """Stop a job that too few sites take part in.

        Raises
        ------
        JobError
            If fewer have answered than the quorum, or nobody.
        """
        if not answered or answered < self.quorum * len(self.members):
            raise JobError(
                f"Only {answered} of {len(self.members)} sites {what}, and the quorum is {self.quorum:.0%}: "
                f"{self.why_absent()}."
            )

    def why_absent(self) -> str:
        """Return in words which sites are absent and why."""
        return "; ".join(f"{sender} {reason}" for sender, reason in self.absent.items()) or "no site replied"

    def _note_absence(self, node: int, reason: str) -> None:
        self.absent[self.name(node)] = reason
        self.notice({self.name(node): reason})
        logger.warning("%s %s", self.name(node), reason)


def pseudonym(node: int) -> str:
    """Return what a node is called before its site has said who it is: Flower's random node id, shortened."""
    return f"node-{node % 16**8:08x}"


def site_name(site: str) -> str:
    """Return what a site is called in logs, MLflow and reports: the random id that it keeps."""
    return f"site-{site}"


def _array_bytes(records: RecordDict) -> int:
    return sum(record.count_bytes() for record in records.values() if isinstance(record, ArrayRecord))
