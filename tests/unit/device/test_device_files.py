"""The floor, the clock and what else a device keeps: damage and a clock that jumps do not take it back."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlfd_fleet.device import clock as clock_module
from dlfd_fleet.device.clock import Clock
from dlfd_fleet.device.durable import read_copies, write_durably, write_twice
from dlfd_fleet.device.floor import Floor
from dlfd_fleet.device.folder import DeviceFolder, DeviceSettings, init_device
from dlfd_fleet.device.inference import DeviceModel
from dlfd_fleet.device.self_test import run_self_test
from dlfd_fleet.exceptions import DeviceError
from tests.tuf_repository import SIZE, random_images, reference_answers, tiny_model


@settings(max_examples=30)
@given(
    steps=st.lists(
        st.tuples(st.integers(0, 9), st.sampled_from(["", "floor", "floor.copy"]), st.binary(max_size=80)), max_size=6
    )
)
def test_floor_only_rises_whatever_happens_to_one_of_its_files(tmp_path_factory, steps):
    folder = tmp_path_factory.mktemp("floor")
    Floor(folder / "floor").create()
    highest = 0
    for epoch, damaged, content in steps:
        Floor(folder / "floor").raise_to(epoch)
        highest = max(highest, epoch)
        if damaged:
            (folder / damaged).write_bytes(content)
        assert Floor(folder / "floor").read() == highest


def test_floor_of_a_running_process_outlives_both_files(tmp_path):
    floor = Floor(tmp_path / "floor")
    floor.create()
    floor.raise_to(4)
    for file in tmp_path.iterdir():
        file.unlink()
    assert floor.read() == 4
    floor.raise_to(0)
    assert Floor(tmp_path / "floor").read() == 4


def test_floor_that_cannot_be_written_holds_all_the_same(tmp_path, monkeypatch):
    floor = Floor(tmp_path / "floor")
    floor.create()
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space"):
        floor.raise_to(3)
    assert floor.read() == 3


def refuse(*_):
    raise OSError(28, "No space left on device")


def test_durable_write_replaces_all_of_a_file_or_nothing(tmp_path, monkeypatch):
    write_durably(tmp_path / "file", b"old and longer")
    write_durably(tmp_path / "file", b"new")
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space"):
        write_durably(tmp_path / "file", b"newer")
    assert (tmp_path / "file").read_bytes() == b"new"


@settings(max_examples=30)
@given(content=st.binary(min_size=1, max_size=50), cut=st.integers(0, 200), flip=st.integers(0, 200))
def test_damaged_copy_is_never_read(tmp_path_factory, content, cut, flip):
    file = tmp_path_factory.mktemp("twice") / "file"
    write_twice(file, content)
    assert read_copies(file) == [content, content]
    whole = file.read_bytes()
    file.write_bytes(whole[:cut] if cut < len(whole) else whole[:-1])
    assert read_copies(file) == [content]
    flipped = bytearray(whole)
    flipped[flip % len(whole)] ^= 1
    if flip % len(whole) != 64:  # the line's end has no meaning
        file.write_bytes(flipped)
        assert read_copies(file) == [content]


def set_clock(monkeypatch, now: datetime) -> None:
    class Set(datetime):
        @classmethod
        def now(cls, tz=None):
            return now.astimezone(tz)

    monkeypatch.setattr(clock_module, "datetime", Set)


def test_clock_does_not_go_back_in_a_process_nor_after_it(tmp_path, monkeypatch):
    start = datetime(2026, 5, 1, tzinfo=UTC)
    set_clock(monkeypatch, start)
    clock = Clock(tmp_path / "clock")
    set_clock(monkeypatch, start + timedelta(days=3))
    latest = clock.now()
    clock.keep()
    set_clock(monkeypatch, start - timedelta(days=300))
    assert latest <= clock.now() < latest + timedelta(minutes=1)
    assert latest <= Clock(tmp_path / "clock").now() < latest + timedelta(minutes=1)


def test_time_goes_on_though_the_clock_was_set_back(tmp_path, monkeypatch):
    start = datetime(2026, 5, 1, tzinfo=UTC)
    set_clock(monkeypatch, start)
    seconds = iter([100.0, 160.0, 400.0])
    monkeypatch.setattr(clock_module.time, "monotonic", lambda: next(seconds))
    clock = Clock(tmp_path / "clock")
    set_clock(monkeypatch, start - timedelta(days=1))
    assert clock.now() == start + timedelta(seconds=60)
    assert clock.now() == start + timedelta(seconds=300)


@pytest.mark.parametrize("content", [b"", b"yesterday", b"\xff\xfe"])
def test_damaged_clock_file_begins_at_the_device_clock(tmp_path, content):
    (tmp_path / "clock").write_bytes(content)
    assert abs(Clock(tmp_path / "clock").now() - datetime.now(UTC)) < timedelta(minutes=1)


def test_owner_may_say_that_the_clock_is_right(tmp_path, monkeypatch):
    set_clock(monkeypatch, datetime(2099, 1, 1, tzinfo=UTC))
    Clock(tmp_path / "clock").keep()
    monkeypatch.undo()
    assert Clock(tmp_path / "clock").now().year == 2099
    Clock(tmp_path / "clock").trust()
    assert Clock(tmp_path / "clock").now().year < 2099


# ---------------------------------------------------------------------- the self-test


@pytest.fixture
def model(tmp_path) -> DeviceModel:
    (tmp_path / "model.onnx").write_bytes(tiny_model("1", 1))
    return DeviceModel(tmp_path / "model.onnx")


def save(file: Path, **arrays) -> Path:
    np.savez(file, **arrays)
    return file


def test_model_passes_its_own_self_test_and_no_other_models(tmp_path, model):
    (tmp_path / "own.npz").write_bytes(reference_answers(tiny_model("1", 1)))
    run_self_test(model, tmp_path / "own.npz", 1e-4)
    (tmp_path / "other.npz").write_bytes(reference_answers(tiny_model("1", 1, seed=1)))
    with pytest.raises(DeviceError, match="failed its self-test: a probability differs by"):
        run_self_test(model, tmp_path / "other.npz", 1e-4)


def test_answers_that_are_no_numbers_fail(tmp_path, model):
    expected = np.full((2, 3), np.nan, np.float32)
    file = save(tmp_path / "t.npz", images=random_images(2), probabilities=expected)
    with pytest.raises(DeviceError, match="failed its self-test"):
        run_self_test(model, file, 1.0)


@pytest.mark.parametrize(
    ("images", "probabilities", "words"),
    [
        (random_images(2), np.zeros((1, 3), np.float32), "not this model's self-test"),
        (random_images(0), np.zeros((0, 3), np.float32), "not this model's self-test"),
        (np.zeros((1, SIZE, SIZE), np.uint8), np.zeros((1, 3), np.float32), "give uint8 of shape"),
        (np.array([{"a": 1}], dtype=object), np.zeros((1, 3), np.float32), "is damaged"),
    ],
    ids=["other-count", "empty", "other-shape", "pickled"],
)
def test_self_test_that_is_none_is_refused(tmp_path, model, images, probabilities, words):
    with pytest.raises(DeviceError, match=words):
        run_self_test(model, save(tmp_path / "t.npz", images=images, probabilities=probabilities), 0.1)


def test_self_test_that_swells_is_refused_before_it_is_unpacked(tmp_path, model):
    file = tmp_path / "t.npz"
    np.savez_compressed(file, images=np.zeros((400_000, SIZE, SIZE, 3), np.uint8), probabilities=np.zeros((1, 3)))
    assert file.stat().st_size < 2**20
    with pytest.raises(DeviceError, match="unpacks to"):
        run_self_test(model, file, 0.1)


# ---------------------------------------------------------------------- the folder


@pytest.fixture
def made(tmp_path) -> Path:
    from tests.tuf_repository import TufRepository

    root = TufRepository(tmp_path / "repository").root_file
    init_device(tmp_path / "device", DeviceSettings(url="http://127.0.0.1:9"), root)
    return tmp_path / "device"


def test_key_of_a_device_is_readable_by_its_owner_alone(made):
    assert made.stat().st_mode & 0o777 == 0o700
    assert (made / "device.key").stat().st_mode & 0o777 == 0o600


def test_public_key_says_which_device_it_is(made):
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from securesystemslib.signer import SSlibKey

    key = SSlibKey.from_crypto(load_pem_public_key((made / "device.pub").read_bytes()))
    assert key.keyid == DeviceFolder(made).device


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("settings.json", b"{", "settings.json: the file"),
        ("settings.json", b'{"url": "ftp://x"}', "settings.json: url"),
        ("settings.json", b'{"url": "http://x", "thread": 1}', "settings.json: thread"),
        ("device.key", b"", "device.key is damaged"),
        ("device.key", None, "Cannot read .*device.key"),
        ("root.json", None, "Cannot read .*root.json"),
        ("settings.json", b'{"url": "http://x", "threads": ' + b"9" * 5000 + b"}", "settings.json: the file"),
        ("settings.json", b'{"url": "http://x", "threads": 100000}', "settings.json: threads"),
        ("settings.json", b'{"url": "http://x", "lease_days": 1e308}', "settings.json: lease_days"),
        ("settings.json", b'{"url": "http://x", "poll_seconds": 1e308}', "settings.json: poll_seconds"),
        ("settings.json", b"[" * 10**5, "settings.json: the file"),
        ("settings.json", None, "no device's folder: make one with"),
    ],
)
def test_folder_that_cannot_be_used_is_one_sentence(made, name, content, words):
    (made / name).unlink()
    if content is not None:
        (made / name).write_bytes(content)
    with pytest.raises(DeviceError, match=words):
        DeviceFolder(made)


def test_folder_is_not_made_over_another_or_with_a_root_that_is_none(made, tmp_path):
    settings = DeviceSettings(url="http://127.0.0.1:9")
    with pytest.raises(DeviceError, match="not empty"):
        init_device(made, settings, made / "root.json")
    (tmp_path / "bad.json").write_bytes(b"{}")
    with pytest.raises(DeviceError, match="root"):
        init_device(tmp_path / "new", settings, tmp_path / "bad.json")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bad.json", "device", "repository"]
