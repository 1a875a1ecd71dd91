"""Rings: who may take a release, in what order, and what stops it."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlfd_fleet.delivery import rollout
from dlfd_fleet.delivery.devices import Alarm, Device
from dlfd_fleet.delivery.rollout import Health
from dlfd_fleet.device.contract import DeviceReport, Rollout
from dlfd_fleet.exceptions import DeliveryError
from dlfd_fleet.settings import DeliverySettings

NOW, DAY = datetime(2026, 11, 24, 12, tzinfo=UTC), timedelta(days=1)
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


def device(device_id: str, *, sequence: int = 4, healthy: bool = True, failed=(), **fields) -> Device:
    report = DeviceReport(
        device=device_id,
        time=NOW,
        nonce="0" * 32,
        follows=(),
        failed=failed,
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
    values = {"name": "camera", "canary": False, "enrolled_at": NOW - 9 * DAY, "retired": None, "received_at": NOW}
    return Device(id=device_id, report=report, **(values | fields))


def test_health_counts_who_runs_it_and_who_failed_on_the_way():
    state = rollout.started(rollout.planned(5), DEVICES[:5], SHARES)
    devices = [
        device(DEVICES[0], sequence=5),
        device(DEVICES[1], sequence=5, healthy=False),
        device(DEVICES[2], healthy=False, failed=(5,)),  # its self-test failed, and it went back
        device(DEVICES[3]),  # has not come to it yet
        device(DEVICES[4], healthy=False),  # has not come to it either: something else ails it
    ]
    for step in (state, rollout.paused(state)):
        assert rollout.health(step, devices, NOW - DAY, NOW) == Health(ring=5, tried=3, failed=2)
    assert rollout.health(state, devices, NOW + DAY, NOW) == Health(ring=5, tried=0, failed=0)


@pytest.mark.parametrize(
    "witness",
    [
        {"sequence": 5},
        {"failed": (5,)},
        {"sequence": 0},
        {"sequence": 5, "retired": "sold"},
        {"sequence": 5, "alarms": (Alarm(NOW, "two machines"),)},
    ],
)
def test_one_device_that_the_rollout_has_not_come_to_stops_nothing(witness):
    inside = DEVICES[0] if {"retired", "alarms"} & set(witness) else DEVICES[9]
    state = rollout.started(rollout.planned(5), DEVICES[:1], SHARES)
    found = rollout.health(state, [device(inside, healthy=False, **witness)], NOW - DAY, NOW)
    assert (found.tried, found.failed) == (0, 0)
    assert found.why_abort(DeliverySettings()) is None


def test_one_report_stops_no_rollout_that_has_come_to_many_and_one_canary_is_heard():
    failed = device(DEVICES[0], healthy=False, failed=(5,))
    others = [device(each) for each in DEVICES[1:30]]
    many = rollout.started(rollout.planned(5), DEVICES[:30], SHARES)
    found = rollout.health(many, [failed, *others], NOW - DAY, NOW)
    assert (found, found.why_abort(DeliverySettings())) == (Health(ring=30, tried=1, failed=1), None)
    one = rollout.started(rollout.planned(5), DEVICES[:1], SHARES)
    assert "1 of 1 devices" in rollout.health(one, [failed, *others], NOW - DAY, NOW).why_abort(DeliverySettings())


def test_a_small_ring_does_not_wait_for_devices_that_are_away():
    state = rollout.started(rollout.planned(5), DEVICES[:5], SHARES)
    away = [device(each, received_at=NOW - 3 * DAY) for each in DEVICES[3:5]]
    never = device(DEVICES[2], received_at=None)
    failed = [device(each, healthy=False, failed=(5,)) for each in DEVICES[:2]]
    found = rollout.health(state, [*failed, never, *away], NOW - DAY, NOW)
    assert found == Health(ring=2, tried=2, failed=2)
    assert "2 of 2 devices" in found.why_abort(DeliverySettings())


@given(
    tried=st.integers(0, 50),
    failed=st.integers(0, 50),
    share=st.floats(0, 1),
    least=st.integers(1, 20),
    ring=st.integers(0, 50),
)
def test_a_rollout_aborts_exactly_above_the_share_once_enough_have_tried(tried, failed, share, least, ring):
    failed = min(failed, tried)
    settings = DeliverySettings(failed_share=share, least_reports=least)
    why = Health(ring, tried, failed).why_abort(settings)
    assert (why is not None) == (tried >= max(1, min(least, ring)) and failed > share * tried)
    assert why is None or f"{failed} of {tried} devices" in why
