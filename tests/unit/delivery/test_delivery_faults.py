"""What may break between the coordinator and a device: the network, the disk, the server; each test is one fault."""

from __future__ import annotations

import resource
import shutil

import pytest

from dlfd_fleet.device import update
from dlfd_fleet.device.download import PART_SUFFIX
from dlfd_fleet.exceptions import UpdateUnreachableError

MODEL = bytes(range(256)) * 40


def files_in(folder):
    return [file.name for file in folder.iterdir()]


@pytest.mark.parametrize("ranges", [True, False])
def test_truncated_download_is_resumed(world, ranges):
    name = world.simulator.release(MODEL, epoch=1, sequence=1)
    client, place = world.device(), world.folder / "slot" / "model.onnx"
    client.refresh()
    world.server.breaks_off[".model.onnx"] = 4000
    with pytest.raises(UpdateUnreachableError):
        client.download(name, place)
    assert not place.exists()
    assert place.with_name(place.name + PART_SUFFIX).stat().st_size == 4000
    world.server.ranges = ranges
    world.device().refresh()
    client.download(name, place)
    assert place.read_bytes() == MODEL
    assert world.server.ranges_asked == ["bytes=4000-"]


@pytest.mark.parametrize("left", [b"of another model", MODEL[:-1] + b"!", MODEL + b"more", b""])
def test_what_an_earlier_download_left_does_no_harm(world, left):
    name = world.simulator.release(MODEL, epoch=1, sequence=1)
    client, place = world.device(), world.folder / "slot" / "model.onnx"
    client.refresh()
    place.parent.mkdir(parents=True)
    place.with_name(place.name + PART_SUFFIX).write_bytes(left)
    client.download(name, place)
    assert place.read_bytes() == MODEL
    assert files_in(place.parent) == ["model.onnx"]


def test_disk_full(world):
    """The kernel refuses to let the file grow, as it does on a full disk."""
    name = world.simulator.release(MODEL, epoch=1, sequence=1)
    client, place = world.device(), world.folder / "slot" / "model.onnx"
    client.refresh()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(UpdateUnreachableError, match="cannot be used"):
            client.download(name, place)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert files_in(place.parent) == []
    client.download(name, place)
    assert place.read_bytes() == MODEL


def test_no_room_is_known_before_anything_is_fetched(world, monkeypatch):
    name = world.simulator.release(MODEL, epoch=1, sequence=1)
    client = world.device()
    client.refresh()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 100))
    with pytest.raises(UpdateUnreachableError, match="make room"):
        client.download(name, world.folder / "slot" / "model.onnx")
    assert not any(path.endswith(".model.onnx") for path in world.server.asked)


def test_a_server_that_falls_silent(world):
    world.server.silent.add("timestamp.json")
    with pytest.raises(UpdateUnreachableError, match="does not answer"):
        world.device(silence_seconds=0.05).refresh()


def test_a_server_that_is_not_there(world):
    client = world.device()
    client.refresh()
    world.server.shutdown()
    world.server.server_close()
    with pytest.raises(UpdateUnreachableError, match="does not answer"):
        client.refresh()


def test_a_file_that_is_not_there(world):
    name = world.simulator.release(MODEL, epoch=1, sequence=1)
    client = world.device()
    client.refresh()
    shutil.rmtree(world.simulator.served / "targets")
    with pytest.raises(UpdateUnreachableError, match="404"):
        client.download(name, world.folder / "slot" / "model.onnx")


def test_a_folder_that_cannot_be_used(world):
    world.folder.mkdir()
    (world.folder / "device").write_text("a file")
    with pytest.raises(UpdateUnreachableError, match="cannot be used"):
        world.device()


def test_an_address_that_is_none(world, tmp_path):
    with pytest.raises(UpdateUnreachableError, match="must begin with"):
        update.UpdateClient(tmp_path, "file:///etc", world.simulator.root)
