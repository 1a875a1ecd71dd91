"""Whatever its repository or its disk does: a device goes on with its last good allowed model, and says what is wrong.

Real HTTP, real TUF, real ONNX Runtime; the repository is one that signs whatever the attack needs.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import tuf.ngclient
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata

from dlfd_fleet.device import clock as device_clock
from dlfd_fleet.device import durable
from dlfd_fleet.device.agent import Agent
from dlfd_fleet.device.answering import NoAnswerError
from dlfd_fleet.device.contract import REPORT_TYPE, DeviceReport, Rollout
from dlfd_fleet.device.folder import DeviceFolder, DeviceSettings, init_device
from dlfd_fleet.exceptions import DeviceError, UpdateRefusedError, UpdateUnreachableError
from tests.tuf_repository import (
    Coordinator,
    TufRepository,
    golden,
    random_images,
    sha256,
    tiny_model,
    tiny_model_in_two,
)


@dataclass
class Site:
    """A coordinator and one device of it."""

    repository: TufRepository
    coordinator: Coordinator
    path: Path

    def folder(self) -> DeviceFolder:
        return DeviceFolder(self.path)

    def started(self) -> Agent:
        return Agent(self.folder())

    def publish(self, *arguments, **named) -> str:
        target = self.repository.add_model(*arguments, **named)
        self.repository.publish()
        return target

    def reports(self) -> list[DeviceReport]:
        found = []
        for body in self.coordinator.reports:
            envelope = Envelope.from_dict(json.loads(body))
            key = self.folder().signer.public_key
            envelope.verify([key], 1)
            assert envelope.payload_type == REPORT_TYPE
            report = DeviceReport.model_validate_json(envelope.payload)
            assert report.device == key.keyid
            found.append(report)
        return found

    def change_settings(self, **changes) -> None:
        settings = self.folder().settings.model_copy(update=changes)
        (self.path / "settings.json").write_text(settings.model_dump_json())

    def model_files(self) -> set[str]:
        """Digests of every model file in the device's folder, wherever it lies."""
        return {sha256(file.read_bytes()) for file in self.path.rglob("*.onnx*")}


@pytest.fixture
def site(tmp_path) -> Iterator[Site]:
    repository = TufRepository(tmp_path / "repository")
    with Coordinator(repository.folder).running() as coordinator:
        settings = DeviceSettings(url=coordinator.url, formats=("fp32",))
        init_device(tmp_path / "device", settings, repository.root_file)
        yield Site(repository, coordinator, tmp_path / "device")


def runs(agent: Agent, version: str, epoch: int) -> bool:
    """Whether the agent answers with this model: the version it is told, and what the model itself computes."""
    loaded = agent.answering.loaded()
    np.testing.assert_allclose(loaded.model.predict(random_images(3)).sum(axis=1), 1.0, atol=1e-5)
    return (loaded.release.version, loaded.release.epoch, loaded.model.version) == (version, epoch, version)


def refused(agent: Agent, words: str, kind: type[DeviceError] = UpdateRefusedError) -> None:
    with pytest.raises(kind, match=words):
        agent.poll()


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
    site.publish(1, 1, content, weights=weights, self_test=golden(tiny_model("1", 1, 1)))
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


# ---------------------------------------------------------------------- attacks


def test_old_model_bytes_in_newer_signed_metadata_are_refused(site):
    site.publish(2, 1)
    agent = site.started()
    agent.poll()
    remembers = tiny_model("5", 1, seed=5)
    site.publish(2, 5, remembers)
    refused(agent, "signed as epoch 2, and its file says 1: old model bytes", DeviceError)
    assert runs(agent, "1", 2)
    assert sha256(remembers) not in site.model_files()
    report = site.reports()[-1]
    assert "old model bytes in newer metadata" in report.attacks[0]
    assert (report.version, report.healthy) == ("1", False)


def test_wiped_tuf_folder_with_replayed_metadata_does_not_lower_the_floor(site):
    old = TufRepositoryCopy(site.repository)
    site.publish(1, 1)
    old.take()
    agent = site.started()
    agent.poll()
    site.publish(3, 2)
    agent.poll()
    shutil.rmtree(site.path / "tuf")
    old.serve_again()
    agent = site.started()
    agent.poll()  # TUF alone is content with what it sees for the first time
    assert runs(agent, "2", 3)
    assert site.folder().floor.read() == 3
    assert sha256(tiny_model("1", 1, 1)) not in site.model_files()


def test_fast_forward_recovery_with_lower_versions_does_not_bring_an_older_epoch_back(site):
    site.publish(1, 1)
    site.publish(3, 2)
    agent = site.started()
    agent.poll()
    newest = next(name for name in site.repository.targets.targets if name.startswith("models/3-2/model"))
    del site.repository.targets.targets[newest]
    site.repository.recover_with_lower_versions()
    site.repository.publish()
    agent.poll()
    assert runs(agent, "2", 3)
    assert site.folder().floor.read() == 3


def test_rollback_of_the_metadata_is_refused(site):
    site.publish(1, 1)
    old = TufRepositoryCopy(site.repository)
    old.take()
    site.publish(1, 2)
    agent = site.started()
    agent.poll()
    old.serve_again()
    refused(agent, "a rollback")
    assert runs(agent, "2", 1)
    assert any("rollback" in attack for attack in site.reports()[-1].attacks)


def wrong_key(repository: TufRepository, role: str) -> None:
    repository.publish({role: CryptoSigner.generate_ed25519()})


def expired(repository: TufRepository) -> None:
    repository.timestamp.expires = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
    repository.publish()


def endless(repository: TufRepository) -> None:
    (repository.folder / "metadata" / "timestamp.json").write_bytes(b" " * 10**6)


def mixed(repository: TufRepository) -> None:
    repository.publish()
    folder, version = repository.folder / "metadata", repository.targets.version
    shutil.copy(folder / f"{version - 1}.targets.json", folder / f"{version}.targets.json")


def replaced_root(repository: TufRepository) -> None:
    strange = CryptoSigner.generate_ed25519()
    repository.root.version += 1
    file = repository.folder / "metadata" / f"{repository.root.version}.root.json"
    metadata = Metadata(repository.root)
    metadata.sign(strange)
    file.write_bytes(metadata.to_bytes())


def path_traversal(repository: TufRepository) -> None:
    release = next(info for name, info in repository.targets.targets.items() if name.endswith(".onnx"))
    repository.targets.targets["models/1-2/../../../floor"] = release
    repository.publish()


def damaged(repository: TufRepository) -> None:
    (repository.folder / "metadata" / "timestamp.json").write_bytes(b"{")


def broken_contract(repository: TufRepository) -> None:
    repository.add("models/1-2/model.onnx", b"", {"dlfd": {"epoch": "many"}})
    repository.publish()


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        (lambda repository: wrong_key(repository, "timestamp"), "wrong key"),
        (lambda repository: wrong_key(repository, "targets"), "wrong key"),
        (expired, "expired"),
        (endless, "endless data"),
        (mixed, "do not belong together"),
        (replaced_root, "wrong key"),
        (path_traversal, "path traversal"),
        (damaged, "damaged"),
        (broken_contract, "breaks the contract"),
    ],
    ids=["timestamp-key", "targets-key", "expired", "endless", "mixed", "root", "traversal", "damaged", "contract"],
)
def test_attack_on_the_metadata_is_named_and_reported_and_the_device_goes_on(site, attack, words):
    site.publish(1, 1)
    agent = site.started()
    agent.poll()
    attack(site.repository)
    refused(agent, words)
    assert runs(agent, "1", 1)
    assert runs(site.started(), "1", 1)
    assert words in site.folder().read_state().problem
    assert any(words in said for said in site.reports()[-1].attacks)
    assert site.folder().floor.read() == 1


def test_truncated_download_is_taken_up_again(site):
    site.publish(1, 1)
    agent = site.started()
    agent.poll()
    file = site.repository.file_of(site.publish(2, 2))
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    refused(agent, "broke off after 100", UpdateUnreachableError)
    with pytest.raises(NoAnswerError, match="under the floor 2"):
        agent.answering.loaded()
    assert [part.read_bytes() for part in site.path.rglob("*.part")] == [whole[:100]]
    file.write_bytes(whole)
    site.started().poll()
    assert runs(site.started(), "2", 2)
    assert not list(site.path.rglob("*.part"))


def test_broken_off_download_is_purged_when_the_floor_rises_over_it(site):
    site.publish(1, 1)
    agent = site.started()
    agent.poll()
    file = site.repository.file_of(site.publish(1, 2))
    file.write_bytes(file.read_bytes()[:100])
    refused(agent, "broke off after 100", UpdateUnreachableError)
    site.publish(2, 3)
    site.started().poll()
    assert not list(site.path.rglob("*.part"))
    assert not list((site.path / "staging").iterdir())


def test_tampered_model_is_refused(site):
    site.publish(1, 1)
    agent = site.started()
    agent.poll()
    target = site.publish(1, 2)
    file = site.repository.file_of(target)
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    for _ in range(2):
        refused(agent, "not those that were signed")
    assert runs(agent, "1", 1)
    assert any("tampered target" in attack for report in site.reports() for attack in report.attacks)
    file.write_bytes(tiny_model("2", 1, 2))
    agent.poll()
    assert runs(agent, "2", 1)


def test_model_that_is_none_of_ours_is_refused(site):
    site.publish(1, 1)
    agent = site.started()
    agent.poll()
    site.publish(1, 2, b"MZ\0", self_test=golden(tiny_model("1", 1, 1)))
    refused(agent, "damaged or not an ONNX file", DeviceError)
    assert runs(agent, "1", 1)


def test_same_attack_is_reported_and_not_tried_at_every_poll(site):
    site.publish(1, 1)
    agent = site.started()
    agent.poll()
    site.publish(1, 2, tiny_model("2", 0, seed=2))
    for _ in range(3):
        refused(agent, "old model bytes", DeviceError)
    assert len(site.reports()) == 2
    assert sum("/1-2/" in path and path.endswith(".onnx") for path in site.coordinator.requests) == 1


# ---------------------------------------------------------------------- the self-test and the rollout


def test_failed_self_test_leaves_the_model_before_it(site):
    site.publish(1, 1)
    agent = site.started()
    agent.poll()
    site.publish(1, 2, self_test=golden(tiny_model("1", 1, 1)))
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
    site.publish(2, 2, self_test=golden(tiny_model("1", 1, 1)))
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


# ---------------------------------------------------------------------- faults of the device


@pytest.mark.parametrize("damaged", ["floor", "floor.copy"])
@pytest.mark.parametrize("content", [None, b"", b"0", b"\xff" * 70])
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


@pytest.mark.parametrize("content", [b"", b"{}", b'{"payload": "", "payloadType": "", "signatures": []}'])
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


def fail_writes_from(patched, call: int) -> None:
    """Let every durable write of the agent from this one on fail, as on a full disk."""
    calls = iter(range(10_000))
    whole = durable.write_durably

    def full(file: Path, content: bytes) -> None:
        if next(calls) >= call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(file, content)

    patched.setattr(durable, "write_durably", full)


# ---------------------------------------------------------------------- the lease and the clock


def set_clock(monkeypatch, now: datetime) -> None:
    """Set the wall clock of the device's code; its monotonic clock goes on."""

    class Set(datetime):
        @classmethod
        def now(cls, tz=None):
            return now.astimezone(tz)

    for module in ("agent", "clock"):
        monkeypatch.setattr(f"dlfd_fleet.device.{module}.datetime", Set)


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


def test_device_with_a_lease_that_never_heard_from_its_coordinator_does_not_answer(site):
    site.change_settings(lease_days=7.0, url="http://127.0.0.1:9")
    agent = site.started()
    refused(agent, "does not answer", UpdateUnreachableError)
    with pytest.raises(NoAnswerError, match="never heard"):
        agent.answering.loaded()


class TufRepositoryCopy:
    """What somebody recorded of a repository, to be served again later."""

    def __init__(self, repository: TufRepository) -> None:
        self._folder = repository.folder / "metadata"

    def take(self) -> None:
        self._files = {file.name: file.read_bytes() for file in self._folder.iterdir()}

    def serve_again(self) -> None:
        for file in self._folder.iterdir():
            file.unlink()
        for name, content in self._files.items():
            (self._folder / name).write_bytes(content)
