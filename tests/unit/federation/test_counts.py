"""No site counts by more images than the others and its own past make plausible."""

from __future__ import annotations

import numpy as np
import pytest

from dlfd_fleet.audit import SampleScores
from dlfd_fleet.federation.counts import Claim, claims_of, contradiction
from dlfd_fleet.federation.fleet import Fleet
from dlfd_fleet.federation.messages import PendingQuery, PendingReply
from dlfd_fleet.federation.requests import ask_pending, class_weights
from tests.unit.federation.test_fleet import ScriptedGrid

pytestmark = pytest.mark.usefixtures("flower_run")


def reply(number, *images, forget=0):
    return PendingReply(
        site=f"{number:08x}",
        requests=("r1",) if forget else (),
        forget_images=forget,
        class_images=images,
        classes=("a", "b"),
        image_size=32,
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


def test_made_up_counts_do_not_void_the_limit_of_forget_shares():
    honest = [reply(number, 10, 10) for number in (1, 2)]
    liar = reply(3, 2_000_000_000, 2, forget=15)
    fleet = Fleet(
        ScriptedGrid({number: each.to_records() for number, each in enumerate([*honest, liar])}),
        timeout=1.0,
        largest_weight_ratio=10.0,
    )
    assert list(ask_pending(fleet, PendingQuery(job="job-1", take=True), 0.15)) == [0, 1]
    assert fleet.absent == {f"site-{3:08x}": "asks to forget 20% of the fleet's images, above 15%"}


def test_what_a_site_says_must_be_as_many_images_as_it_answers_for():
    def answered(retain, forget):
        role = np.array([0] * retain + [1] * forget, np.uint8)
        zeros = np.zeros(len(role), np.int64)
        return SampleScores(role, zeros, zeros, zeros, np.zeros(len(role)))

    assert contradiction(Claim(2_000_000_000, 0, 12), answered(12, 0)) == (
        "says that it trains on 2000000000 images, and answers for 12 of them"
    )
    assert contradiction(Claim(12, 0, 12), answered(12_000, 0)) is not None
    assert contradiction(Claim(100, 1000, 100), answered(100, 3)) == (
        "says that it forgets 1000 images, and answers for 3 of them"
    )
    # People ask and withdraw while a job runs.
    assert contradiction(Claim(100, 5, 100), answered(90, 5)) is None
    assert contradiction(Claim(12, 0, 12), answered(0, 0)) is None
