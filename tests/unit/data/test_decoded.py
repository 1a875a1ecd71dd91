"""Decoded rows on the disk: decoded once, read batch by batch, overwritten, and whole or not there."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dlfd_fleet.data import decoded as module
from dlfd_fleet.data import image_digests, read_manifest
from dlfd_fleet.data.dataset import load_dataset, stored_dataset
from dlfd_fleet.data.decoded import DecodedRows
from dlfd_fleet.data.inputs import StoredInputs, joined
from dlfd_fleet.exceptions import DataError
from dlfd_fleet.model_input import ModelInput, image_input
from dlfd_fleet.unlearning import LabelledImages
from tests.small_disk import fill

SMALL = image_input(32)


def opened(manifest, rows, classes=("class-0", "class-1")):
    return stored_dataset(manifest, image_digests(manifest), rows, classes)


@pytest.fixture
def manifest(synthetic_faces):
    return read_manifest(synthetic_faces)


@pytest.fixture
def rows(tmp_path):
    return DecodedRows(tmp_path, SMALL)


def no_more_reading(monkeypatch, *allowed):
    read = module.read_pixels

    def refuse(file, wanted):
        assert file.name in allowed
        return read(file, wanted)

    monkeypatch.setattr(module, "read_pixels", refuse)


def test_images_are_decoded_once_and_are_those_that_memory_would_hold(manifest, rows, monkeypatch):
    in_memory = load_dataset(manifest, model_input=SMALL)
    first = opened(manifest, rows)
    no_more_reading(monkeypatch)
    again = opened(manifest, rows)
    for stored in (first, again):
        assert isinstance(stored.images, StoredInputs)
        assert torch.equal(stored.images[:], in_memory.images)
        assert torch.equal(stored.labels, in_memory.labels)
    assert torch.equal(again.of_split("").images[:], in_memory.images)


def test_a_new_image_is_decoded_beside_the_others_and_one_that_left_the_manifest_is_overwritten(
    manifest, rows, monkeypatch
):
    in_memory = load_dataset(manifest, model_input=SMALL)
    opened(replace(manifest, rows=manifest.rows[1:]), rows)
    no_more_reading(monkeypatch, manifest.file_of(manifest.rows[0]).name)
    whole = opened(manifest, rows).images[:]
    assert torch.equal(whole, in_memory.images)
    left = opened(replace(manifest, rows=manifest.rows[:2]), rows)
    assert torch.equal(left.images[:], whole[:2])
    content = rows.file.read_bytes()
    assert all((bytes(image.numpy()) in content) is (number < 2) for number, image in enumerate(whole))


def test_what_is_erased_is_nowhere_in_the_file_and_the_rest_stays_where_it_is(manifest, rows):
    images, digests = opened(manifest, rows).images, image_digests(manifest)
    before = images[:]
    rows.erase({digests[3], "ab" * 32})
    content = rows.file.read_bytes()
    assert bytes.fromhex(digests[3]) not in content
    assert bytes(before[3].numpy()) not in content
    kept = torch.arange(len(before)) != 3
    assert torch.equal(images[kept.nonzero()[:, 0]], before[kept])  # whoever has it open reads on
    assert not images[torch.tensor([3])].any()


def test_rows_of_another_input_and_of_killed_processes_go_with_a_purge(manifest, rows, tmp_path):
    other = DecodedRows(tmp_path, image_input(16))
    opened(manifest, other)
    opened(manifest, rows)
    (tmp_path / ".decoded-1.rows.2.new").touch()
    rows.purge(set())
    assert [file.name for file in tmp_path.glob("*decoded*")] == [rows.file.name]


def test_an_image_that_cannot_be_decoded_leaves_nothing_half_written(manifest, rows, tmp_path):
    manifest.file_of(manifest.rows[5]).write_bytes(b"no image")
    with pytest.raises(DataError, match=r"Cannot read the image .*: it is damaged or not an image"):
        opened(manifest, rows)
    manifest.file_of(manifest.rows[5]).unlink()
    with pytest.raises(DataError, match=r"Cannot read the image .*: No such file"):
        opened(manifest, rows)
    assert not list(tmp_path.glob("*decoded*"))


def test_a_disk_without_room_is_one_sentence(manifest, mount_disk):
    disk = mount_disk(1)
    fill(disk)
    with pytest.raises(DataError, match=r"^Cannot write .*rows: No space left on device; check space and rights\.$"):
        opened(manifest, DecodedRows(disk, SMALL))
    assert not list(disk.glob("*decoded*"))


def test_nobody_left_is_an_empty_set(manifest, rows):
    assert len(opened(replace(manifest, rows=()), rows).images[:]) == 0


@given(st.lists(st.integers(0, 9), max_size=12), st.lists(st.integers(0, 9), max_size=12))
def test_rows_of_a_file_are_selected_as_those_of_a_tensor(tmp_path_factory, first, second):
    numbers = np.random.default_rng(0).random((10, 2, 3), dtype=np.float32)
    file = DecodedRows(tmp_path_factory.mktemp("rows"), ModelInput(shape=(2, 3)))
    file.write((f"{number + 1:064x}", content) for number, content in enumerate(numbers))
    stored = StoredInputs(module.MappedInputs(file.file, ModelInput(shape=(2, 3))), np.arange(10))
    sets = [LabelledImages(images, torch.arange(10)) for images in (stored, torch.from_numpy(numbers))]
    rows = torch.tensor(first, dtype=torch.long)
    batches = [one.batch(rows, torch.device("cpu")) for one in sets]
    assert all(torch.equal(*pair) for pair in zip(*batches, strict=True))
    if first:
        below = torch.tensor([number % len(first) for number in second], dtype=torch.long)
        chosen = [one.select(rows).select(below) for one in sets]
        assert isinstance(chosen[0].images, StoredInputs)
        assert torch.equal(chosen[0].images[:], chosen[1].images)
        assert torch.equal(joined([one.images for one in chosen]), chosen[1].images.repeat(2, 1, 1))
    assert (stored.shape, stored.dtype) == ((10, 2, 3), torch.float32)
