"""Leases, and clocks that jump: a lease is not lengthened, and a clock that was wrong once does no lasting harm."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from dlfd_fleet.device import clock as device_clock
from dlfd_fleet.device.answering import NoAnswerError
from dlfd_fleet.exceptions import DeviceError, UpdateUnreachableError
from tests.device_site import Site, refused, running_site, runs, set_clock
from tests.tuf_repository import reference_answers, tiny_model

YEAR_9999 = datetime(9999, 12, 31, 23, 59, tzinfo=UTC)


@pytest.fixture
def site(tmp_path) -> Iterator[Site]:
    with running_site(tmp_path) as made:
        yield made


@pytest.fixture
def leased(site):
    site.change_settings(lease_days=7.0)
    site.publish(1, 1)
    site.started().poll()
    return site


def test_lease_that_ran_out_stops_the_answers_until_the_coordinator_is_heard_again(leased, monkeypatch):
    agent = leased.started()
    assert runs(agent, "1", 1)
    until = leased.reports()[-1].lease_until
    assert abs(until - datetime.now(UTC) - timedelta(days=7)) < timedelta(minutes=5)
    set_clock(monkeypatch, until + timedelta(seconds=1))
    for asked in (agent, leased.started()):
        with pytest.raises(NoAnswerError, match="lease ran out"):
            asked.answering.loaded()
    monkeypatch.undo()
    shutil.rmtree(leased.path / "clock", ignore_errors=True)
    agent = leased.started()
    agent.poll()
    assert runs(agent, "1", 1)


def test_lease_lasts_no_longer_than_the_coordinator_has_been_told(leased, monkeypatch):
    """It counts an erasure as over on this device when the lease that it knows of has run out."""
    told = leased.reports()[-1].lease_until
    leased.coordinator.report_status = 503
    agent = leased.started()
    set_clock(monkeypatch, told - timedelta(days=1))
    agent.poll()
    assert runs(agent, "1", 1)
    set_clock(monkeypatch, told + timedelta(seconds=1))
    agent.poll()
    for asked in (agent, leased.started()):
        with pytest.raises(NoAnswerError, match="the coordinator has taken a report"):
            asked.answering.loaded()
    leased.coordinator.report_status = 204
    agent.poll()
    assert runs(agent, "1", 1)
    assert leased.reports()[-1].lease_until > told
    assert all(report.healthy for report in leased.reports())


def test_lease_that_the_owner_ends_goes_on_until_the_coordinator_knows(leased, monkeypatch):
    told = leased.reports()[-1].lease_until
    leased.change_settings(lease_days=None)
    set_clock(monkeypatch, told + timedelta(seconds=1))
    with pytest.raises(NoAnswerError, match="lease ran out"):
        leased.started().answering.loaded()
    agent = leased.started()
    agent.poll()
    assert leased.reports()[-1].lease_until is None
    assert runs(agent, "1", 1)


def test_clock_set_back_does_not_lengthen_the_lease(leased, monkeypatch):
    began = datetime.now(UTC)
    set_clock(monkeypatch, began + timedelta(days=8))
    leased.change_settings(url="http://127.0.0.1:9")
    refused(leased.started(), "does not answer", UpdateUnreachableError)
    set_clock(monkeypatch, began)
    with pytest.raises(NoAnswerError, match="lease ran out"):
        leased.started().answering.loaded()


def test_words_heard_under_a_clock_set_back_do_not_renew_the_lease(leased, monkeypatch):
    began, url = datetime.now(UTC), leased.folder().settings.url
    set_clock(monkeypatch, began + timedelta(days=8))
    leased.change_settings(url="http://127.0.0.1:9")
    refused(leased.started(), "does not answer", UpdateUnreachableError)
    leased.change_settings(url=url)
    set_clock(monkeypatch, began + timedelta(minutes=1))
    agent = leased.started()
    refused(agent, "behind the latest time that this device has seen")
    with pytest.raises(NoAnswerError, match="lease ran out"):
        agent.answering.loaded()
    device_clock.Clock(leased.path / "clock").trust()  # what the owner says with --clock-is-right
    agent = leased.started()
    agent.poll()
    assert runs(agent, "1", 1)


YEARS = timedelta(days=3650)


def test_device_without_a_lease_whose_clock_was_wrong_once_needs_no_hands(site, monkeypatch):
    """At start without a battery it may be 1970, or any year that the chip comes up with."""
    began = datetime.now(UTC)
    site.publish(1, 1)
    for wrong in (datetime(1970, 1, 1, tzinfo=UTC), began + YEARS, datetime(2038, 1, 20, tzinfo=UTC), YEAR_9999):
        set_clock(monkeypatch, wrong)
        site.coordinator.report_status = 400  # as the coordinator says to a report of another time
        agent = site.started()
        agent.poll()
        assert runs(agent, "1", 1)
    set_clock(monkeypatch, began)
    site.coordinator.report_status = 204
    site.publish(2, 2)
    agent = site.started()
    agent.poll()
    assert runs(agent, "2", 2)
    assert agent.state.problem == ""
    report = site.reports()[-1]
    assert (report.time, report.floor) == (began, 2)
    set_clock(monkeypatch, began + timedelta(days=2))
    site.started().poll()
    assert site.reports()[-1].time == began + timedelta(days=2)  # daily, as before


def test_device_with_a_lease_whose_clock_was_ahead_once_tells_of_it_and_answers_again_when_its_owner_says_so(
    leased, monkeypatch
):
    began, url = datetime.now(UTC), leased.folder().settings.url
    set_clock(monkeypatch, began + YEARS)
    leased.change_settings(url="http://127.0.0.1:9")
    refused(leased.started(), "does not answer", UpdateUnreachableError)
    leased.change_settings(url=url)
    (leased.path / "report.json").unlink()
    set_clock(monkeypatch, began + timedelta(hours=1))
    agent = leased.started()
    refused(agent, "if it was ahead before, 'dlfd-fleet-device once --clock-is-right'")
    report = leased.reports()[-1]
    assert (report.time, report.healthy) == (began + timedelta(hours=1), False)
    device_clock.Clock(leased.path / "clock").trust()
    agent = leased.started()
    agent.poll()
    assert runs(agent, "1", 1)
    assert leased.reports()[-1].lease_until < began + timedelta(days=8)


def test_release_that_was_refused_under_a_clock_that_was_ahead_is_tried_again(site, monkeypatch):
    began = datetime.now(UTC)
    site.publish(1, 1)
    site.started().poll()
    set_clock(monkeypatch, began + YEARS)
    target = site.publish(1, 2, self_test=reference_answers(tiny_model("1", 1, seed=1)))
    refused(site.started(), "failed its self-test", DeviceError)
    set_clock(monkeypatch, began)
    device_clock.Clock(site.path / "clock").trust()
    assert site.folder().read_state().refusals[0].target == target
    refused(site.started(), "failed its self-test", DeviceError)
    assert site.folder().read_state().refusals[0].time == began


def test_device_with_a_lease_that_never_heard_from_its_coordinator_does_not_answer(site):
    site.change_settings(lease_days=7.0, url="http://127.0.0.1:9")
    agent = site.started()
    refused(agent, "does not answer", UpdateUnreachableError)
    with pytest.raises(NoAnswerError, match="never in contact"):
        agent.answering.loaded()
