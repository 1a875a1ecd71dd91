"""Rings: who may take a release, in what order, and what stops it."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlfd_fleet.delivery import rollout
from dlfd_fleet.delivery.rollout import Health
from dlfd_fleet.device.contract import DeviceReport, Rollout
from dlfd_fleet.exceptions import DeliveryError
from dlfd_fleet.settings import DeliverySettings

SHARES = (0.1, 0.5, 1.0)
DEVICES = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(400)]


def admitted(state: Rollout) -> set[str]:
    return {device for device in DEVICES if state.admits(device, state.sequence, under_floor=False, has_it=False)}


def test_a_release_goes_to_canaries_then_to_growing_shares_then_to_everybody():
    state = rollout.planned(7)
    assert admitted(state) == set()
    state = rollout.started(state, DEVICES[:2], SHARES)
    assert admitted(state) == set(DEVICES[:2])
    before = admitted(state)
    for share in SHARES:
        state = rollout.widened(state, SHARES)
        assert state.share == share
        now = admitted(state)
        assert before <= now
        assert abs(len(now) / len(DEVICES) - share) < 0.1
        before = now
    assert before == set(DEVICES)
    assert rollout.completed(state).state == "complete"


def test_without_canaries_it_begins_with_the_first_share():
    assert rollout.started(rollout.planned(1), (), SHARES).share == 0.1


def test_a_pause_lets_nobody_in_and_nobody_out():
    state = rollout.widened(rollout.started(rollout.planned(1), DEVICES[:1], SHARES), SHARES)
    has_it = admitted(state)
    state = rollout.paused(state)
    assert admitted(state) == set()
    assert all(state.admits(device, 1, under_floor=False, has_it=True) for device in has_it)
    assert admitted(rollout.resumed(state)) == has_it


def test_an_abort_takes_it_back_and_is_final():
    state = rollout.aborted(rollout.started(rollout.planned(2), DEVICES[:1], SHARES))
    assert not state.admits(DEVICES[0], 2, under_floor=False, has_it=True)
    assert state.admits(DEVICES[0], 1, under_floor=False, has_it=False)
    for rule in (rollout.resumed, rollout.paused, rollout.aborted, rollout.completed):
        with pytest.raises(DeliveryError, match="is aborted"):
            rule(state)


@pytest.mark.parametrize("device", DEVICES[:5])
def test_an_erasure_does_not_wait_for_a_ring(device):
    for state in (rollout.planned(3), rollout.aborted(rollout.started(rollout.planned(3), (), SHARES))):
        assert state.admits(device, 3, under_floor=True, has_it=False)


@pytest.mark.parametrize(
    ("state", "rule", "said"),
    [
        (rollout.planned(1), lambda state: rollout.widened(state, SHARES), "cannot be widened"),
        (rollout.planned(1), rollout.resumed, "has not begun"),
        (rollout.planned(1), rollout.completed, "cannot be completed"),
        (rollout.for_everybody(1), lambda state: rollout.started(state, (), SHARES), "is complete"),
        (rollout.started(rollout.planned(1), (), SHARES), rollout.completed, "Only 10% of the devices"),
        (rollout.started(rollout.planned(1), (), (1.0,)), lambda state: rollout.widened(state, SHARES), "complete the"),
        (rollout.started(rollout.planned(1), (), SHARES), lambda s: rollout.started(s, (), SHARES), "begun already"),
        (rollout.paused(rollout.started(rollout.planned(1), (), SHARES)), rollout.paused, "is paused"),
    ],
)
def test_a_step_out_of_order_is_refused(state, rule, said):
    with pytest.raises(DeliveryError, match=said):
        rule(state)


def test_two_rollouts_draw_different_devices():
    draws = [admitted(rollout.started(rollout.planned(1), (), SHARES)) for _ in range(3)]
    assert len({frozenset(draw) for draw in draws}) == 3


def report(device: str, *, sequence: int, healthy: bool) -> DeviceReport:
    return DeviceReport(
        device=device,
        time=datetime.now(UTC),
        nonce="0" * 32,
        sequence=sequence,
        version="v",
        epoch=1,
        floor=1,
        healthy=healthy,
        installed=(),
        purged=(),
        attacks=(),
        lease_until=None,
    )


def test_health_counts_who_runs_it_and_who_failed_on_the_way():
    state = rollout.started(rollout.planned(5), DEVICES[:4], SHARES)
    reports = [
        report(DEVICES[0], sequence=5, healthy=True),
        report(DEVICES[1], sequence=5, healthy=False),
        report(DEVICES[2], sequence=4, healthy=False),  # its self-test failed, and it went back
        report(DEVICES[3], sequence=4, healthy=True),  # has not come to it yet
        report(DEVICES[9], sequence=4, healthy=False),  # not let in: something else ails it
    ]
    assert rollout.health(state, reports) == Health(tried=3, failed=2)


@given(tried=st.integers(0, 50), failed=st.integers(0, 50), share=st.floats(0, 1), least=st.integers(1, 20))
def test_a_rollout_aborts_exactly_above_the_share_once_enough_have_tried(tried, failed, share, least):
    failed = min(failed, tried)
    settings = DeliverySettings(failed_share=share, least_reports=least)
    why = Health(tried, failed).why_abort(settings)
    assert (why is not None) == (tried >= least and failed > share * tried)
    assert why is None or f"{failed} of {tried} devices" in why
