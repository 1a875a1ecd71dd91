"""What somebody between the coordinator and a device may try; each test is one attack, by its name."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp

from dlfd_fleet.device import update
from dlfd_fleet.device.contract import Rollout
from dlfd_fleet.exceptions import UpdateRefusedError, UpdateUnreachableError

MODEL = bytes(range(256)) * 40


def names(client):
    return [name for name, _ in client.releases()]


def files_in(folder):
    return [file.name for file in folder.iterdir()]


def rewrite(file, change):
    """Change signed metadata and sign it no more."""
    tree = json.loads(file.read_bytes())
    change(tree["signed"])
    file.write_text(json.dumps(tree))


# ---------------------------------------------------------------------- what is meant to be


def test_a_device_learns_of_releases_newest_first_and_gets_their_files(world):
    old = world.simulator.release(b"old", epoch=1, sequence=1)
    new = world.simulator.release(MODEL, epoch=2, sequence=2, minimum_epoch=1)
    client = world.device()
    client.refresh()
    assert names(client) == [new, old]
    assert client.floor() == 1
    assert client.releases()[0][1].self_test.tolerance == 1e-3
    client.download(new, world.folder / "slot" / "model.onnx")
    assert (world.folder / "slot" / "model.onnx").read_bytes() == MODEL
    assert client.size(new) == len(MODEL)
    assert files_in(world.folder / "slot") == ["model.onnx"]


def test_the_rollout_is_read_and_fetched_only_when_it_has_changed(world):
    client = world.device()
    client.refresh()
    assert client.rollout() is None
    said = Rollout(name="r", sequence=3, share=0.25, canaries=("a" * 64,), state="running")
    world.simulator.roll_out(said)
    for _ in range(2):
        client.refresh()
        assert client.rollout() == said
    assert sum(count for path, count in world.server.asked.items() if path.endswith(".rollout.json")) == 3


def test_nothing_is_said_before_the_first_refresh(world):
    with pytest.raises(UpdateUnreachableError, match="refresh it first"):
        world.device().releases()


# ---------------------------------------------------------------------- attacks


def test_tampered_target(world):
    name = world.simulator.release(MODEL, epoch=1, sequence=1)
    client, place = world.device(), world.folder / "slot" / "model.onnx"
    client.refresh()
    (served,) = world.simulator.served.glob("targets/models/*/*.model.onnx")
    served.write_bytes(MODEL[:-1] + b"!")
    place.parent.mkdir(parents=True)
    place.write_bytes(b"the good one")
    with pytest.raises(UpdateRefusedError, match="tampered target"):
        client.download(name, place)
    assert place.read_bytes() == b"the good one"
    assert files_in(place.parent) == ["model.onnx"]


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_tampered_metadata(world, role):
    world.simulator.release(MODEL, epoch=1, sequence=1)
    file = world.simulator.served / "metadata" / "timestamp.json" if role == "timestamp" else world.metadata(role)
    rewrite(file, lambda signed: signed.update(expires="2099-01-01T00:00:00Z"))
    with pytest.raises(UpdateRefusedError, match="tampered"):
        world.device().refresh()


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_wrong_key(world, role):
    """Everything fits together, but one role was signed by somebody else."""
    stranger = CryptoSigner.generate_ed25519()
    world.simulator.release(MODEL, epoch=1, sequence=1)
    signers = world.simulator.repository.keys.signers

    def instead(asked, *delegators):
        return [stranger] if asked == role else signers(asked, *delegators)

    world.simulator.repository.keys.signers = instead
    world.simulator.sign(lambda _: None)
    with pytest.raises(UpdateRefusedError, match="a wrong key"):
        world.device().refresh()


def test_rollback(world, tmp_path):
    world.simulator.release(b"old", epoch=1, sequence=1)
    go_back = world.simulator.rollback_point(tmp_path / "then")
    new = world.simulator.release(MODEL, epoch=2, sequence=2, minimum_epoch=2)
    client = world.device()
    client.refresh()
    go_back()
    with pytest.raises(UpdateRefusedError, match="rollback"):
        client.refresh()
    assert names(client)[0] == new
    assert client.floor() == 2


def test_rollback_is_seen_after_a_restart(world, tmp_path):
    world.simulator.release(b"old", epoch=1, sequence=1)
    go_back = world.simulator.rollback_point(tmp_path / "then")
    world.simulator.release(MODEL, epoch=2, sequence=2)
    world.device().refresh()
    go_back()
    with pytest.raises(UpdateRefusedError, match="rollback"):
        world.device().refresh()


def test_wiped_tuf_folder_lets_a_rollback_through_so_that_a_device_needs_a_floor_of_its_own(world, tmp_path):
    world.simulator.release(b"old", epoch=1, sequence=1)
    go_back = world.simulator.rollback_point(tmp_path / "then")
    world.simulator.release(MODEL, epoch=2, sequence=2, minimum_epoch=2)
    client = world.device()
    client.refresh()
    assert client.floor() == 2
    go_back()
    shutil.rmtree(world.folder / "device")
    client = world.device()
    client.refresh()
    assert client.floor() == 0


def test_fast_forward_recovery_with_lower_versions(world, tmp_path):
    """Stolen online keys sign versions far ahead; once they are replaced, devices take the true, lower ones again."""
    world.simulator.release(MODEL, epoch=2, sequence=2, minimum_epoch=2)
    go_back = world.simulator.rollback_point(tmp_path / "true")

    def far_ahead(contents):
        contents.timestamp.signed.version = contents.snapshot.signed.version = 10**6

    world.simulator.sign(far_ahead, ("snapshot",))
    client = world.device()
    client.refresh()
    go_back()
    with pytest.raises(UpdateRefusedError, match="rollback"):
        client.refresh()
    for role in ("timestamp", "snapshot"):
        world.simulator.repository.rotate(role, world.simulator.repository.folder / "keys")
    client.refresh()
    assert client.floor() == 2


def test_freeze(world):
    """Somebody serves the same metadata until they have expired."""
    name = world.simulator.release(MODEL, epoch=1, sequence=1)
    client = world.device()
    client.refresh()
    world.simulator.clock.move(days=-10)
    world.simulator.sign(lambda _: None, ())
    with pytest.raises(UpdateRefusedError, match="freeze"):
        client.refresh()
    assert names(client) == [name]


def test_expired_timestamp_is_refused_by_a_new_device_too(world):
    world.simulator.clock.move(days=-2)
    world.simulator.sign(lambda _: None, ())
    with pytest.raises(UpdateRefusedError, match="expired"):
        world.device().refresh()


@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_mix_and_match(world, role):
    """One file of an earlier state under the name of the one to come."""
    world.simulator.release(b"old", epoch=1, sequence=1)
    earlier = world.metadata(role).read_bytes()
    world.simulator.release(MODEL, epoch=2, sequence=2)
    world.metadata(role).write_bytes(earlier)
    with pytest.raises(UpdateRefusedError, match="parts that do not belong together"):
        world.device().refresh()


@pytest.mark.parametrize("end", ["timestamp.json", "snapshot.json", "targets.json"])
def test_endless_metadata(world, end):
    world.server.endless.add(end)
    with pytest.raises(UpdateRefusedError, match="endless data"):
        world.device(snapshot_bytes=50_000, targets_bytes=50_000).refresh()


def test_endless_target(world):
    name = world.simulator.release(MODEL, epoch=1, sequence=1)
    client, place = world.device(), world.folder / "slot" / "model.onnx"
    client.refresh()
    world.server.endless.add(".model.onnx")
    with pytest.raises(UpdateRefusedError, match="endless data"):
        client.download(name, place)
    assert not place.exists()
    assert sum(file.stat().st_size for file in place.parent.iterdir()) <= len(MODEL)


def test_replaced_root(world, tmp_path):
    """A root of somebody else's, with everything under it signed well by their keys."""
    theirs = type(world.simulator)(tmp_path / "theirs")
    theirs.release(b"theirs", epoch=9, sequence=9)
    client = world.device()
    world.server.folder = theirs.served
    with pytest.raises(UpdateRefusedError, match="a wrong key"):
        client.refresh()
    signed = Metadata[Root].from_bytes(theirs.root)
    signed.signed.version = 2
    for signer in theirs.repository.keys.signers("root", signed.signed):
        signed.sign(signer)
    (theirs.served / "metadata" / "2.root.json").write_bytes(signed.to_bytes())
    with pytest.raises(UpdateRefusedError, match="a wrong key"):
        client.refresh()


@pytest.mark.parametrize(
    "name",
    ["../../stolen", "/etc/passwd", "models/1-1/../../../x", "a\\b", "models//x", "C:x", "x" * 300, "a\nb", ".x"],
)
def test_path_traversal_in_a_target_name(world, name):
    """Signed by the releases' own keys, and still refused."""
    world.simulator.sign(
        lambda contents: contents.targets.signed.targets.update({name: TargetFile.from_data(name, b"x")})
    )
    client = world.device()
    client.refresh()
    with pytest.raises(UpdateRefusedError, match="path traversal"):
        client.releases()
    with pytest.raises(UpdateRefusedError, match="path traversal"):
        client.download(name, world.folder / "slot" / "x")
    assert not (world.folder / "slot").exists()


def test_the_online_key_of_rollouts_cannot_speak_of_models(world):
    def intrude(contents):
        for name in ("models/9-9/model.onnx", "rollout/deep/x"):
            contents.rollout.signed.targets[name] = TargetFile.from_data(name, b"x")

    world.simulator.sign(intrude, ("rollout",))
    client = world.device()
    client.refresh()
    assert client.releases() == []
    with pytest.raises(UpdateRefusedError, match="lists no target"):
        client.download("models/9-9/model.onnx", world.folder / "x")


def test_clock_set_back(world, monkeypatch):
    name = world.simulator.release(MODEL, epoch=1, sequence=1)
    client = world.device()
    client.refresh()
    monkeypatch.setattr(update, "_now", lambda: datetime.now(UTC) - timedelta(hours=2))
    with pytest.raises(UpdateRefusedError, match="set back"):
        client.refresh()
    with pytest.raises(UpdateRefusedError, match="set back"):
        world.device().refresh()
    assert names(client) == [name]
    monkeypatch.setattr(update, "_now", lambda: datetime.now(UTC) - timedelta(minutes=2))
    client.refresh()  # as a time server may do
    monkeypatch.setattr(update, "_now", lambda: datetime.now(UTC) - timedelta(hours=2))
    client.trust_clock()  # it was two hours ahead, says the owner
    client.refresh()


# ---------------------------------------------------------------------- what was signed and makes no sense


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda custom: custom.update(epoch=-1), "epoch"),
        (lambda custom: custom.update(surprise=1), "surprise"),
        (lambda custom: custom.pop("sequence"), "sequence"),
        (lambda custom: custom["self_test"].update(tolerance="much"), "tolerance"),
        (lambda custom: custom.update(epoch=7), "not what its name"),
        (lambda custom: custom["self_test"].update(target="models/1-1/other.npz"), "lists no target"),
        (lambda custom: custom["self_test"].update(target="../x"), "path traversal"),
        (lambda custom: custom.update(data="models/1-1/none.data"), "lists no target"),
    ],
)
def test_a_release_that_breaks_the_contract(world, change, said):
    name = world.simulator.release(MODEL, epoch=1, sequence=1)
    world.simulator.sign(lambda all_: change(all_.targets.signed.targets[name].custom["dlfd"]))
    client = world.device()
    client.refresh()
    with pytest.raises(UpdateRefusedError, match=said):
        client.releases()


@pytest.mark.parametrize("content", [b"{}", b"\xff", b'{"name":"r","sequence":1,"share":2.0,"state":"running"}'])
def test_a_rollout_that_breaks_the_contract_leaves_the_floor_readable(world, content):
    world.simulator.release(MODEL, epoch=2, sequence=1, minimum_epoch=2)
    name = "rollout/rollout.json"

    def change(contents):
        contents.rollout.signed.targets[name] = world.simulator.repository.store(name, content)

    world.simulator.sign(change, ("rollout",))
    client = world.device()
    client.refresh()
    with pytest.raises(UpdateRefusedError, match="is not valid"):
        client.rollout()
    assert client.floor() == 2


@pytest.mark.parametrize("kind", [Timestamp, Snapshot, Targets])
def test_metadata_of_another_role_under_a_roles_name(world, kind):
    file = world.simulator.served / "metadata" / "timestamp.json"
    file.write_bytes(Metadata(kind()).to_bytes())
    with pytest.raises(UpdateRefusedError):
        world.device().refresh()


@pytest.mark.parametrize("content", [b"", b"null", b"[" * 100_00, b"\x00\xff", b'{"signed": 3}'])
def test_damaged_metadata(world, content):
    (world.simulator.served / "metadata" / "timestamp.json").write_bytes(content)
    with pytest.raises(UpdateRefusedError, match="damaged"):
        world.device().refresh()


def test_a_trusted_root_that_is_none(world):
    with pytest.raises(UpdateRefusedError, match="root that this device trusts"):
        world.device(root=b"{}")
