"""Whatever is done to a device's clock: its time does not go back, and its lease is not lengthened."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlfd_fleet.device import clock as module
from dlfd_fleet.device.answering import NoAnswerError, check_lease
from dlfd_fleet.device.clock import Clock
from dlfd_fleet.device.lease import offered_lease

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
WEEK = timedelta(days=7)


class Machine:
    """A wall clock that anybody sets, and a monotonic one that counts from the last start."""

    def __init__(self, patched: pytest.MonkeyPatch) -> None:
        self.wall, self.monotonic = NOW, 0.0
        machine = self

        class Wall(datetime):
            @classmethod
            def now(cls, tz=None):
                return machine.wall

        patched.setattr(module, "datetime", Wall)
        patched.setattr(module.time, "monotonic", lambda: self.monotonic)

    def run(self, seconds: float) -> None:
        self.monotonic += seconds
        self.set(self.wall + timedelta(seconds=seconds) if self.wall < datetime(9990, 1, 1, tzinfo=UTC) else self.wall)

    def set(self, wall: datetime) -> None:
        self.wall = wall


steps = st.lists(
    st.one_of(
        st.tuples(st.just("run"), st.integers(0, 3 * 86_400)),
        st.tuples(
            st.just("set"),
            st.one_of(
                st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC)),
                st.sampled_from([NOW, NOW - timedelta(days=1), datetime(2038, 1, 19, 3, 14, 8, tzinfo=UTC)]),
            ),
        ),
        st.tuples(st.just("restart"), st.just(0)),
    ),
    max_size=12,
)


@given(steps=steps)
@settings(max_examples=60, deadline=None)
def test_no_jump_of_the_clock_lengthens_a_lease(steps):
    with pytest.MonkeyPatch.context() as patched, tempfile.TemporaryDirectory() as folder:
        machine = Machine(patched)
        clock = Clock(Path(folder) / "clock")
        until = offered_lease(clock.now(), WEEK.days)
        ran, last = timedelta(0), clock.now()
        for step, value in steps:
            if step == "run":
                machine.run(value)
                ran += timedelta(seconds=value)
            elif step == "set":
                machine.set(value)
            else:
                clock.keep()
                machine.monotonic = 0.0
                clock = Clock(Path(folder) / "clock")
            now = clock.now()
            assert now >= last - timedelta(minutes=1)  # what is not news enough is not kept on disk
            last = max(now, last)
            if ran > WEEK + timedelta(minutes=len(steps)):
                with pytest.raises(NoAnswerError):
                    check_lease(until, now)


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff", b"nonsense", b"9" * 5000, b"0001-01-01T00:00:00+14:00", b"9999-12-31T23:59:59-14:00", b"2026-13-01"],
    ids=range(7),
)
def test_a_damaged_clock_file_is_no_time(tmp_path, content):
    file = tmp_path / "clock"
    file.write_bytes(content)
    now = Clock(file).now()
    assert now - datetime.now(UTC) < timedelta(seconds=1)


def test_a_clock_at_the_end_of_time_has_room_for_a_lease(tmp_path, monkeypatch):
    machine = Machine(monkeypatch)
    machine.set(datetime.max.replace(tzinfo=UTC))
    clock = Clock(tmp_path / "clock")
    machine.monotonic += 10**9
    assert offered_lease(clock.now(), 36_500) > clock.now()
    clock.keep()
    machine.set(NOW)
    assert Clock(tmp_path / "clock").now() > NOW
    clock.trust()
    assert Clock(tmp_path / "clock").now() == NOW
