"""What a device may run and what it takes next: every rule, in memory."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlfd_fleet.device.contract import Release, Rollout, SelfTest
from dlfd_fleet.device.lease import NEVER, is_to_be_renewed, lease_in_force, offered_lease
from dlfd_fleet.device.rules import NOTHING_NEW, check_may_run, choose, delay, slots_after, slots_at_floor
from dlfd_fleet.device.state import DeviceState, Slot
from dlfd_fleet.exceptions import UpdateRefusedError

DEVICE = "d" * 64


def release(epoch: int, sequence: int, form: str = "fp32") -> Release:
    return Release(
        version=str(sequence),
        format=form,
        epoch=epoch,
        minimum_epoch=0,
        sequence=sequence,
        self_test=SelfTest(target="t", tolerance=0.1),
    )


def offers(*releases: Release) -> list[tuple[str, Release]]:
    return [(f"models/{one.epoch}-{one.sequence}/{one.format}.onnx", one) for one in releases]


def chosen(listed, rollout=None, *, floor=0, current=None, formats=("fp32",), refused=()):
    found = choose(listed, rollout, device=DEVICE, formats=formats, floor=floor, current=current, refused=refused)
    return found and (found[1].sequence, found[1].format)


def slot(epoch: int, sequence: int) -> Slot:
    one = release(epoch, sequence)
    return Slot(target=offers(one)[0][0], sha256=f"{sequence:064x}", release=one)


rollouts = st.none() | st.builds(
    Rollout,
    name=st.text(max_size=3),
    sequence=st.integers(0, 6),
    share=st.floats(0, 1),
    canaries=st.sampled_from([(), (DEVICE,)]),
    state=st.sampled_from(["running", "paused", "aborted", "complete"]),
)
releases = st.builds(release, st.integers(0, 5), st.integers(0, 6), st.sampled_from(["fp32", "int8"]))


@given(
    listed=st.lists(releases, max_size=6),
    rollout=rollouts,
    floor=st.integers(0, 5),
    current=st.none() | releases,
    formats=st.sampled_from([("fp32",), ("int8", "fp32")]),
)
def test_whatever_is_offered_nothing_under_the_floor_is_ever_chosen(listed, rollout, floor, current, formats):
    found = choose(offers(*listed), rollout, device=DEVICE, formats=formats, floor=floor, current=current)
    if found:
        assert found[1].epoch >= floor
        assert found[1].format in formats
        assert current is None or found[1] != current


@given(listed=st.lists(releases, min_size=1, max_size=6), rollout=rollouts, floor=st.integers(0, 5))
def test_device_whose_model_is_forbidden_always_gets_one_that_is_not(listed, rollout, floor):
    found = choose(
        offers(*listed), rollout, device=DEVICE, formats=("int8", "fp32"), floor=floor, current=release(0, 0)
    )
    if floor > 0:
        assert bool(found) == any(one.epoch >= floor for one in listed)


@given(listed=st.lists(releases, max_size=6), rollout=rollouts, current=releases)
def test_older_release_is_taken_only_in_place_of_one_whose_rollout_was_aborted(listed, rollout, current):
    found = choose(offers(*listed), rollout, device=DEVICE, formats=("fp32",), floor=0, current=current)
    if found and (found[1].epoch, found[1].sequence) < (current.epoch, current.sequence):
        assert rollout.state == "aborted"
        assert current.sequence >= rollout.sequence > found[1].sequence


@given(listed=st.lists(releases, max_size=6), rollout=rollouts, floor=st.integers(0, 5), current=st.none() | releases)
def test_choice_is_settled_once_it_is_installed(listed, rollout, floor, current):
    found = choose(offers(*listed), rollout, device=DEVICE, formats=("fp32",), floor=floor, current=current)
    if found:
        assert choose(offers(*listed), rollout, device=DEVICE, formats=("fp32",), floor=floor, current=found[1]) is None


@pytest.mark.parametrize(
    ("rollout", "current", "expected"),
    [
        (None, None, (2, "fp32")),
        (None, release(1, 2), None),
        (Rollout(name="a", sequence=2, share=0.0, state="running"), release(1, 1), None),
        (Rollout(name="a", sequence=2, share=0.0, state="running"), None, (1, "fp32")),
        (Rollout(name="a", sequence=2, share=1.0, state="running"), release(1, 1), (2, "fp32")),
        (Rollout(name="a", sequence=2, share=1.0, state="paused"), release(1, 1), None),
        (Rollout(name="a", sequence=2, share=1.0, state="paused"), release(1, 2), None),
        (Rollout(name="a", sequence=2, share=1.0, state="aborted"), release(1, 2), (1, "fp32")),
        (Rollout(name="a", sequence=2, share=0.0, state="complete"), release(1, 1), (2, "fp32")),
        (NOTHING_NEW, release(1, 1), None),
    ],
)
def test_rollout_decides_who_takes_the_newest_release(rollout, current, expected):
    assert chosen(offers(release(1, 1), release(1, 2)), rollout, floor=1, current=current) == expected


def test_erasure_waits_for_no_ring_but_prefers_what_is_open_to_all():
    canary = Rollout(name="a", sequence=3, share=0.0, state="running")
    assert chosen(offers(release(2, 2), release(2, 3)), canary, floor=2, current=release(1, 1)) == (2, "fp32")
    assert chosen(offers(release(2, 3)), canary, floor=2, current=release(1, 1)) == (3, "fp32")
    assert chosen(offers(release(2, 3)), NOTHING_NEW, floor=2, current=release(1, 1)) == (3, "fp32")


def test_preferred_format_is_chosen_and_changed_to():
    listed = offers(release(1, 1), release(1, 1, "int8"), release(1, 1, "ort"))
    assert chosen(listed, formats=("int8", "fp32")) == (1, "int8")
    assert chosen(listed, formats=("int8", "fp32"), current=release(1, 1)) == (1, "int8")
    assert chosen(listed, formats=("fp32", "int8"), current=release(1, 1)) is None
    assert chosen(listed, formats=("fp16",)) is None


def test_release_that_was_tried_in_vain_is_passed_over():
    listed = offers(release(1, 1), release(1, 2))
    assert chosen(listed, refused={listed[1][0]}) == (1, "fp32")


@pytest.mark.parametrize(
    ("signed", "in_file", "floor", "words"),
    [(2, 1, 0, "old model bytes"), (1, 2, 0, "old model bytes"), (1, 1, 2, "under this device's floor 2")],
)
def test_model_that_the_floor_forbids_is_refused_by_either_epoch(signed, in_file, floor, words):
    with pytest.raises(UpdateRefusedError, match=words):
        check_may_run(release(signed, 1), in_file, floor)
    check_may_run(release(2, 1), 2, 2)


@given(epochs=st.lists(st.integers(0, 4), min_size=2, max_size=2), floor=st.integers(0, 4), new=st.integers(0, 4))
def test_at_most_one_older_model_stays_and_none_under_the_floor(epochs, floor, new):
    before = DeviceState(current=slot(epochs[0], 1), previous=slot(epochs[1], 2))
    after = slots_after(before, slot(new, 3), floor)
    assert after.current == slot(new, 3)
    assert after.previous is None or after.previous.release.epoch >= floor
    if epochs[0] >= floor:
        assert after.previous == before.current
    assert all(kept.release.epoch >= floor for kept in slots_at_floor(before, floor).slots)


DAY = timedelta(days=1)
HEARD = datetime(2026, 1, 1, tzinfo=UTC)


def test_lease_begins_when_the_coordinator_was_heard():
    assert offered_lease(HEARD, 7) == HEARD + 7 * DAY
    assert offered_lease(HEARD, None) is None
    assert offered_lease(None, 7) == NEVER


times = st.none() | st.datetimes(timezones=st.just(UTC))


@given(offered=times, acknowledged=times)
def test_lease_never_lasts_longer_than_the_coordinator_knows(offered, acknowledged):
    found = lease_in_force(offered, acknowledged)
    assert found in (offered, acknowledged)
    assert acknowledged is None or found <= acknowledged
    assert offered is None or found <= offered


@pytest.mark.parametrize(
    ("offered", "acknowledged", "expected"),
    [
        (None, None, False),
        (HEARD + 7 * DAY, None, True),
        (None, HEARD + 7 * DAY, True),
        (HEARD + 7 * DAY, HEARD + 7 * DAY, False),
        (HEARD + 7 * DAY, HEARD + 6 * DAY, False),
        (HEARD + 7 * DAY, HEARD + 3 * DAY, True),
        (HEARD + 7 * DAY, HEARD - DAY, True),
    ],
)
def test_lease_is_reported_when_it_begins_or_ends_or_half_of_it_has_passed(offered, acknowledged, expected):
    assert is_to_be_renewed(offered, acknowledged, HEARD) == expected


@given(failures=st.integers(0, 1000), seed=st.integers(0, 100))
def test_polls_are_spread_and_farther_apart_after_failures(failures, seed):
    found = delay(600.0, failures, random.Random(seed))
    longest = 600.0 * min(2.0**failures, 16.0)
    assert 0.8 * longest <= found <= 1.2 * longest
