from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dlfd_fleet.data import Manifest, Row, read_manifest
from dlfd_fleet.data.dataset import augment, load_dataset, read_image
from dlfd_fleet.device.inference import read_image as read_image_on_device
from dlfd_fleet.exceptions import DataError
from dlfd_fleet.model_input import image_input


@pytest.fixture
def awkward_image(tmp_path):
    """Not square, with transparency, and lying on its side by its EXIF data."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 70, 4), dtype=np.uint8)
    image = Image.fromarray(pixels, "RGBA")
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "face.png", exif=exif)
    return tmp_path / "face.png"


def test_sites_and_devices_see_the_same_pixels(awkward_image):
    at_site = read_image(awkward_image, image_input(48))
    on_device = read_image_on_device(awkward_image, image_input(48))
    assert at_site.shape == (3, 48, 48)
    assert np.array_equal(at_site.permute(1, 2, 0).numpy(), on_device)


def test_selections_keep_images_labels_and_people_together(synthetic_faces):
    manifest = read_manifest(synthetic_faces)
    faces = load_dataset(manifest, model_input=image_input(32))
    chosen = faces.of_people({"person-00003"})
    assert set(chosen.identities) == {"person-00003"}
    assert len(chosen) + len(faces.without_people({"person-00003"})) == len(faces)
    for number, row in enumerate(chosen.rows):
        assert faces.classes[int(chosen.labels[number])] == row.label
        assert torch.equal(chosen.images[number], read_image(manifest.root / row.image, image_input(32)))


def test_the_order_of_classes_is_the_models(synthetic_faces):
    faces = load_dataset(read_manifest(synthetic_faces), model_input=image_input(32), classes=("class-1", "class-0"))
    assert [faces.classes[label] for label in faces.labels.tolist()] == [row.label for row in faces.rows]


def test_a_label_outside_the_classes_and_a_damaged_image_are_refused(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG but no more")
    manifest = Manifest((Row("broken.png", "anna", "hat"),), tmp_path)
    with pytest.raises(DataError, match="label 'hat'"):
        load_dataset(manifest, model_input=image_input(32), classes=("yes", "no"))
    with pytest.raises(DataError, match="it is damaged or not an image"):
        load_dataset(manifest, model_input=image_input(32))
    with pytest.raises(DataError, match=r"none\.png: No such file"):
        load_dataset(Manifest((Row("none.png", "anna", "hat"),), tmp_path), model_input=image_input(32))


@given(seed=st.integers(0, 1000), shift=st.integers(0, 6), light=st.floats(0, 1), flip=st.floats(0, 1))
def test_augmented_images_stay_images(seed, shift, light, flip):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(3, 3, 16, 16, generator=generator)
    changed = augment(images, flip=flip, shift=shift, light=light, generator=generator)
    assert changed.shape == images.shape
    assert float(changed.min()) >= 0.0
    assert float(changed.max()) <= 1.0


def test_augmentation_mirrors_and_shifts():
    images = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    assert torch.equal(augment(images, flip=1.0, shift=0, light=0.0, generator=generator), images.flip(3))
    assert torch.equal(augment(images, flip=0.0, shift=0, light=0.0, generator=generator), images)
    shifted = augment(images, flip=0.0, shift=2, light=0.0, generator=generator)
    # The middle of each shifted image is found, whole, somewhere within two pixels of its place.
    for before, after in zip(images, shifted, strict=True):
        middle = after[:, 2:6, 2:6]
        windows = [before[:, r : r + 4, c : c + 4] for r in range(5) for c in range(5)]
        assert any(torch.equal(middle, window) for window in windows)
    assert not torch.equal(shifted, images)


def test_labels_of_an_image_are_a_row_of_0_and_1(synthetic_faces):
    cells = ["hat;glasses", "none", "Glasses", "hat"]
    manifest = read_manifest(synthetic_faces)
    rows = tuple(replace(row, label=cell) for row, cell in zip(manifest.rows, cells, strict=False))
    manifest = replace(manifest, rows=rows)
    faces = load_dataset(manifest, model_input=image_input(32), multi_label=True)
    assert faces.classes == manifest.labels == ("glasses", "hat")
    assert faces.labels.tolist() == [[1, 1], [0, 0], [1, 0], [0, 1]]
    assert faces.class_images().tolist() == [2, 2]
    assert faces.class_weights().tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert faces.select([0]).class_weights().tolist() == [[1.0, 1.0], [1.0, 1.0]]  # one value alone weighs nothing more
    with pytest.raises(DataError, match="has the label 'hat'; the classes are glasses, scarf"):
        load_dataset(manifest, model_input=image_input(32), classes=("glasses", "scarf"), multi_label=True)
