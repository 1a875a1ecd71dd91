"""Send tasks to nodes and receive their replies, also if SuperNodes or ClientApps die in between."""

from __future__ import annotations

import hashlib
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TypeVar

import httpx
from flwr.app import ArrayRecord, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from dlfd_fleet.federation.protocol.held_names import MODEL_NOT_HELD

# A process or a connection died with the task. What a site's own code raises would come again when it is asked again.
_DEATHS = frozenset(
    {
        ErrorCode.MESSAGE_UNAVAILABLE,
        ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
        ErrorCode.NODE_UNAVAILABLE,
        ErrorCode.CLIENT_APP_CRASHED,
    }
)
AWAY = "away: asked again when it is back"
_SHORTEST_POLL, LONGEST_POLL = 0.05, 1.0
# A SuperLink whose database is busy answers these with 500, and nothing has happened; others may have half happened.
_REPEATABLE = ("/get-nodes", "/pull-messages")
_PEM = b"-----BEGIN PUBLIC KEY-----"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_RAISED = "Exception ClientAppException occurred. Message: "
_WRAPPED = re.compile(r"<class '([\w.]+\.)?(?P<type>[\w()]+)'>:<'(?P<words>.*)'>", re.DOTALL)
_PAUSES = (1.0, 2.0, 4.0, 8.0)
_T = TypeVar("_T")


def activations(grid: Grid) -> dict[int, str]:
    """Return the connected nodes, with the time at which each SuperNode connected; a new time means a new process."""
    nodes = _patiently(lambda: list(grid.get_nodes()))
    return {node.node_id: node.last_activated_at for node in nodes}


def public_keys(grid: Grid) -> dict[int, str]:
    """Return the fingerprints of connected nodes' keys.

    Simulated nodes have none.
    """
    nodes = _patiently(lambda: list(grid.get_nodes()))
    keys = {node.node_id: bytes(node.public_key) for node in nodes}
    return {node: hashlib.sha256(key).hexdigest() for node, key in keys.items() if key.startswith(_PEM)}


def _patiently(call: Callable[[], _T]) -> _T:
    for pause in _PAUSES:
        try:
            return call()
        except httpx.HTTPStatusError as error:
            if error.response.status_code != httpx.codes.INTERNAL_SERVER_ERROR:
                raise
            if not error.request.url.path.endswith(_REPEATABLE):
                raise
            time.sleep(pause)
    return call()


class Exchange:
    """Sends the tasks; :meth:`replies` takes what comes back.

    A restarted SuperNode has lost its task, and the SuperLink sends no task twice. So a node whose SuperNode or
    ClientApp died is asked once more when it is back.

    Parameters
    ----------
    grid
        Flower's grid.
    kind, tasks, group
        The messages' type, content by node, and group.
    short
        Tasks to send first: without models that nodes hold, or with differences from these. A node that does not hold
        its model, or is asked again, is sent the whole task.
    return_seconds
        Longest wait for a node that died.
    notice
        Called when a node died and when it is asked again.

    Attributes
    ----------
    repeated
        Nodes that were asked twice because their process died.
    shortened
        Nodes that were sent a short task, and whether they held the model.
    sent_bytes
        Array bytes sent so far, by node.
    unanswered
        Nodes that have not answered when :meth:`replies` ends, with the reason.
    silent
        Those of them that were connected all the time.
    """

    def __init__(
        self,
        grid: Grid,
        kind: str,
        tasks: Mapping[int, RecordDict],
        short: Mapping[int, RecordDict],
        group: str,
        return_seconds: float,
        notice: Callable[[int, str], None],
    ) -> None:
        self._grid, self._kind, self._tasks, self._group = grid, kind, tasks, group
        self._return_seconds, self._notice = return_seconds, notice
        self.repeated: set[int] = set()
        self.unanswered: dict[int, str] = {}
        self.silent = frozenset[int]()
        self.sent_bytes = Counter[int]()
        self._died: dict[int, float] = {}
        self.shortened = {node: True for node, task in tasks.items() if short[node] is not task}
        self._known = activations(grid)
        self._outstanding: dict[str, int] = {}
        self._send(short)

    def replies(
        self,
        timeout: float,
        enough: int = 0,
        late_seconds: float | None = None,
        hopeless: frozenset[int] = frozenset(),
        hopeless_seconds: float = 0.0,
    ) -> Iterator[tuple[int, Message]]:
        """Yield each node with its reply or error as it arrives; replies are not kept.

        Parameters
        ----------
        timeout
            Longest wait for all of them, seconds.
        enough, late_seconds
            After this number of replies without an error, wait at most this many seconds more; None: no limit.
        hopeless, hopeless_seconds
            Nodes for which to wait only this long after all others have answered.
        """
        deadline, poll, answered, limit = time.monotonic() + timeout, _SHORTEST_POLL, 0, timeout
        only_hopeless = False
        while (self._outstanding or self._died) and time.monotonic() < deadline:
            if not only_hopeless and {*self._outstanding.values(), *self._died} <= hopeless:
                only_hopeless, deadline = True, min(deadline, time.monotonic() + hopeless_seconds)
            heard = False
            for node, message in self._arrived():
                heard = True
                answered += not message.has_error()
                if late_seconds is not None and answered == enough and time.monotonic() + late_seconds < deadline:
                    deadline, limit = time.monotonic() + late_seconds, late_seconds
                yield node, message
            poll = _SHORTEST_POLL if heard else min(LONGEST_POLL, poll * 1.1)
            if self._died or poll == LONGEST_POLL:
                self._ask_again()
            if self._outstanding or self._died:
                time.sleep(poll)
        for node in {*self._outstanding.values(), *self._died}:
            after = "" if limit == timeout else f" of {enough} other answers"
            self.unanswered[node] = f"did not answer {self._kind} within {limit:g} s{after}"
        self.silent = frozenset(self._outstanding.values()) - self._died.keys()

    def _send(self, contents: Mapping[int, RecordDict]) -> None:
        messages = [Message(records, node, self._kind, group_id=self._group) for node, records in contents.items()]
        if messages:
            self._outstanding |= dict(zip(self._grid.push_messages(messages), contents, strict=True))
            self.sent_bytes.update({node: array_bytes(records) for node, records in contents.items()})

    def _arrived(self) -> Iterator[tuple[int, Message]]:
        # One id at a time: only one reply's arrays are in memory while it is used.
        for message_id in list(self._outstanding):
            if message_id not in self._outstanding:
                continue  # its node was asked twice, and has answered
            for message in self._readable(message_id):
                node = self._outstanding.pop(message_id)
                if message.has_error() and message.error.code in _DEATHS and node not in self.repeated:
                    self._note_death(node)
                    continue
                if message.has_error() and message.error.code == MODEL_NOT_HELD and self.shortened.get(node):
                    self.shortened[node] = False
                    self._send({node: self._tasks[node]})
                    continue
                self._died.pop(node, None)
                self._outstanding = {other: asked for other, asked in self._outstanding.items() if asked != node}
                yield node, message

    def _readable(self, message_id: str) -> list[Message]:
        """Return the reply to a message, if there is one; one that its sender has made unreadable is no answer."""
        try:
            return _patiently(partial(self._pull, message_id))
        except (httpx.HTTPError, OSError):
            raise  # of the SuperLink
        except Exception as error:  # Flower rebuilds what a SuperNode has sent, whatever that is
            node = self._outstanding[message_id]
            self._died.pop(node, None)
            self._outstanding = {other: asked for other, asked in self._outstanding.items() if asked != node}
            self.unanswered[node] = f"sent a reply to {self._kind} that cannot be read ({type(error).__name__})"
            return []

    def _pull(self, message_id: str) -> list[Message]:
        return list(self._grid.pull_messages([message_id]))

    def _ask_again(self) -> None:
        now = activations(self._grid)
        for node in set(self._outstanding.values()) - self.repeated:
            if now.get(node, self._known.get(node)) != self._known.get(node):
                self._note_death(node)
        back = [node for node in self._died if node in now]
        for node in back:
            del self._died[node]
            self._notice(node, self._kind)
        self.repeated.update(back)
        self._send({node: self._tasks[node] for node in back})
        for node in [node for node, since in self._died.items() if time.monotonic() - since > self._return_seconds]:
            del self._died[node]
            self.unanswered[node] = f"died at {self._kind}, and was not back within {self._return_seconds:.0f} s"

    def _note_death(self, node: int) -> None:
        self._died.setdefault(node, time.monotonic())
        self._notice(node, AWAY)


def reason_of(error: Error) -> str:
    """Return the text of a site's error, without types, colours and tracebacks of Flower and Ray."""
    said = _COLOURS.sub("", error.reason or "")
    _, raised, words = said.rpartition(_RAISED)
    if raised:
        return words.removesuffix("'>").strip()
    wrapped = _WRAPPED.fullmatch(said)
    if wrapped is None:
        return said or str(error.code)
    lines = [line.strip() for line in wrapped["words"].splitlines() if line.strip()]
    return lines[-1] if len(lines) > 1 else ": ".join([wrapped["type"], *lines])


def array_bytes(records: RecordDict) -> int:
    """Return the bytes of a message's arrays."""
    return sum(record.count_bytes() for record in records.values() if isinstance(record, ArrayRecord))
