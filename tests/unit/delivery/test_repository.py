"""The repository as its writer keeps it: keys, expiry, rotation, and death at any moment."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress

import pytest
from tuf.api.metadata import Metadata, TargetFile

from dlfd_fleet.delivery import repository as module
from dlfd_fleet.delivery.contents import ROLES, as_role
from dlfd_fleet.delivery.keys import KeyRing
from dlfd_fleet.delivery.repository import Repository
from dlfd_fleet.delivery.rollout import for_everybody
from dlfd_fleet.exceptions import DeliveryError
from dlfd_fleet.settings import DeliverySettings
from tests.tuf_simulator import ONE_KEY_EACH, Clock, SimulatedRepository, serving


class KilledError(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


def dies_at(monkeypatch, number):
    """Let the writer die at its n-th file, half of it written; return how to ask whether it did."""
    write, count = module.write_whole, [0]

    def write_or_die(file, content):
        count[0] += 1
        if count[0] == number:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.with_name(f".{file.name}.new").write_bytes(b"half")
            raise KilledError
        write(file, content)

    monkeypatch.setattr(module, "write_whole", write_or_die)
    return lambda: count[0] >= number


def keys_of(simulator):
    return simulator.repository.folder / "keys"


CHANGES = {
    "a release": lambda simulator: simulator.release(b"new", epoch=2, sequence=2),
    "a rollout": lambda simulator: simulator.roll_out(for_everybody(1)),
    "a refresh of everything": lambda simulator: (simulator.clock.move(days=350), simulator.repository.refresh()),
    **{
        f"new keys of {role}": lambda simulator, role=role: simulator.repository.rotate(role, keys_of(simulator))
        for role in ROLES
    },
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_writer_that_is_killed_at_any_write_leaves_a_repository_that_devices_accept(world, monkeypatch, change):
    name = world.simulator.release(b"before", epoch=1, sequence=1)
    root = world.simulator.root
    back = world.simulator.rollback_point(world.folder.parent / "before")
    for number in range(1, 20):
        old = world.device(f"old-{number}", root)
        old.refresh()
        with monkeypatch.context() as patch:
            died = dies_at(patch, number)
            with suppress(KilledError):
                CHANGES[change](world.simulator)
            happened = died()
        for client in (old, world.device(f"new-{number}", root)):
            client.refresh()
            assert name in [each for each, _ in client.releases()]
        CHANGES[change](world.simulator)  # the next writer is not in the way of what the dead one left
        old.refresh()
        assert not list(world.simulator.served.rglob("*.new"))
        if not happened:
            break
        back()
        world.simulator.clock.__init__()
        (world.simulator.repository.folder / "root.json").write_bytes(root)
    assert number > 1


def test_files_that_are_not_listed_any_more_are_deleted(world):
    name = world.simulator.release(b"to be withdrawn", epoch=1, sequence=1)
    assert len(list(world.simulator.served.rglob("*.model.onnx"))) == 1
    world.simulator.sign(lambda contents: contents.targets.signed.targets.pop(name))
    assert not list(world.simulator.served.rglob("*.model.onnx"))
    assert list(world.simulator.served.rglob("*.selftest.npz"))


def test_metadata_of_before_stay_for_devices_on_their_way_and_no_longer(world):
    folder = world.simulator.served / "metadata"
    for sequence in range(1, 5):
        world.simulator.release(b"x", epoch=1, sequence=sequence)
        world.simulator.roll_out(for_everybody(sequence))
    assert len(list(folder.glob("*.targets.json"))) == 5
    assert len(list(world.simulator.served.glob("targets/rollout/*"))) == 4
    for file in folder.iterdir():
        os.utime(file, (0, 0))
    world.simulator.release(b"x", epoch=1, sequence=5)
    kept = {file.name for file in folder.iterdir()}
    assert kept == {
        *("1.root.json", "5.rollout.json", "5.targets.json", "6.targets.json"),
        *("9.snapshot.json", "10.snapshot.json", "timestamp.json"),
    }
    assert len(list(world.simulator.served.glob("targets/rollout/*"))) == 1


def test_private_keys_are_their_owners_only(world):
    files = list(keys_of(world.simulator).iterdir())
    assert len(files) == 5
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    assert keys_of(world.simulator).stat().st_mode & 0o777 == 0o700
    assert not list(world.simulator.served.rglob("*.pem"))


def test_a_repository_is_made_once(world):
    with pytest.raises(DeliveryError, match="holds a repository already"):
        world.simulator.repository.create(keys_of(world.simulator))


def test_one_writer_at_a_time(world):
    again = Repository(world.simulator.repository.folder, KeyRing([]), DeliverySettings())
    with (
        world.simulator.repository.lock(),
        pytest.raises(DeliveryError, match="Another process writes"),
        again.lock(patience=0.0),
    ):
        pass


# ---------------------------------------------------------------------- keys


@pytest.fixture
def guarded(tmp_path):
    """Two of three keys sign the root and the releases, and both sets are on media of their own."""
    simulator = SimulatedRepository(tmp_path / "guarded", DeliverySettings())
    for role in ("root", "targets"):
        (tmp_path / role).mkdir()
        for file in sorted(keys_of(simulator).glob(f"{role}-*.pem")):
            shutil.move(file, tmp_path / role)
    simulator.repository = with_keys(simulator)
    return simulator


def with_keys(simulator, *folders):
    return Repository(
        simulator.repository.folder, KeyRing([keys_of(simulator), *folders]), DeliverySettings(), simulator.clock
    )


def test_the_sentence_says_which_keys_are_missing(guarded, tmp_path):
    with pytest.raises(DeliveryError) as error:
        guarded.release(b"x", epoch=1, sequence=1)
    said = str(error.value)
    assert "To sign 'targets', 2 of its keys are needed, and 0 were found" in said
    assert all(file.name in said for file in (tmp_path / "targets").iterdir())
    assert not list(guarded.served.glob("metadata/2.*"))
    with pytest.raises(DeliveryError, match="To sign 'root'"):
        guarded.repository.rotate("snapshot", keys_of(guarded))
    assert len(list(keys_of(guarded).glob("snapshot-*"))) == 1


def test_fewer_keys_than_the_threshold_do_not_sign(guarded, tmp_path):
    first, *_ = sorted((tmp_path / "targets").iterdir())
    (tmp_path / "stick").mkdir()
    shutil.copy(first, tmp_path / "stick")
    guarded.repository = with_keys(guarded, tmp_path / "stick")
    with pytest.raises(DeliveryError, match="2 of its keys are needed, and 1 were found"):
        guarded.release(b"x", epoch=1, sequence=1)
    shutil.copytree(tmp_path / "targets", tmp_path / "stick", dirs_exist_ok=True)
    guarded.release(b"x", epoch=1, sequence=1)


def test_online_keys_alone_keep_the_repository_fresh(guarded):
    guarded.clock.move(days=3)
    assert guarded.repository.refresh() == []
    contents = guarded.repository.read()
    assert contents.timestamp.signed.version == 2
    assert not contents.timestamp.signed.is_expired(guarded.clock())
    guarded.clock.move(days=100)
    (said,) = guarded.repository.refresh()
    assert said.startswith("'targets' expires on")
    assert guarded.repository.read().targets.signed.version == 1


def test_only_what_is_due_is_signed_again(guarded):
    assert guarded.repository.refresh(only_due=True) == []
    assert guarded.repository.read().timestamp.signed.version == 1
    guarded.clock.move(hours=13)
    guarded.repository.refresh(only_due=True)
    contents = guarded.repository.read()
    assert (contents.timestamp.signed.version, contents.snapshot.signed.version) == (2, 1)
    guarded.clock.move(days=4)
    guarded.repository.refresh(only_due=True)
    contents = guarded.repository.read()
    assert (contents.rollout.signed.version, contents.snapshot.signed.version) == (2, 2)


def test_all_keys_are_signed_again_where_they_are_at_hand(guarded, tmp_path):
    guarded.clock.move(days=300)
    repository = with_keys(guarded, tmp_path / "root", tmp_path / "targets")
    assert repository.refresh() == []
    contents = repository.read()
    assert (contents.root.signed.version, contents.targets.signed.version) == (2, 2)


def test_a_lost_key_of_the_releases_is_replaced_by_the_roots(guarded, tmp_path):
    root = guarded.root
    shutil.rmtree(tmp_path / "targets")
    guarded.repository = with_keys(guarded, tmp_path / "root")
    guarded.repository.rotate("targets", tmp_path / "targets")
    assert len(list((tmp_path / "targets").iterdir())) == 3
    guarded.repository = with_keys(guarded, tmp_path / "root", tmp_path / "targets")
    name = guarded.release(b"x", epoch=1, sequence=1)
    with serving(guarded.served) as server:
        from dlfd_fleet.device.update import UpdateClient

        client = UpdateClient(tmp_path / "device", server.url, root)
        client.refresh()
        assert [each for each, _ in client.releases()] == [name]


@pytest.mark.parametrize("role", ["targets", "snapshot", "timestamp"])
def test_a_writer_that_is_killed_while_it_replaces_lost_keys_is_followed_by_one_that_does(world, monkeypatch, role):
    name = world.simulator.release(b"before", epoch=1, sequence=1)
    keys, root = keys_of(world.simulator), world.simulator.root
    shutil.copytree(world.simulator.repository.folder, world.folder / "before")
    for number in range(1, 8):
        for file in keys.glob(f"{role}-*"):
            file.unlink()
        writer = Repository(world.simulator.repository.folder, KeyRing([keys]), ONE_KEY_EACH, world.simulator.clock)
        with monkeypatch.context() as patch:
            died = dies_at(patch, number)
            with suppress(KilledError):
                writer.rotate(role, keys)
            happened = died()
        again = Repository(writer.folder, KeyRing([keys]), ONE_KEY_EACH, world.simulator.clock)
        again.rotate(role, keys)
        client = world.device(f"device-{number}", root)
        client.refresh()
        assert [each for each, _ in client.releases()] == [name]
        if not happened:
            break
        shutil.rmtree(writer.folder)
        shutil.copytree(world.folder / "before", writer.folder)
    assert number > 2


@pytest.mark.parametrize("role", ROLES)
def test_an_old_key_signs_nothing_after_its_replacement(world, role):
    before = {file.name for file in keys_of(world.simulator).iterdir()}
    world.simulator.repository.rotate(role, keys_of(world.simulator))
    for file in keys_of(world.simulator).iterdir():
        if file.name in before and not file.name.startswith(role):
            continue
        if file.name in before:
            file.unlink()
    with world.simulator.repository.lock():
        contents = world.simulator.repository.read()
        world.simulator.repository.commit(contents, ("targets", "rollout"))
    world.device().refresh()
    new = [file for file in keys_of(world.simulator).iterdir() if file.name not in before]
    assert len(new) == 1
    new[0].unlink()
    ring = Repository(world.simulator.repository.folder, KeyRing([keys_of(world.simulator)]), DeliverySettings())
    with pytest.raises(DeliveryError, match=f"To sign '{role}'"):
        ring.rotate(role, keys_of(world.simulator)) if role == "root" else ring.commit(
            ring.read(), ("targets", "rollout")
        )


def test_a_file_that_is_no_key(world):
    (keys_of(world.simulator) / "note.pem").write_text("not a key")
    with pytest.raises(DeliveryError, match=r"note.pem is not an unencrypted private key"):
        world.simulator.repository.refresh()


def test_a_role_that_is_none():
    with pytest.raises(DeliveryError, match="There is no role 'mirror'"):
        as_role("mirror")


# ---------------------------------------------------------------------- somebody else wrote here


def test_what_somebody_else_listed_is_not_signed_by_the_next_publication(world):
    file = world.metadata("targets")
    metadata = Metadata.from_bytes(file.read_bytes())
    metadata.signed.targets["models/1-1/model.onnx"] = TargetFile.from_data("models/1-1/model.onnx", b"theirs")
    file.write_bytes(metadata.to_bytes())
    with pytest.raises(DeliveryError, match="tampered with"):
        world.simulator.release(b"ours", epoch=1, sequence=1)


def test_a_repository_of_somebody_elses_in_the_place_of_ours(world, tmp_path):
    """With their root, that names our keys beside theirs: our key would sign what theirs has listed."""
    theirs = SimulatedRepository(tmp_path / "theirs")
    theirs.release(b"theirs", epoch=1, sequence=1)
    shutil.rmtree(world.simulator.served)
    shutil.copytree(theirs.served, world.simulator.served)
    with pytest.raises(DeliveryError, match="tampered with"):
        world.simulator.repository.read()


@pytest.mark.parametrize("damage", ["gone", "empty", "no timestamp"])
def test_a_damaged_repository_is_one_sentence(world, damage):
    file = world.simulator.served / "metadata" / "timestamp.json"
    if damage == "gone":
        shutil.rmtree(world.simulator.served)
    elif damage == "empty":
        file.write_bytes(b"")
    else:
        file.write_text(json.dumps({"signed": {}}))
    with pytest.raises(DeliveryError, match=r"cannot be read|damaged"):
        world.simulator.repository.read()


def test_no_repository_yet(tmp_path):
    with pytest.raises(DeliveryError, match="delivery init"):
        Repository(tmp_path, KeyRing([]), DeliverySettings(), Clock()).read()
