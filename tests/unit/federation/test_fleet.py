"""The coordinator's view of its sites, over a grid whose nodes answer as a test says."""

from __future__ import annotations

from datetime import date

import pytest
import torch
from flwr.app import ArrayRecord, Error, Message, MessageType, RecordDict
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo

from dlfd_fleet.exceptions import JobError, MessageError
from dlfd_fleet.federation.protocol.messages import PendingQuery, PendingReply, RequestDates, SettleResult
from dlfd_fleet.federation.rounds.fleet import WAITING, Fleet, pseudonym
from dlfd_fleet.federation.rounds.requests import Settled, ask_pending, settle
from dlfd_fleet.federation.rounds.site_keys import SiteKeys
from dlfd_fleet.model_input import image_input

SITE, OTHER = "0a1b2c3d", "11111111"
QUERY = PendingQuery(job="job-1", take=True)
DATES = RequestDates(asked_at=date(2026, 1, 2), deadline=date(2026, 2, 2))


def asking(*requests):
    """Return the fields of a reply that names requests."""
    return {"requests": requests, "dates": dict.fromkeys(requests, DATES)}


REPLY = PendingReply(
    site=SITE, **asking("r1"), forget_images=3, class_images=(4, 5), classes=("no", "yes"), input=image_input(32)
)

pytestmark = pytest.mark.usefixtures("flower_run")


class ScriptedGrid:
    """Each node has what it answers, an Error, or None for silence."""

    def __init__(self, answers):
        self.answers = answers
        self.sent = {}

    def get_nodes(self):
        return [NodeInfo(node_id=node) for node in self.answers]

    def push_messages(self, messages):
        messages = list(messages)
        for message in messages:
            # Flower sets the id when it sends; here a message is known by its receiver.
            self.sent[str(message.metadata.dst_node_id)] = message
        return [str(message.metadata.dst_node_id) for message in messages]

    def pull_messages(self, message_ids):
        for message_id in message_ids:
            request, answer = self.sent[message_id], self.answers[int(message_id)]
            if answer is not None:
                request.metadata._message_id = message_id
                yield Message(answer, reply_to=request)


def test_replies_are_taken_as_they_come_and_bad_nodes_do_not_end_a_job():
    arrays = RecordDict({"model": ArrayRecord.from_torch_state_dict({"w": torch.zeros(8)})})
    grid = ScriptedGrid(
        {1: arrays, 2: Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason="out of memory"), 3: None}
    )
    fleet = Fleet(grid, timeout=0.3)
    tasks = dict.fromkeys((1, 2, 3), arrays)
    replies = list(fleet.exchange(MessageType.TRAIN, tasks, "1"))
    assert [reply.node for reply in replies] == [1]
    assert replies[0].sender == pseudonym(1)
    assert "out of memory" in fleet.absent[pseudonym(2)]
    assert "did not answer train within" in fleet.absent[pseudonym(3)]
    assert fleet.sent_bytes == 3 * fleet.received_bytes > 0


def test_only_nodes_that_answer_the_first_question_take_part():
    other = REPLY.model_copy(update={"site": OTHER, **asking("r3")})
    grid = ScriptedGrid({1: REPLY.to_records(), 2: RecordDict({}), 3: other.to_records()})
    fleet = Fleet(grid, timeout=1.0)
    assert ask_pending(fleet, QUERY) == {1: REPLY, 3: other}
    assert fleet.name(3) == "site-11111111"
    assert fleet.wait_for_nodes() == (1, 3)
    assert "sent no PendingReply" in fleet.absent[pseudonym(2)]


def test_sites_that_count_the_same_request_are_both_left_out():
    other = REPLY.model_copy(update={"site": OTHER})
    third = REPLY.model_copy(update={"site": "2" * 8, **asking("r3")})
    fleet = Fleet(ScriptedGrid({1: REPLY.to_records(), 2: other.to_records(), 3: third.to_records()}), timeout=1.0)
    assert ask_pending(fleet, QUERY) == {3: third}
    assert set(fleet.absent.values()) == {"reports a request that another site reports, too"}


def test_a_fleet_without_an_answer_says_who_is_absent_and_why():
    fleet = Fleet(ScriptedGrid({1: Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason="no site")}), timeout=1.0)
    with pytest.raises(JobError, match=f"No site answered: {pseudonym(1)} failed at query.pending: no site"):
        ask_pending(fleet, QUERY)
    with pytest.raises(JobError, match="No site connected"):
        Fleet(ScriptedGrid({}), timeout=1.0).wait_for_nodes(patience=0.0)
    assert Fleet(ScriptedGrid({1: None}), timeout=1.0).wait_for_nodes(2, patience=0.0) == (1,)


def raised(words):
    return Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=words)


class KeyedGrid(ScriptedGrid):
    """Each node has a key of its own."""

    def get_nodes(self):
        return [
            NodeInfo(node_id=node, public_key=f"-----BEGIN PUBLIC KEY-----\n{node}".encode()) for node in self.answers
        ]


def test_a_site_that_fails_at_the_first_question_is_named_by_its_key_with_the_reason_that_it_gave():
    keys, other = SiteKeys(), REPLY.model_copy(update={"site": OTHER, **asking("r3")})
    ask_pending(Fleet(KeyedGrid({1: REPLY.to_records(), 2: other.to_records()}), timeout=1.0, site_keys=keys), QUERY)
    grid = KeyedGrid({1: REPLY.to_records(), 2: raised("RuntimeError: no"), 3: raised(f"site-{OTHER}: no")})
    fleet = Fleet(grid, timeout=1.0, site_keys=keys)
    ask_pending(fleet, QUERY)
    assert fleet.absent == {
        f"site-{OTHER}": "failed at query.pending: RuntimeError: no",
        # Whoever only says so is not believed where keys are known.
        pseudonym(3): f"failed at query.pending: site-{OTHER}: no",
    }
    silent = Fleet(KeyedGrid({1: REPLY.to_records(), 2: None}), timeout=0.3, site_keys=keys)
    ask_pending(silent, QUERY)
    assert list(silent.absent) == [f"site-{OTHER}"]


@pytest.mark.parametrize("bound", [True, False])
def test_a_site_without_a_known_key_that_fails_is_named_as_its_error_says(bound):
    seen = {}
    grid = ScriptedGrid({1: REPLY.to_records(), 2: raised(f"site-{OTHER}: DataError at this site; see there.")})
    fleet = Fleet(grid, timeout=1.0, site_keys=SiteKeys(bound=bound), notice=seen.update)
    ask_pending(fleet, QUERY)
    words = "failed at query.pending: DataError at this site; see there."
    assert fleet.absent == {f"site-{OTHER}": words}
    assert (seen[f"site-{OTHER}"], seen[pseudonym(2)]) == (words, WAITING)
    # Once it has answered who it is, its name is not said twice, and it cannot take another one.
    for said, shown in ((SITE, "no"), (OTHER, f"site-{OTHER}: no")):
        grid.answers[1] = raised(f"site-{said}: no")
        assert not list(fleet.exchange(MessageType.TRAIN, {1: RecordDict()}, "1"))
        assert fleet.absent[f"site-{SITE}"] == f"failed at train: {shown}"


def test_a_refused_reply_is_noted_and_told():
    told = []
    grid = ScriptedGrid({1: REPLY.to_records(), 2: Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason="/a/path")})
    fleet = Fleet(grid, timeout=1.0, refused=lambda site, reason: told.append((site, reason)))
    (reply,) = fleet.exchange(PendingQuery.TYPE, dict.fromkeys((1, 2), PendingQuery(job="job-1").to_records()), "0")
    assert told == []  # who is away was not refused, and its words are its own
    fleet.refuse(reply.node, MessageError("it sent nonsense"))
    assert fleet.absent[pseudonym(1)] == "was refused: it sent nonsense"
    fleet.expel(reply.node, "sent too large an update")
    assert told == [(pseudonym(1), "was refused: it sent nonsense"), (pseudonym(1), "sent too large an update")]


class AnsweringGrid(ScriptedGrid):
    """Each node answers a query as a function says."""

    def pull_messages(self, message_ids):
        for message_id in message_ids:
            request, answer = self.sent[message_id], self.answers[int(message_id)]
            request.metadata._message_id = message_id
            yield Message(answer(PendingQuery.from_records(request.content, "test")).to_records(), reply_to=request)


def test_sites_learn_of_people_who_asked_at_another_site_under_their_pseudonym():
    early, late = date(2026, 1, 1), date(2026, 2, 1)
    queries = []

    def asks(site, deadline):
        def answer(query):
            queries.append(query.asked)
            people = {"ab" * 32: deadline}
            return REPLY.model_copy(update={"site": site, **asking(f"r-{site}"), "people": people})

        return answer

    def hears(query):
        return REPLY.model_copy(update={"site": "2" * 8, **asking(*("r2",) if query.asked else ())})

    replies = ask_pending(
        Fleet(AnsweringGrid({1: asks(SITE, late), 2: asks(OTHER, early), 3: hears}), timeout=1.0), QUERY
    )
    assert queries == [{}, {}, {"ab" * 32: early}, {"ab" * 32: early}]
    assert replies[3].requests == ("r2",)


def test_a_site_that_asks_for_too_much_waits_for_an_operator():
    greedy = REPLY.model_copy(update={"site": OTHER, **asking("r2"), "forget_images": 30})
    grid = ScriptedGrid({1: REPLY.to_records(), 2: greedy.to_records()})
    fleet = Fleet(grid, timeout=1.0)
    assert list(ask_pending(fleet, QUERY, 0.5)) == [1]
    assert fleet.wait_for_nodes() == (1,)
    assert (
        fleet.absent[f"site-{OTHER}"]
        == "asks to forget 59% of the fleet's images, above 50% (erasure.largest_forget_share)"
    )
    assert list(ask_pending(Fleet(grid, timeout=1.0), QUERY, 0.6)) == [1, 2]
    with pytest.raises(JobError, match=r"No site takes part: .* asks to forget"):
        ask_pending(Fleet(ScriptedGrid({2: greedy.to_records()}), timeout=1.0), QUERY, 0.5)


def test_the_end_of_a_job_is_told_to_every_node_that_is_connected_then(silent):
    """One was being started again when the job asked who is there: it may hold a model that remembers."""
    grid = ScriptedGrid({1: REPLY.to_records()})
    fleet = Fleet(grid, timeout=1.0)
    ask_pending(fleet, QUERY)
    grid.answers = {node: SettleResult(requests=0, purged_images=0, epoch=1).to_records() for node in (1, 2)}
    assert settle(fleet, "job-1", silent, "released", "PASS", 1, ("r1",)) == Settled(0, {f"site-{SITE}": 1})
    assert grid.sent.keys() == {"1", "2"}
    assert fleet.wait_for_nodes() == (1,)


def test_a_quorum_is_of_the_members_and_an_expelled_one_is_none_any_more():
    fleet = Fleet(ScriptedGrid({}), timeout=1.0, quorum=0.5, members=frozenset({1, 2, 3, 4}))
    fleet.require_quorum(2, "trained")
    fleet.expel(4, "sent an update 40.0 times as large")
    with pytest.raises(JobError, match=rf"Only 1 of 3 sites trained, and the quorum is 50%: {pseudonym(4)} sent"):
        fleet.require_quorum(1, "trained")
    with pytest.raises(JobError, match="Only 0 of 3"):
        Fleet(ScriptedGrid({}), timeout=1.0, members=frozenset({1, 2, 3})).require_quorum(0, "trained")


def test_a_fleet_whose_last_member_was_left_out_asks_nobody_else():
    fleet = Fleet(ScriptedGrid({1: REPLY.to_records(), 2: REPLY.to_records()}), timeout=1.0, members=frozenset({1}))
    assert fleet.wait_for_nodes() == (1,)
    fleet.expel(1, "sent an update 40.0 times as large")
    with pytest.raises(JobError, match=rf"No site is left: {pseudonym(1)} sent an update 40.0 times as large."):
        fleet.wait_for_nodes()


def test_a_silent_site_costs_a_job_one_wait_and_is_still_told_the_end(silent):
    """It answered the first question; the rounds after its first silence do not ask it, and the quorum counts it."""
    other = REPLY.model_copy(update={"site": OTHER, **asking("r2")})
    grid, asked = ScriptedGrid({1: REPLY.to_records(), 2: other.to_records()}), []
    push = grid.push_messages
    grid.push_messages = lambda messages: push([asked.append(each.metadata.dst_node_id) or each for each in messages])
    fleet = Fleet(grid, timeout=0.2, quorum=0.5)
    ask_pending(fleet, QUERY)
    asked.clear()
    grid.answers = {1: RecordDict(), 2: None}
    for _ in range(3):
        tasks = dict.fromkeys(fleet.wait_for_nodes(), RecordDict())
        assert [reply.node for reply in fleet.exchange(MessageType.TRAIN, tasks, "1")] == [1]
        fleet.require_quorum(1, "trained")
    assert asked == [1, 2, 1, 1]
    assert fleet.absent == {f"site-{OTHER}": "did not answer train within 0.2 s"}
    assert fleet.members == {1, 2}

    grid.answers[1] = SettleResult(requests=0, purged_images=0, epoch=1).to_records()
    told = settle(fleet, "job-1", silent, "released", "PASS", 1, ("r1",))
    assert asked[-2:] == [1, 2]
    assert told.acknowledged == {f"site-{SITE}": 1}

    # The job's record says where it fell silent, and not that it was silent at the end, too.
    assert fleet.absent == {f"site-{OTHER}": "did not answer train within 0.2 s"}

    grid.answers[1] = None
    assert not list(fleet.exchange(MessageType.TRAIN, dict.fromkeys(fleet.wait_for_nodes(), RecordDict()), "2"))
    with pytest.raises(JobError, match=r"No site is left that answers: site-.* did not answer"):
        fleet.wait_for_nodes()


def test_words_of_a_site_are_cut_and_shown_as_text():
    told = []
    grid = ScriptedGrid({1: Error(code=0, reason="[/x]\x1b[2J\n" * 10_000)})
    fleet = Fleet(grid, timeout=1.0, refused=lambda _, reason: told.append(reason))
    assert not list(fleet.exchange(MessageType.TRAIN, {1: RecordDict()}, "1"))
    fleet.refuse(1, MessageError("\u202e" * 10_000))
    for reason in (*fleet.absent.values(), *told):
        assert len(reason) < 4_000
        assert reason.isascii() or "…" in reason
        assert not any(character in reason for character in "\x1b\n\u202e")


def test_a_site_of_other_classes_than_most_is_left_out_and_two_that_differ_end_the_job():
    other = REPLY.model_copy(update={"site": OTHER, **asking("r2")})
    odd = REPLY.model_copy(update={"site": "2" * 8, **asking("r3"), "classes": ("a" * 200, "b")})
    grid = ScriptedGrid({1: REPLY.to_records(), 2: other.to_records(), 3: odd.to_records()})
    fleet = Fleet(grid, timeout=1.0)
    assert list(ask_pending(fleet, QUERY)) == [1, 2]
    assert "has other classes or another input than most sites" in fleet.absent["site-22222222"]
    two = Fleet(ScriptedGrid({1: REPLY.to_records(), 3: odd.to_records()}), timeout=1.0)
    with pytest.raises(
        JobError, match=rf"The sites disagree about classes .*site-{SITE} has no, yes of 32 x 32 pixels; site-2"
    ):
        ask_pending(two, QUERY)
