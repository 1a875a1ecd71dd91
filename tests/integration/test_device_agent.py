"""A device's agent: what it installs, tries, gives back, deletes and reports."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from dlfd_fleet.device.answering import NoAnswerError
from dlfd_fleet.device.contract import Rollout
from dlfd_fleet.exceptions import DeviceError
from tests.device_site import Site, refused, running_site, runs, set_clock
from tests.tuf_repository import (
    reference_answers,
    sha256,
    tiny_model,
    tiny_model_in_two,
)


@pytest.fixture
def site(tmp_path) -> Iterator[Site]:
    with running_site(tmp_path) as made:
        yield made


# ---------------------------------------------------------------------- the plain way


def test_new_model_is_installed_reported_and_there_after_a_restart(site):
    site.publish(1, 1)
    agent = site.started()
    with pytest.raises(NoAnswerError, match="no model is installed yet"):
        agent.answering.loaded()
    agent.poll()
    assert runs(agent, "1", 1)
    assert runs(site.started(), "1", 1)
    (report,) = site.reports()
    assert (report.version, report.sequence, report.epoch, report.floor, report.healthy) == ("1", 1, 1, 1, True)
    assert report.installed == (sha256(tiny_model("1", 1, 1)),)
    assert (report.purged, report.attacks, report.lease_until) == ((), (), None)


def test_erasure_purges_the_model_before_and_proves_it(site):
    old = site.publish(1, 1)
    agent = site.started()
    agent.poll()
    site.publish(2, 2)
    agent.poll()
    assert runs(agent, "2", 2)
    assert site.model_files() == {sha256(tiny_model("2", 2, 2))}
    report = site.reports()[-1]
    assert report.purged == (site.repository.targets.targets[old].hashes["sha256"],)
    assert report.floor == 2
    assert len({report.nonce for report in site.reports()}) == 2


def test_release_of_the_same_epoch_keeps_one_model_before_it_and_no_more(site):
    agent = site.started()
    for sequence in (1, 2, 3):
        site.publish(1, sequence)
        agent.poll()
    assert runs(agent, "3", 1)
    assert site.model_files() == {sha256(tiny_model(str(sequence), 1, sequence)) for sequence in (2, 3)}
    assert site.reports()[-1].purged == (sha256(tiny_model("1", 1, 1)),)


def test_nothing_new_is_reported_once_a_day(site, monkeypatch):
    site.publish(1, 1)
    agent = site.started()
    agent.poll()
    agent.poll()
    assert len(site.reports()) == 1
    set_clock(monkeypatch, datetime.now(UTC) + timedelta(hours=25))
    agent.poll()
    assert len(site.reports()) == 2


def test_preferred_format_is_taken_and_the_next_where_it_was_not_published(site):
    site.change_settings(formats=("int8", "fp32"))
    site.repository.add_model(1, 1)
    site.publish(1, 1, tiny_model("1", 1, seed=77), form="int8")
    agent = site.started()
    agent.poll()
    assert agent.answering.loaded().release.format == "int8"
    site.publish(2, 2)  # its int8 file failed the audit
    agent.poll()
    assert agent.answering.loaded().release.format == "fp32"


def test_large_model_and_the_weights_beside_it_come_and_go_together(site):
    content, weights = tiny_model_in_two("1", 1, 1, "model-fp32.onnx")
    site.publish(1, 1, content, weights=weights, self_test=reference_answers(tiny_model("1", 1, 1)))
    agent = site.started()
    agent.poll()
    assert runs(site.started(), "1", 1)
    assert site.model_files() == {sha256(content), sha256(weights)} == set(site.reports()[-1].installed)
    (file,) = site.path.rglob("*.data")
    file.write_bytes(bytes([weights[0] ^ 1]) + weights[1:])
    with pytest.raises(NoAnswerError, match="are not those of"):
        site.started().answering.loaded()
    agent = site.started()
    agent.poll()
    assert runs(agent, "1", 1)
    site.publish(2, 2)
    agent.poll()
    assert site.model_files() == {sha256(tiny_model("2", 2, 2))}
    assert {sha256(content), sha256(weights)} <= {digest for one in site.reports() for digest in one.purged}


# ---------------------------------------------------------------------- the self-test and the rollout


def test_failed_self_test_leaves_the_model_before_it(site):
    site.publish(1, 1)
    agent = site.started()
    agent.poll()
    site.publish(1, 2, self_test=reference_answers(tiny_model("1", 1, 1)))
    refused(agent, "failed its self-test", DeviceError)
    assert runs(agent, "1", 1)
    assert runs(site.started(), "1", 1)
    report = site.reports()[-1]
    assert (report.version, report.healthy) == ("1", False)
    assert "failed its self-test" in report.attacks[0]


def test_failed_self_test_of_an_erasure_leaves_no_model_rather_than_one_that_remembers(site):
    site.publish(1, 1)
    agent = site.started()
    agent.poll()
    site.publish(2, 2, self_test=reference_answers(tiny_model("1", 1, 1)))
    refused(agent, "failed its self-test", DeviceError)
    for asked in (agent, site.started()):
        with pytest.raises(NoAnswerError, match="no model that may run"):
            asked.answering.loaded()
    assert site.model_files().isdisjoint({sha256(tiny_model("1", 1, 1))})
    report = site.reports()[-1]
    assert (report.version, report.installed, report.healthy, report.floor) == ("", (), False, 2)
    site.publish(2, 3)
    agent.poll()
    assert runs(agent, "3", 2)
    assert site.reports()[-1].healthy


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x04\x95"])
def test_damaged_self_test_is_a_failed_one(site, content):
    site.publish(1, 1, self_test=content)
    refused(site.started(), "self-test that came with the model is damaged", DeviceError)


def test_device_waits_for_its_turn_in_the_rollout(site):
    site.publish(1, 1)
    site.repository.set_rollout(Rollout(name="a", sequence=2, share=0.0, state="running"))
    site.publish(1, 2)
    agent = site.started()
    agent.poll()
    assert runs(agent, "1", 1)
    canaries = (site.folder().device,)
    site.repository.set_rollout(Rollout(name="a", sequence=2, share=0.0, canaries=canaries, state="running"))
    site.repository.publish()
    agent.poll()
    assert runs(agent, "2", 1)


def test_aborted_rollout_takes_the_device_back_without_a_download(site):
    site.publish(1, 1)
    agent = site.started()
    agent.poll()
    site.publish(1, 2)
    agent.poll()
    assert runs(agent, "2", 1)
    site.repository.set_rollout(Rollout(name="a", sequence=2, share=1.0, state="aborted"))
    site.repository.publish()
    agent.poll()
    assert runs(agent, "1", 1)
    assert sum("/1-1/" in path and path.endswith(".onnx") for path in site.coordinator.requests) == 1


def test_erasure_does_not_wait_for_the_rollout(site):
    site.publish(1, 1)
    agent = site.started()
    agent.poll()
    site.repository.set_rollout(Rollout(name="a", sequence=2, share=0.0, state="paused"))
    site.publish(2, 2)
    agent.poll()
    assert runs(agent, "2", 2)
