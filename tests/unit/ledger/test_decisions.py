"""What an officer decides about requests, and what of it stays once the person is purged."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest

from dlfd_fleet.exceptions import LedgerError
from dlfd_fleet.ledger import Action, Ground, RequestState, Site, extend, refuse, site_status, withdraw
from dlfd_fleet.ledger.requests import extend_joined, join_requests
from dlfd_fleet.ledger.status import find_requests, what_keeps_open
from tests.clinic import ask, forget, give_to_job, in_zone, make_clinic, on_day

RECEIVED, DUE = date(2026, 11, 20), date(2026, 12, 18)
TODAY = date(2026, 11, 28)


@pytest.fixture
def site(tmp_path):
    with Site(make_clinic(tmp_path / "clinic")) as opened, on_day(TODAY):
        yield opened


def extended(site, request, **told):
    return extend(site, request.id, **{"reason": "many requests", "noticed": TODAY, "done_by": "ode", **told})


def test_the_deadline_counts_from_the_day_of_receipt(site):
    request = ask(site, received=RECEIVED, verified_by="passport, seen by M. Ode", note="by phone", done_by="ode")
    assert (request.received, request.due, request.first_deadline) == (RECEIVED, DUE, request.deadline)
    assert (request.verified_by, request.note) == ("passport, seen by M. Ode", "by phone")
    assert not request.overdue(request.deadline)
    assert request.overdue(request.deadline + timedelta(seconds=1))
    (event,) = site.ledger.history(request.id)
    assert (event.action, event.done_by, event.at.date()) == (Action.ASKED, "ode", TODAY)
    assert ask(site, "bert").received == TODAY


@pytest.mark.parametrize(
    ("zone", "today"), [("Pacific/Auckland", date(2026, 11, 29)), ("Pacific/Honolulu", TODAY), ("UTC", TODAY)]
)
def test_today_is_the_sites_day(site, zone, today):
    """At noon in Greenwich it is tomorrow in Auckland."""
    with in_zone(zone):
        request = ask(site, deadline_days=10)
        assert (request.received, request.due) == (today, today + timedelta(days=10))
        with pytest.raises(LedgerError, match=f"is in the future; today is {today}"):
            ask(site, "bert", received=today + timedelta(days=1))
        assert extended(site, request, months=1, noticed=today).due == today + timedelta(days=41)
    assert site.ledger.get(request.id).due == today + timedelta(days=41)  # wherever it is read


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ({"received": date(2026, 11, 29)}, "2026-11-29, is in the future; today is 2026-11-28"),
        ({"received": date(2016, 11, 20)}, "is more than 3 years ago; check its year"),
        ({"verified_by": "x" * 2001}, r"--verified-by\) has 2001 characters; write 2000 at most"),
        ({"note": "a\0b"}, r"The note \(--note\) is no text"),
        ({"note": "a\udc80b"}, r"The note \(--note\) is no text"),
        ({"done_by": "x" * 201}, r"\(--by\) has 201 characters; write 200 at most"),
    ],
)
def test_what_cannot_be_taken_in_leaves_nothing(site, told, sentence):
    with pytest.raises(LedgerError, match=sentence):
        ask(site, **told)
    assert site.ledger.requests() == []


def test_an_extension_moves_the_deadline_and_is_in_the_history(site):
    request = extended(site, ask(site, received=RECEIVED), until=date(2027, 1, 15))
    assert (request.due, request.first_deadline.date()) == (date(2027, 1, 15), DUE)
    again = extended(site, request, months=1)
    assert again.due == date(2027, 2, 15)
    event = site.ledger.history(request.id)[-1]
    assert (event.action, event.state, event.done_by) == (Action.EXTENDED, RequestState.ACCEPTED, "ode")
    assert (event.due, event.noticed, event.remark) == (date(2027, 2, 15), TODAY, "many requests")
    with pytest.raises(LedgerError, match="may be extended to 2027-02-18 at most, 2 months after its first deadline"):
        extended(site, again, months=1)
    site.ledger.verify()


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ({"until": DUE}, "is due on 2026-12-18 already; an extension must end after that"),
        ({"until": date(2027, 2, 19)}, "to 2027-02-18 at most"),
        ({"months": 1, "until": date(2027, 1, 1)}, "either --until DAY or --months"),
        ({}, "either --until DAY or --months"),
        ({"months": 1, "reason": "  "}, r"The reason \(--reason\) is empty"),
        ({"months": 1, "noticed": date(2026, 11, 19)}, "before the request was received"),
        ({"months": 1, "noticed": date(2026, 11, 29)}, "in the future; tell the person first"),
    ],
)
def test_an_extension_that_the_law_does_not_know_is_refused(site, told, sentence):
    request = ask(site, received=RECEIVED)
    with pytest.raises(LedgerError, match=sentence):
        extended(site, request, **told)
    assert site.ledger.get(request.id).due == DUE


def test_a_notice_after_the_deadline_extends_nothing(site):
    request = ask(site, received=date(2026, 10, 1))
    with pytest.raises(LedgerError, match="is after the deadline 2026-10-29: a person must be told"):
        extended(site, request, months=1)
    assert extended(site, request, months=1, noticed=date(2026, 10, 29)).due == date(2026, 11, 29)


def test_a_closed_request_is_not_extended_and_an_open_one_is_while_a_job_works_on_it(site):
    request = ask(site)
    give_to_job(site, request)
    assert extended(site, request, months=1).state is RequestState.UNLEARNING
    other = ask(site, "bert")
    withdraw(site, other.id)
    with pytest.raises(LedgerError, match="is WITHDRAWN; its deadline cannot be extended any more"):
        extended(site, other, months=1)


def test_who_is_refused_is_trained_on_as_before_and_may_ask_again(site):
    request = ask(site, done_by="ode")
    assert site.gone(["anna"]) == {"anna"}
    refused = refuse(site, request.id, Ground.LEGAL_CLAIMS, reason="a court case", done_by="nia")
    assert refused.state is RequestState.REFUSED
    assert not refused.overdue(refused.deadline + timedelta(days=9))
    assert site.gone(["anna"]) == frozenset()
    event = site.ledger.history(request.id)[-1]
    assert (event.action, event.ground, event.remark) == (Action.REFUSED, Ground.LEGAL_CLAIMS, "a court case")
    assert event.done_by == "nia"
    assert site_status(site, datetime.now(UTC)).open_requests == ()
    for decide in (lambda: withdraw(site, request.id), lambda: refuse(site, request.id, Ground.ARCHIVING, reason="x")):
        with pytest.raises(LedgerError, match="it is REFUSED"):
            decide()
    again = ask(site)
    assert site.find_request("ANNA").id == again.id
    site.ledger.verify()


def test_who_is_unknown_is_answered_at_once_and_may_ask_again(site):
    request = ask(site, "Zoe", received=RECEIVED, verified_by="passport", note="by phone", done_by="ode", no_data=True)
    assert (request.state, request.received, request.due) == (RequestState.NO_DATA, RECEIVED, DUE)
    asked, answered = site.ledger.history(request.id)
    assert (asked.action, answered.action) == (Action.ASKED, Action.NO_DATA)
    assert (answered.state, answered.done_by, answered.at.date()) == (RequestState.NO_DATA, "ode", TODAY)
    assert what_keeps_open(site, request) == ""
    assert site_status(site, datetime.now(UTC)).open_requests == ()
    assert find_requests(site, datetime.now(UTC), search="zOE")[0].id == request.id
    with on_day(TODAY, 13):
        again = ask(site, "zoe", no_data=True)
    assert site.find_request("ZOE").id == again.id
    for decide in (
        lambda: withdraw(site, again.id),
        lambda: refuse(site, again.id, Ground.ARCHIVING, reason="x"),
        lambda: extended(site, again, months=1),
    ):
        with pytest.raises(LedgerError, match="is NO_DATA"):
            decide()
    site.ledger.verify()


def test_nobody_of_whom_there_is_an_image_or_a_request_is_answered_so(site):
    with pytest.raises(LedgerError, match="There are images of 'anna' at clinic: take the request in"):
        ask(site, "ANNA", no_data=True)
    forget(site, ask(site, "bert"))
    with pytest.raises(LedgerError, match="'Bert' was forgotten already"):
        ask(site, "Bert", no_data=True)
    assert len(site.ledger.requests()) == 1


def test_who_withdraws_may_say_why_and_that_goes_with_the_name(site):
    request = ask(site)
    withdraw(site, request.id, reason=" it was somebody else ", done_by="ode")
    assert site.ledger.history(request.id)[-1].remark == "it was somebody else"
    forget(site, ask(site))
    assert site.ledger.history(request.id)[-1].remark == "(purged)"


def test_a_request_is_not_refused_once_a_job_works_on_it(site):
    request = ask(site)
    give_to_job(site, request, "erase-7")
    with pytest.raises(LedgerError, match="cannot be refused: the job erase-7 works on it"):
        refuse(site, request.id, Ground.ARCHIVING, reason="an archive")
    site.ledger.move(request.id, RequestState.ACCEPTED, "it failed", job="erase-7")
    assert "The job erase-7 gave it back: it failed." in what_keeps_open(site, site.ledger.get(request.id))
    with pytest.raises(LedgerError, match=r"The reason \(--reason\) is empty"):
        refuse(site, request.id, Ground.ARCHIVING, reason="")
    refuse(site, request.id, Ground.ARCHIVING, reason="an archive")
    other = forget(site, ask(site, "bert"))
    with pytest.raises(LedgerError, match="cannot be refused: it is ROLLING_OUT"):
        refuse(site, other.id, Ground.ARCHIVING, reason="an archive")


def test_after_the_purge_no_text_about_the_person_is_in_the_files(site):
    """Of the request that is purged, and of an earlier one of the same person."""
    words = ("anna", "rumpel", "stiltskin", "nightingale", "kestrel")
    early = ask(site, verified_by="rumpel", note="stiltskin", done_by="ode")
    refuse(site, early.id, Ground.IDENTITY_NOT_VERIFIED, reason="nightingale", done_by="ode")
    request = extended(site, ask(site, verified_by="rumpel", note="stiltskin"), months=1, reason="kestrel")
    site.ledger.note_letter(request.id, "extended", "ode")
    done = forget(site, request)
    site.ledger.verify()
    assert (done.identity, done.verified_by, done.note) == (None, "(purged)", "(purged)")
    before = site.ledger.get(early.id)
    assert (before.identity, before.verified_by) == (None, "(purged)")
    refused = site.ledger.history(before.id)[-1]
    assert (refused.ground, refused.done_by) == (Ground.IDENTITY_NOT_VERIFIED, "ode")  # who decided what, and when
    assert [event.action for event in site.ledger.history(request.id)] == [
        Action.ASKED,
        Action.EXTENDED,
        Action.LETTER,
        Action.TAKEN,
        Action.UNLEARNED,
        Action.FORGOTTEN,
        Action.PURGING,
        Action.PURGED,
    ]
    assert {event.remark for event in site.ledger.history()} == {"", "(purged)"}
    site.ledger.close()
    for file in site.folder.iterdir():
        assert not [word for word in words if word.encode() in file.read_bytes()], file


def test_a_text_that_nobody_wrote_is_not_said_to_be_purged(site):
    done = forget(site, ask(site))
    assert (done.verified_by, done.note) == ("", "")


def test_a_request_is_found_by_its_person_by_a_part_of_its_id_and_by_nothing_that_may_be_another(site, monkeypatch):
    first = ask(site)
    assert {site.find_request(named).id for named in (" ANNA", first.id, first.id[:8])} == {first.id}
    for named in (first.id[:7], "", "bert", "zzz"):
        with pytest.raises(LedgerError, match=r"There is no request .*; see: dlfd-fleet forget list"):
            site.find_request(named)
    monkeypatch.setattr("dlfd_fleet.ledger.ledger.secrets.token_hex", lambda _: first.id[:8] + "0" * 8)
    second = ask(site, "bert")
    with pytest.raises(LedgerError, match="may be any of the requests"):
        site.find_request(first.id[:8])
    assert site.find_request(second.id).id == second.id
    forget(site, first)
    assert site.find_request("anna").id == first.id  # by the digest of the name


def test_requests_are_listed_by_urgency_and_searched_in_any_spelling(site):
    late = ask(site, "bert", received=date(2026, 10, 1), note="by PHONE")
    soon = ask(site, "cleo", received=RECEIVED)
    closed = ask(site, "dora", received=date(2026, 9, 1))
    withdraw(site, closed.id)
    new = ask(site)
    now = datetime(2026, 11, 28, 12, tzinfo=UTC)

    def found(**wanted):
        return [request.id for request in find_requests(site, now, **wanted)]

    assert found() == [late.id, soon.id, new.id, closed.id]
    assert found(due_within=20) == [late.id, soon.id]
    assert found(due_within=0) == [late.id]
    assert found(states=[RequestState.WITHDRAWN]) == [closed.id]
    assert found(search="  phone") == found(search="BeRT") == found(search=late.id[2:9]) == [late.id]


def test_what_keeps_a_request_open_is_said_for_each_state(site):
    request = ask(site)
    assert what_keeps_open(site, request) == "It waits for the next erasure job of the fleet."
    give_to_job(site, request)
    assert what_keeps_open(site, site.ledger.get(request.id)) == "The job erase-1 works on it."
    for state in (RequestState.EVALUATING, RequestState.RELEASED):
        site.ledger.move(request.id, state, "as a job does", job="erase-1", epoch=1)
    assert f"dlfd-fleet site purge {site.folder}" in what_keeps_open(site, site.ledger.get(request.id))
    for state in (RequestState.PURGING, RequestState.ROLLING_OUT):
        site.ledger.move(request.id, state, "purged", job="erase-1", epoch=1)
    assert "Devices may still hold an older model" in what_keeps_open(site, site.ledger.get(request.id))
    site.ledger.move(request.id, RequestState.COMPLETE, "no devices")
    assert what_keeps_open(site, site.ledger.get(request.id)) == ""


def test_a_site_that_joined_in_decides_nothing_and_takes_a_lawful_extension_over(tmp_path):
    with Site(make_clinic(tmp_path / "b", secret=bytes(range(32)))) as site:
        name = site.fleet_pseudonym("anna", "erase-1")
        deadline = datetime(2026, 12, 18, 23, 59, tzinfo=UTC)
        (request,) = join_requests(site, "erase-1", {name: deadline})
        for decide in (
            lambda: refuse(site, request.id, Ground.ARCHIVING, reason="x"),
            lambda: extend(site, request.id, months=1, reason="x", noticed=TODAY),
        ):
            with pytest.raises(LedgerError, match=r"was made at another site; it is (refused|extended) there"):
                decide()
        for later in (timedelta(days=-3), timedelta(days=200)):
            extend_joined(site, "erase-1", {name: deadline + later})
            assert site.ledger.get(request.id).due == date(2026, 12, 18)
        extend_joined(site, "erase-1", {name: deadline + timedelta(days=60)})
        assert site.ledger.get(request.id).due == date(2027, 2, 16)
        assert site.ledger.history(request.id)[-1].reason == "extended at another site"
        site.ledger.verify()
