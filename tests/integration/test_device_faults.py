"""Damage, a full disk, a wrong clock, nobody there: a device goes on with its last good allowed model, and says so."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import tuf.ngclient

from dlfd_fleet.device import durable
from dlfd_fleet.device.agent import Agent
from dlfd_fleet.device.answering import NoAnswerError
from dlfd_fleet.device.polling import keep_polling
from dlfd_fleet.exceptions import DeviceError, UpdateUnreachableError
from tests.device_site import Site, refused, running_site, runs
from tests.small_disk import fill
from tests.tuf_repository import sha256, tiny_model


@pytest.fixture
def site(tmp_path) -> Iterator[Site]:
    with running_site(tmp_path) as made:
        yield made


def sealed(content: bytes) -> bytes:
    """What the device takes for undamaged: a digest, and content of it."""
    return sha256(content).encode() + b"\n" + content


# ---------------------------------------------------------------------- faults of the device


@pytest.mark.parametrize("damaged", ["floor", "floor.copy"])
@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"0",
        b"\xff" * 70,
        *(sealed(each) for each in (b"9" * 5000, b"9999999999", b"-1", b" 3", b"1_0", b"3.0")),
    ],
    ids=range(10),
)
def test_damaged_floor_file_does_not_lower_the_floor_and_is_mended(site, damaged, content):
    site.publish(3, 1)
    site.started().poll()
    file = site.path / damaged
    whole = file.read_bytes()
    file.unlink() if content is None else file.write_bytes(content)
    agent = site.started()
    assert runs(agent, "1", 3)
    agent.poll()
    assert file.read_bytes() == whole


def test_floor_of_absurd_digits_in_both_copies_is_one_sentence(site):
    for file in ("floor", "floor.copy"):
        (site.path / file).write_bytes(sealed(b"9" * 5000))
    with pytest.raises(DeviceError, match=r"cannot tell which models it may run"):
        site.started()


def test_device_that_lost_its_state_or_one_copy_of_its_chain_is_still_one_machine(site):
    site.publish(1, 1)
    site.started().poll()
    for file in (*site.path.glob("state.json*"), site.path / "chain"):
        file.unlink()
    site.publish(2, 2)
    site.started().poll()
    first, second = site.reports()
    assert second.follows == (first.nonce,)


def test_report_that_was_refused_is_followed_by_one_that_names_it(site):
    site.publish(1, 1)
    agent = site.started()
    agent.poll()
    site.coordinator.report_status = 400
    site.publish(2, 2)
    agent.poll()
    site.coordinator.report_status = 204
    agent.poll()
    first, second = site.reports()
    assert len(second.follows) == 2
    assert second.follows[0] == first.nonce


def test_device_that_lost_its_floor_refuses_to_run_anything(site):
    site.publish(3, 1)
    site.started().poll()
    for file in site.path.glob("floor*"):
        file.unlink()
    with pytest.raises(DeviceError, match=r"cannot tell which models it may run; make it anew"):
        site.started()


@pytest.mark.parametrize("content", [b"", b"damaged"])
def test_damaged_current_model_gives_way_to_the_one_before_it_and_is_fetched_again(site, content):
    agent = site.started()
    for sequence in (1, 2):
        site.publish(1, sequence)
        agent.poll()
    (file,) = site.path.glob(f"models/1-{sha256(tiny_model('2', 1, 2))}/*")
    file.write_bytes(content)
    agent = site.started()
    assert runs(agent, "1", 1)
    agent.poll()
    assert runs(agent, "2", 1)
    assert any("not the file that was signed" in attack for attack in site.reports()[-1].attacks)


def test_old_model_put_in_the_place_of_the_current_one_does_not_run(site):
    site.publish(2, 1)
    site.started().poll()
    (file,) = site.path.glob("models/*/*.onnx")
    file.write_bytes(tiny_model("1", 1, 1))
    with pytest.raises(NoAnswerError, match="not the file that was signed"):
        site.started().answering.loaded()


def test_damaged_state_costs_a_download_and_no_more(site):
    site.publish(2, 1)
    site.started().poll()
    for file in site.path.glob("state.json*"):
        file.write_bytes(b"{}")
    agent = site.started()
    agent.poll()
    assert runs(agent, "1", 2)
    assert site.folder().floor.read() == 2


def test_tuf_folder_that_cannot_be_used_does_not_keep_the_device_from_answering(site):
    site.publish(1, 1)
    site.started().poll()
    shutil.rmtree(site.path / "tuf")
    (site.path / "tuf").write_bytes(b"")
    agent = site.started()
    assert runs(agent, "1", 1)
    refused(agent, "cannot be used", UpdateUnreachableError)
    (site.path / "tuf").unlink()
    agent.poll()


def test_defect_in_a_poll_is_told_and_stops_neither_the_answers_nor_the_polls(site, capfd):
    class Defective(Agent):
        polls = 0

        def poll(self) -> None:
            self.polls += 1
            if self.polls == 1:
                raise ZeroDivisionError("a defect of ours")
            super().poll()
            stopped.set()

    site.publish(1, 1)
    stopped, said = threading.Event(), []
    agent = Defective(site.folder())
    keep_polling(agent, 0.01, stopped, said.append)
    assert runs(agent, "1", 1)
    assert "failed because of a bug" in said[0]
    assert said[1] == "Runs version 1 (fp32), epoch 1."
    assert "ZeroDivisionError: a defect of ours" in capfd.readouterr().err


def test_offline_coordinator_changes_nothing(site):
    site.publish(1, 1)
    site.started().poll()
    site.change_settings(url="http://127.0.0.1:9")
    agent = site.started()
    refused(agent, "does not answer", UpdateUnreachableError)
    assert runs(agent, "1", 1)
    assert agent.state.healthy
    assert "does not answer" in site.folder().read_state().problem


def test_report_waits_until_the_coordinator_takes_it_and_is_sent_once(site):
    site.coordinator.report_status = 503
    site.publish(1, 1)
    agent = site.started()
    agent.poll()
    site.publish(2, 2)
    agent.poll()
    assert "503" in agent.state.unreported
    waiting = (site.path / "report.json").read_bytes()
    site.coordinator.report_status = 204
    agent = site.started()
    agent.poll()
    agent.poll()
    assert site.coordinator.reports[0] == waiting
    first, second = site.reports()
    assert (first.version, first.purged) == ("1", ())
    assert (second.version, second.purged) == ("2", (sha256(tiny_model("1", 1, 1)),))
    assert not (site.path / "report.json").exists()


def test_device_that_is_enrolled_late_reports_at_the_next_poll(site):
    site.coordinator.report_status = 400
    site.publish(1, 1)
    agent = site.started()
    agent.poll()
    assert "400" in agent.state.unreported
    site.coordinator.report_status = 204
    agent.poll()
    assert [report.version for report in site.reports()] == ["1"]
    assert agent.state.unreported == ""


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"9" * 5000,
        b"[" * 10**5,
        b'{"payload": 1, "payloadType": "", "signatures": 5}',
        b'{"payload": "", "payloadType": "", "signatures": []}',
    ],
    ids=range(8),
)
def test_damaged_report_is_written_anew_with_everything_that_was_not_told(site, content):
    site.publish(1, 1)
    agent = site.started()
    agent.poll()
    site.coordinator.report_status = 503
    site.publish(2, 2)
    agent.poll()
    (site.path / "report.json").write_bytes(content)
    site.coordinator.report_status = 204
    agent.poll()
    agent.poll()
    assert site.reports()[-1].purged == (sha256(tiny_model("1", 1, 1)),)


@pytest.mark.parametrize("call", range(8))
def test_full_disk_leaves_the_old_model_or_the_new_and_the_next_poll_goes_on(site, monkeypatch, call):
    site.publish(1, 1)
    agent = site.started()
    agent.poll()
    site.publish(1, 2)
    with monkeypatch.context() as patched:
        fail_writes_from(patched, call)
        with pytest.raises(DeviceError, match="No space left on device"):
            agent.poll()
        assert runs(agent, "1", 1) or runs(agent, "2", 1)
    assert runs(site.started(), "1", 1) or runs(site.started(), "2", 1)
    agent = site.started()
    agent.poll()
    assert runs(agent, "2", 1)


def test_full_disk_does_not_keep_a_forbidden_model(site, monkeypatch):
    site.publish(1, 1)
    agent = site.started()
    agent.poll()
    site.publish(2, 2)
    with monkeypatch.context() as patched:
        fail_writes_from(patched, 0)
        with pytest.raises(DeviceError, match="No space left on device"):
            agent.poll()
    assert site.model_files().isdisjoint({sha256(tiny_model("1", 1, 1))})
    with pytest.raises(NoAnswerError):
        agent.answering.loaded()
    agent.poll()
    assert runs(agent, "2", 2)


def test_erasure_is_heard_on_a_full_disk_for_room_was_kept_for_it(site, monkeypatch):
    site.publish(1, 1)
    site.started().poll()
    assert (site.path / "reserve").stat().st_size > 0
    site.publish(2, 2)
    whole = tuf.ngclient.Updater._persist_file

    def full(updater, file: str, content: bytes) -> None:
        if (site.path / "reserve").exists():  # the disk is full as long as the reserve lies on it
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(updater, file, content)

    monkeypatch.setattr(tuf.ngclient.Updater, "_persist_file", full)
    agent = site.started()
    assert runs(agent, "1", 1)
    agent.poll()
    assert runs(agent, "2", 2)
    assert site.model_files() == {sha256(tiny_model("2", 2, 2))}


def test_really_full_disk_stops_updates_and_no_erasure(mount_disk, tmp_path):
    small_disk = mount_disk(3)
    with running_site(tmp_path, small_disk / "device") as site:
        site.publish(1, 1)
        agent = site.started()
        agent.poll()
        site.publish(1, 2)
        fill(small_disk)
        for asked in (agent, site.started()):
            refused(asked, "make room on the disk", UpdateUnreachableError)
            assert runs(asked, "1", 1)
        agent = site.started()
        site.publish(2, 3)
        agent.poll()
        assert runs(agent, "3", 2)
        assert runs(site.started(), "3", 2)
        assert site.model_files() == {sha256(tiny_model("3", 2, 3))}
        assert site.reports()[-1].purged == (sha256(tiny_model("1", 1, 1)),)


def fail_writes_from(patched, call: int) -> None:
    """Let every durable write of the agent from this one on fail, as on a full disk."""
    calls = iter(range(10_000))
    whole = durable.write_durably

    def full(file: Path, content: bytes) -> None:
        if next(calls) >= call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(file, content)

    patched.setattr(durable, "write_durably", full)
