"""Processes that die with a task: it is given once more, and the first answer counts."""

from __future__ import annotations

import httpx
import pytest
from flwr.app import Error, Message, MessageType, RecordDict
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo

from dlfd_fleet.federation.rounds import exchange as module
from dlfd_fleet.federation.rounds.exchange import AWAY, reason_of
from dlfd_fleet.federation.rounds.fleet import Fleet, pseudonym

DIED = Error(code=ErrorCode.NODE_UNAVAILABLE, reason="node_unavail")
CRASHED = Error(code=ErrorCode.CLIENT_APP_CRASHED, reason="crashed")
RAISED = Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason="out of memory")


@pytest.fixture(autouse=True)
def short_polls(flower_run, monkeypatch):
    """Nobody waits for long."""
    monkeypatch.setattr(module, "LONGEST_POLL", 0.06)


class MortalGrid:
    """As the SuperLink does it: a message is given to one process, and is gone with it.

    ``answers`` are what a node's messages come to, one after another: records, an error, or None for silence.
    ``starts`` are when its SuperNode was let in, at one look at the nodes after another; None: it is not connected.
    """

    def __init__(self, answers, starts):
        self.answers = {node: list(each) for node, each in answers.items()}
        self.starts = {node: list(each) for node, each in starts.items()}
        self.sent, self.asked = {}, []

    def get_nodes(self):
        now = {node: each.pop(0) if len(each) > 1 else each[0] for node, each in self.starts.items()}
        return [NodeInfo(node_id=node, last_activated_at=start) for node, start in now.items() if start is not None]

    def push_messages(self, messages):
        ids = []
        for message in messages:
            node = message.metadata.dst_node_id
            message.metadata._message_id = f"{node}-{len(self.asked)}"
            self.asked.append(node)
            self.sent[message.metadata.message_id] = message, self.answers[node].pop(0)
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids):
        for message_id in message_ids:
            request, answer = self.sent[message_id]
            if answer is not None:
                yield Message(answer, reply_to=request)


def exchanged(grid, timeout=5.0, return_seconds=5.0):
    seen = []
    fleet = Fleet(grid, timeout, return_seconds=return_seconds, notice=lambda doing: seen.append(dict(doing)))
    replies = list(fleet.exchange(MessageType.TRAIN, {node: RecordDict() for node in grid.answers}, "1"))
    return fleet, [reply.node for reply in replies], seen


@pytest.mark.parametrize("error", [DIED, CRASHED], ids=["SuperNode", "ClientApp"])
def test_a_process_that_died_with_its_task_is_asked_once_more(error):
    grid = MortalGrid({1: [RecordDict()], 2: [error, RecordDict()]}, {1: ["a"], 2: ["a"]})
    fleet, replied, seen = exchanged(grid)
    assert (replied, grid.asked, fleet.absent) == ([1, 2], [1, 2, 2], {})
    assert seen.index({pseudonym(2): AWAY}) < seen.index({pseudonym(2): MessageType.TRAIN})


def test_a_supernode_that_was_started_again_unseen_is_asked_once_more():
    grid = MortalGrid({1: [None, RecordDict()]}, {1: ["a", "a", "b"]})
    fleet, replied, _ = exchanged(grid)
    assert (replied, grid.asked, fleet.absent) == ([1], [1, 1], {})


def test_a_site_that_is_away_is_asked_again_when_it_is_back_and_not_before():
    grid = MortalGrid({1: [DIED, RecordDict()]}, {1: ["a", None, None, None, "b"]})
    fleet, replied, _ = exchanged(grid)
    assert (replied, grid.asked, fleet.absent) == ([1], [1, 1], {})


def test_a_site_that_does_not_come_back_is_named_and_the_others_count():
    grid = MortalGrid({1: [RecordDict()], 2: [DIED]}, {1: ["a"], 2: ["a", None]})
    fleet, replied, _ = exchanged(grid, return_seconds=0.1)
    assert replied == [1]
    assert fleet.absent == {pseudonym(2): "died at train, and was not back within 0 s"}


def test_a_site_that_dies_again_is_not_asked_a_third_time_and_one_that_raises_not_a_second():
    grid = MortalGrid({1: [CRASHED, CRASHED], 2: [RAISED]}, {1: ["a"], 2: ["a"]})
    fleet, replied, _ = exchanged(grid)
    assert (replied, sorted(grid.asked)) == ([], [1, 1, 2])
    assert fleet.absent == {
        pseudonym(1): "failed at train: crashed",
        pseudonym(2): "failed at train: out of memory",
    }


RAISED_IN_APP = "ClientAppException: \nException ClientAppException occurred. Message: "
IN_RAY = (
    "<class 'ray.exceptions.RayTaskError(ClientAppException)'>:<'\x1b[36mray::ClientAppActor.run()\x1b[39m (pid=9)\n"
    '  File "client_app.py", line 1, in run\n' + "    raise one\n" * 50
)


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (f"{IN_RAY}{RAISED_IN_APP}RuntimeError at this site; see there.'>", "RuntimeError at this site; see there."),
        (f"<class 'flwr.ClientAppException'>:<'{RAISED_IN_APP}sizes:\n\thead'>", "sizes:\n\thead"),
        (f"{IN_RAY}flwr.LoadClientAppError: no module x'>", "flwr.LoadClientAppError: no module x"),
        ("<class 'ValueError'>:<''>", "ValueError"),
        ("<class 'a.b.KeyError'>:<'one'>", "KeyError: one"),
        ("crashed", "crashed"),
        ("", "2"),
    ],
    ids=["in Ray", "raised", "not loaded", "no words", "one line", "plain", "nothing"],
)
def test_of_a_sites_error_the_coordinator_says_the_words_and_not_the_way_through_the_code(reason, words):
    assert reason_of(Error(2, reason)) == words


def test_a_late_site_is_waited_for_only_so_long_once_a_quorum_has_answered():
    answers, starts = {1: [RecordDict()], 2: [RecordDict()], 3: [None]}, {1: ["a"], 2: ["a"], 3: ["a"]}
    tasks = {node: RecordDict() for node in answers}
    fleet = Fleet(MortalGrid(answers, starts), 600.0, quorum=0.5, late_seconds=0.1)
    assert [reply.node for reply in fleet.exchange(MessageType.TRAIN, tasks, "1")] == [1, 2]
    assert fleet.absent == {pseudonym(3): "did not answer train within 0.1 s of 2 other answers"}

    strict = Fleet(MortalGrid(answers, starts), 0.3, quorum=1.0, late_seconds=0.1)  # everybody is the quorum
    assert len(list(strict.exchange(MessageType.TRAIN, tasks, "1"))) == 2
    assert strict.absent == {pseudonym(3): "did not answer train within 0.3 s"}


def test_an_error_is_no_answer_that_makes_others_late():
    grid = MortalGrid({1: [RAISED], 2: [None]}, {1: ["a"], 2: ["a"]})
    fleet = Fleet(grid, 0.3, quorum=0.5, late_seconds=0.05)
    assert not list(fleet.exchange(MessageType.TRAIN, {1: RecordDict(), 2: RecordDict()}, "1"))
    assert fleet.absent[pseudonym(2)] == "did not answer train within 0.3 s"


def test_members_that_are_away_are_waited_for_once_and_taken_up_when_they_are_back(monkeypatch):
    monkeypatch.setattr("dlfd_fleet.federation.rounds.fleet.LONGEST_POLL", 0.02)
    grid = MortalGrid({}, {1: ["a"], 2: [None, None, "a"]})
    fleet = Fleet(grid, 1.0, return_seconds=60.0, members=frozenset({1, 2}))
    assert fleet.wait_for_nodes() == (1, 2)
    grid.starts[2] = [None]
    fleet.return_seconds = 0.0
    assert fleet.wait_for_nodes() == (1,)
    assert fleet.absent == {pseudonym(2): "is not connected"}
    fleet.return_seconds = 60.0
    assert fleet.wait_for_nodes() == (1,)
    grid.starts[2] = ["b"]
    assert fleet.wait_for_nodes() == (1, 2)


def test_a_superlink_whose_database_is_busy_is_asked_again_and_another_error_ends_the_job(monkeypatch):
    monkeypatch.setattr(module, "_PAUSES", (0.0, 0.0))
    grid, answers = MortalGrid({1: [RecordDict()]}, {1: ["a"]}), [500, 500, 200, 403]
    pull = grid.pull_messages

    def busy(message_ids):
        status = answers.pop(0)
        request = httpx.Request("POST", "https://superlink.example/v1/runtime/pull-messages")
        httpx.Response(status, request=request).raise_for_status()
        return pull(message_ids)

    monkeypatch.setattr(grid, "pull_messages", busy)
    _, replied, _ = exchanged(grid)
    assert replied == [1]
    grid.answers[1] = [RecordDict()]
    with pytest.raises(httpx.HTTPStatusError, match="403"):
        exchanged(grid)


@pytest.mark.parametrize("error", [KeyError("Pickle"), ValueError("wrong head")], ids=["unknown class", "no object"])
def test_a_reply_that_flower_cannot_rebuild_is_its_nodes_own_and_ends_no_job(error, monkeypatch):
    grid = MortalGrid({1: [RecordDict()], 2: [RecordDict()]}, {1: ["a"], 2: ["a"]})
    pull = grid.pull_messages

    def spoilt(message_ids):
        if message_ids[0].startswith("2-"):
            raise error
        return pull(message_ids)

    monkeypatch.setattr(grid, "pull_messages", spoilt)
    fleet, replied, _ = exchanged(grid)
    assert (replied, grid.asked) == ([1], [1, 2])
    assert fleet.absent == {pseudonym(2): f"sent a reply to train that cannot be read ({type(error).__name__})"}
    assert not fleet.silent
