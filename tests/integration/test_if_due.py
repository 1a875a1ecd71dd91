"""`job start erase --if-due`: the sites are asked before there is a job, and nothing is taken up for the question."""

from __future__ import annotations

import re
from contextlib import closing

from dlfd_fleet.federation.jobs.command import cancel, last_answer
from dlfd_fleet.federation.jobs.due import ask_whether_due
from dlfd_fleet.federation.protocol.messages import PendingQuery, PendingReply
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.ledger import RequestState, Site, site_folders
from dlfd_fleet.settings import DueSettings
from tests.integration.fleet_in_process import (
    InProcessGrid,
    a_person_asks_at_each_site,
    interrupted_before,
    run_job,
)


def with_due(settings, **due):
    erasure = settings.erasure.model_copy(update={"due": DueSettings(**due)})
    return settings.model_copy(update={"erasure": erasure})


def states_of(settings):
    found = []
    for folder in site_folders(settings.state_folder):
        with Site(folder) as site:
            found += [request.state for request in site.ledger.requests()]
    return found


def test_nothing_is_started_before_it_is_due_and_everything_waits_as_it_did(fleet, run_app, capsys):
    asked = a_person_asks_at_each_site(fleet)
    grid = run_app(fleet, job="erase", if_due=True)
    said = " ".join(capsys.readouterr().out.split())
    assert f"Nothing is due: 2 requests wait, the first is due on {asked[0].due}." in said
    assert [record.kind for record in Store(fleet.state_folder).jobs()] == ["train"]
    assert states_of(fleet) == [RequestState.ACCEPTED] * 2
    assert f"2 requests wait, the first is due on {asked[0].due}" in last_answer(
        Store(fleet.state_folder), DueSettings()
    )
    replies = [message for message in grid.seen if message.metadata.message_type == PendingQuery.TYPE]
    assert len(replies) == 4  # one question and one answer of each site


def test_an_erasure_starts_once_it_is_due(fleet, run_app):
    a_person_asks_at_each_site(fleet)
    run_app(with_due(fleet, batch=2), job="erase", if_due=True, by="a timer")
    store = Store(fleet.state_folder)
    assert [record.kind for record in store.jobs()] == ["train", "erase"]
    assert [each.who for each in store.decisions.of(store.jobs()[-1].job)] == ["a timer"]
    assert f"{store.jobs()[-1].job} has asked them since" in last_answer(store, DueSettings())
    assert RequestState.ACCEPTED not in states_of(fleet)


def test_two_questions_have_nothing_in_common_but_counts_and_days(fleet):
    a_person_asks_at_each_site(fleet)
    grid = InProcessGrid(fleet)
    for _ in range(2):
        ask_whether_due(grid, fleet)
    texts = [str(message.content) for message in grid.seen if message.metadata.message_type == PendingQuery.TYPE]
    digits = [set(re.findall("[0-9a-f]{16,}", text)) for text in texts]
    replies = [
        PendingReply.from_records(message.content, "a site")
        for message in grid.seen
        if message.metadata.reply_to_message_id
    ]
    assert {reply.requests + tuple(reply.people) + tuple(reply.withdrawn) for reply in replies} == {()}
    assert all(reply.waiting == 1 and reply.first_due for reply in replies)
    held = {reply.held for reply in replies}  # the model that training has left there
    assert (digits[0] & digits[4]) | (digits[1] & digits[5]) <= held


def test_what_waits_at_a_site_that_is_away_is_not_known(fleet):
    a_person_asks_at_each_site(fleet)
    ask_whether_due(InProcessGrid(fleet), fleet)
    impatient = fleet.model_copy(update={"fleet": fleet.fleet.model_copy(update={"connect_seconds": 0.01})})
    due = ask_whether_due(InProcessGrid(fleet, absent=frozenset({2})), impatient)
    assert not due.is_due
    with Site(site_folders(fleet.state_folder)[1]) as site:
        assert due.why.endswith(f"What waits at site-{site.card.id} is not known: it does not answer.")


def test_a_job_that_was_interrupted_is_due_and_its_requests_are_counted(fleet):
    a_person_asks_at_each_site(fleet)
    with interrupted_before("way" if fleet.erasure.way != "unlearn" else "audit-original"):
        run_job(fleet, "erase")
    due = ask_whether_due(InProcessGrid(fleet), fleet)
    assert due.is_due
    assert re.match(r"erase-\S+ was interrupted, and goes on\.", due.why)


def test_a_job_that_was_cancelled_is_not_due(fleet):
    with interrupted_before("asked"):
        run_job(fleet, "erase")
    with closing(Store(fleet.state_folder)) as store:
        cancel(store, store.unfinished()[0].job)
    due = ask_whether_due(InProcessGrid(fleet), fleet)
    assert (due.is_due, due.why) == (False, "Nothing is due: nobody asks to be forgotten.")


def test_requests_of_a_job_whose_end_a_site_does_not_know_wait_too(fleet):
    asked = a_person_asks_at_each_site(fleet)
    with Site(site_folders(fleet.state_folder)[0]) as site:
        site.ledger.move(asked[0].id, RequestState.UNLEARNING, "a job took it up", job="erase-lost")
    due = ask_whether_due(InProcessGrid(fleet), with_due(fleet, batch=2))
    assert due.is_due
    assert "2 requests wait" in due.why


def test_while_a_job_works_nothing_is_started(fleet):
    with Store(fleet.state_folder).lock():
        due = ask_whether_due(InProcessGrid(fleet), fleet)
    assert not due.is_due
    assert "another job works" in due.why


def test_a_plan_says_what_the_rule_says(fleet):
    asked = a_person_asks_at_each_site(fleet)
    note = run_job(fleet, "plan").note
    assert f"Nothing is due: 2 requests wait, the first is due on {asked[0].due}." in note
    assert "The erasure will aim at what the model itself says of changed copies of the images, because no" in note
    note = run_job(with_due(fleet, batch=2), "plan").note
    assert "An erasure is due: 2 requests wait, and a job is started for 2" in note
