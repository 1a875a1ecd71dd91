"""No site counts by more images than the others and its own past make plausible."""

from __future__ import annotations

from datetime import date

import numpy as np
import pytest
from pydantic import ValidationError

from dlfd_fleet.audit import MemberSums, ReferenceSums, Role, SampleScores, UnseenSums
from dlfd_fleet.audit.samples import ROLES
from dlfd_fleet.exceptions import MessageError
from dlfd_fleet.federation.protocol.messages import (
    AuditResult,
    PendingQuery,
    PendingReply,
    RequestDates,
    SettleResult,
)
from dlfd_fleet.federation.rounds.audits import check_counts
from dlfd_fleet.federation.rounds.counts import (
    Claim,
    PlausibleCounts,
    claims_of,
    contradiction,
    counted_rows,
    plausible_images,
)
from dlfd_fleet.federation.rounds.fleet import Fleet
from dlfd_fleet.federation.rounds.requests import ask_pending, class_weights, settle
from dlfd_fleet.ledger.site import MOST_MARKS
from dlfd_fleet.model_input import image_input
from tests.unit.federation.test_fleet import ScriptedGrid

pytestmark = pytest.mark.usefixtures("flower_run")


DATES = RequestDates(asked_at=date(2026, 1, 2), deadline=date(2026, 2, 2))


def reply(number, *images, forget=0):
    requests = (f"r{number}",) if forget else ()
    return PendingReply(
        site=f"{number:08x}",
        requests=requests,
        dates=dict.fromkeys(requests, DATES),
        forget_images=forget,
        class_images=images,
        classes=("a", "b"),
        input=image_input(32),
    )


def weights(*counts, before=None, ratio=10.0, growth=3.0):
    replies = {number: reply(number, count, 0) for number, count in enumerate(counts)}
    claims = claims_of(replies, ratio, growth, before or {})
    return [claim.weight for claim in claims.values()], [bool(claim.doubt) for claim in claims.values()]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((12, 12, 2_000_000_000), [12, 12, 12]),
        ((10, 20, 40, 399), [10, 20, 40, 20]),
        ((10, 20, 40, 200), [10, 20, 40, 200]),
        ((12, 2_000_000_000), [12, 12]),
        ((100, 100, 0), [100, 100, 0]),
        ((100, 100, 1), [100, 100, 1]),
        ((50,), [50]),
        ((0, 0, 50), [0, 0, 50]),
    ],
)
def test_a_count_far_above_the_others_gives_no_more_than_theirs(counts, expected):
    found, doubted = weights(*counts)
    assert found == expected
    assert doubted == [one != other for one, other in zip(counts, expected, strict=True)]


def test_a_site_counts_by_no_more_than_its_last_job_makes_plausible():
    assert weights(100, 100, 900, before={f"{2:08x}": 100}) == ([100, 100, 300], [False, False, True])
    assert weights(100, 100, 250, before={f"{2:08x}": 100}) == ([100, 100, 250], [False, False, False])
    assert weights(100, 100, 2_000_000_000, before={f"{2:08x}": 10}) == ([100, 100, 30], [False, False, True])


def test_the_notice_names_the_counts_and_the_setting():
    claims = claims_of({1: reply(1, 12, 0), 2: reply(2, 10, 2), 3: reply(3, 10**9, 0)}, 10.0, 3.0, {})
    assert claims[3].doubt == (
        "says that it trains on 1000000000 images, more than 10 times the median of the others', 12 "
        "(fleet.largest_weight_ratio); it counts by 12"
    )


def test_made_up_counts_do_not_move_the_weights_of_classes():
    pending = {1: reply(1, 10, 10), 2: reply(2, 12, 8), 3: reply(3, 2_000_000_000, 1)}
    claims = claims_of(pending, 10.0, 3.0, {})
    assert class_weights(pending, claims) == pytest.approx((60 / 84, 60 / 36), rel=1e-6)


def test_a_class_that_only_made_up_counts_have_weighs_no_more_than_one_image_of_it():
    pending = {number: reply(number, 10, 0) for number in range(300)} | {300: reply(300, 2_000_000_000, 1)}
    weights_of_classes = class_weights(pending, claims_of(pending, 10.0, 3.0, {}))
    assert weights_of_classes == pytest.approx((3011 / 6020, 3011 / 2), rel=1e-6)


def test_made_up_counts_do_not_void_the_limit_of_forget_shares():
    honest = [reply(number, 10, 10) for number in (1, 2)]
    liar = reply(3, 2_000_000_000, 2, forget=15)
    answers = {number: each.to_records() for number, each in enumerate([*honest, liar])}
    fleet, query = Fleet(ScriptedGrid(answers), timeout=1.0), PendingQuery(job="job-1", take=True)
    assert list(ask_pending(fleet, query, 0.15, plausible=PlausibleCounts(ratio=10.0))) == [0, 1]
    assert fleet.absent == {
        f"site-{3:08x}": "asks to forget 20% of the fleet's images, above 15% (erasure.largest_forget_share)"
    }


def test_what_an_excluded_site_asks_for_makes_no_other_share_smaller():
    replies = [reply(1, 10, 10), reply(2, 2, 2, forget=16), reply(3, 10, 10, forget=1_000_000)]
    fleet = Fleet(ScriptedGrid({number: each.to_records() for number, each in enumerate(replies)}), timeout=1.0)
    assert list(ask_pending(fleet, PendingQuery(job="job-1", take=True), 0.25)) == [0]
    assert (
        fleet.absent[f"site-{2:08x}"]
        == "asks to forget 27% of the fleet's images, above 25% (erasure.largest_forget_share)"
    )


def answered(**images):
    """Rows of so many images a role, each of another person."""
    role = np.repeat(np.arange(4, dtype=np.uint8), [images.get(each.value, 0) for each in ROLES])
    zeros = np.zeros(len(role), np.int64)
    return SampleScores(role, np.arange(len(role)), zeros, zeros, np.zeros(len(role)))


def said(claim, most_retain=None, roles=ROLES, **images):
    return contradiction(claim, answered(**images), roles, most_retain, plausible_images({1: claim}))


def test_what_a_site_says_must_be_as_many_images_as_it_answers_for():
    assert said(Claim(2_000_000_000, 0, 12), retain=12) == (
        "says that it trains on 2000000000 images, and answers for 12 of them"
    )
    assert said(Claim(12, 0, 12), retain=12_000) is not None
    assert said(Claim(100, 1000, 100), retain=100, forget=3) == (
        "says that it forgets 1000 images, and answers for 3 of them"
    )
    # People ask and withdraw while a job runs.
    assert said(Claim(100, 5, 100), retain=90, forget=5) is None
    assert said(Claim(12, 0, 12)) is None


def test_a_look_of_a_gate_takes_no_more_rows_than_were_asked_for():
    looks = (Role.RETAIN, Role.FORGET, Role.VALIDATION)
    assert said(Claim(5_000, 4, 5_000), 64, looks, retain=64, forget=4, validation=20) is None
    assert said(Claim(30, 4, 30), 64, looks, retain=30, forget=4) is None
    assert said(Claim(5_000, 4, 5_000), 64, looks, retain=5_000, forget=4) is not None
    assert said(Claim(5_000, 4, 5_000), 64, looks, retain=64, forget=4_000) is not None
    assert said(Claim(30, 4, 30), 64, looks, retain=30, forget=4, test=1) == (
        "answers for test images, which it was not asked for"
    )


def test_people_never_trained_on_are_not_made_up_without_end():
    claim = Claim(100, 0, 100)
    assert said(claim, retain=100, validation=4_000, test=6_000) is None
    assert said(Claim(50_000, 0, 50_000), retain=50_000, test=50_000) is None
    assert said(claim, retain=100, validation=4_000, test=6_001) == (
        "answers for 10001 images of people never trained on, above the 10000 that are plausible"
    )


def test_of_a_site_that_counts_by_fewer_images_than_it_says_no_more_are_measured():
    samples = answered(retain=5_000, forget=3, test=7)
    counted = counted_rows(Claim(5_000, 3, 40), samples)
    assert [int(counted.of_role(role).sum()) for role in ROLES] == [40, 3, 0, 7]
    assert counted_rows(Claim(4_990, 3, 4_990), samples) is samples


def test_people_whom_every_site_holds_are_nobodys_to_train_on():
    samples = answered(retain=3, test=2)
    check_counts(AuditResult(shared=2, seconds=0.0), samples, "site-1")
    with pytest.raises(MessageError, match="site-1 says that every site holds people whom it trains on"):
        check_counts(AuditResult(shared=5, seconds=0.0), samples, "site-1")


MANY = MemberSums(people=9, images=99, weight=99.0, gap=99.0)
LINE = {"line": (99.0, 0.0, 0.0, 0.0, 0.0), "half_line": (99.0, 0.0, 0.0, 0.0, 0.0)}


@pytest.mark.parametrize(
    ("sums", "words"),
    [
        ({"forget": MANY}, "of the role 'forget'"),
        ({"retain": MANY}, "of the role 'retain'"),
        ({"noise": 1.0, "noise_people": 9}, "noise of more people"),
        ({"unseen": UnseenSums(people=9, **LINE)}, "never trained on"),
        ({"unseen": UnseenSums(people=1, **LINE)}, "never trained on"),
        ({"shared": UnseenSums(people=9, **LINE)}, "never trained on"),
    ],
)
def test_sums_over_more_people_or_images_than_a_site_has_samples_of_are_refused(sums, words):
    samples = answered(retain=3, forget=2, test=4)
    with pytest.raises(MessageError, match=f"^site-1 sent .*{words}"):
        check_counts(AuditResult(shared=2, references=ReferenceSums(**sums), seconds=0.0), samples, "site-1")


def test_what_one_site_says_of_withdrawals_makes_no_query_that_the_others_cannot_read():
    """It has joined in, it says, and withdrawn, in jobs that nobody knows, so all of them are told."""
    person, marks = "a" * 64, [f"{number:064x}" for number in range(2 * MOST_MARKS)]
    with pytest.raises(ValidationError, match="at most"):
        PendingReply.model_validate(reply(1, 9, 9).model_dump() | {"withdrawn": {person: marks}})
    lies = {
        "people": {person: date(2027, 1, 1)},
        "joined": {person: marks[:MOST_MARKS]},
        "withdrawn": {person: marks[MOST_MARKS - 1 : -1]},
    }
    liars = [PendingReply.model_validate(reply(number, 9, 9).model_dump() | lies) for number in range(3)]
    grid = ScriptedGrid({number: each.to_records() for number, each in enumerate(liars)})
    ask_pending(Fleet(grid, timeout=1.0), PendingQuery(job="job-1", take=True))
    query = PendingQuery.from_records(grid.sent["0"].content, "test")
    assert len(query.withdrawn[person]) == 2 * MOST_MARKS - 1


@pytest.mark.parametrize(("requests", "purged", "refused"), [(0, 1, True), (1, 400, False), (1, 2**31 - 1, True)])
def test_made_up_numbers_of_purged_images_are_in_no_record(requests, purged, refused, silent):
    claimed = reply(1, 9, 9, forget=requests)
    grid = ScriptedGrid({1: claimed.to_records()})
    fleet = Fleet(grid, timeout=1.0)
    ask_pending(fleet, PendingQuery(job="job-1", take=True))
    grid.answers = {1: SettleResult(requests=requests, purged_images=purged, epoch=1).to_records()}
    settled = settle(fleet, "job-1", silent, "released", "PASS", 1, claimed.requests)
    assert settled.purged_images == (0 if refused else purged)
    assert (f"says it purged {purged} images" in fleet.why_absent()) == refused
