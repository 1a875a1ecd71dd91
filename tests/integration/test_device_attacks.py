"""Each attack is named and reported, and the device goes on with its last good model that may run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata

from dlfd_fleet.device.answering import NoAnswerError
from dlfd_fleet.exceptions import DeviceError, UpdateUnreachableError
from tests.device_site import Site, refused, running_site, runs
from tests.tuf_repository import (
    TufRepository,
    reference_answers,
    sha256,
    tiny_model,
)


@pytest.fixture
def site(tmp_path) -> Iterator[Site]:
    with running_site(tmp_path) as made:
        yield made


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


def digest_that_is_none(repository: TufRepository) -> None:
    target = repository.add_model(1, 2)
    repository.targets.targets[target].hashes["sha256"] = "../../etc/passwd"
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
        (digest_that_is_none, "an invalid digest"),
        (damaged, "damaged"),
        (broken_contract, "are not valid"),
    ],
    ids=[
        "timestamp-key",
        "targets-key",
        "expired",
        "endless",
        "mixed",
        "root",
        "traversal",
        "digest",
        "damaged",
        "contract",
    ],
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
    site.publish(1, 2, b"MZ\0", self_test=reference_answers(tiny_model("1", 1, 1)))
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
