from __future__ import annotations

import zipfile

import numpy as np
import pytest
from PIL import Image

from dlfd_fleet.data import celeba_manifest, check_manifest, open_source, orl_manifest, read_manifest, synthesize
from dlfd_fleet.data.dataset import load_dataset
from dlfd_fleet.exceptions import DataError
from dlfd_fleet.model_input import image_input
from dlfd_fleet.settings import DataSettings


def test_the_orl_faces_are_all_there():
    manifest = orl_manifest()
    assert len(manifest.rows) == 400
    assert len(manifest.identities) == 40
    assert sum(row.label == "eyewear" for row in manifest.rows) == 119
    with Image.open(manifest.root / manifest.rows[0].image) as image:
        assert image.size == (92, 112)


@pytest.fixture
def celeba(tmp_path):
    """CelebA's files as torchvision finds them after a download, with six faces."""
    folder = tmp_path / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    names = [f"{number:06d}.jpg" for number in range(1, 7)]
    for name in names:
        Image.fromarray(np.zeros((218, 178, 3), np.uint8)).save(folder / "img_align_celeba" / name)
    attributes = " ".join(["Eyeglasses", "Smiling"])
    lines = [f"{name} {1 if number % 2 else -1} -1" for number, name in enumerate(names)]
    (folder / "list_attr_celeba.txt").write_text("\n".join([str(len(names)), attributes, *lines, ""]))
    (folder / "identity_CelebA.txt").write_text("".join(f"{name} {number // 2}\n" for number, name in enumerate(names)))
    (folder / "list_eval_partition.txt").write_text("".join(f"{name} 0\n" for name in names))
    boxes = "".join(f"{name} 1 1 1 1\n" for name in names)
    (folder / "list_bbox_celeba.txt").write_text(f"{len(names)}\nimage_id x_1 y_1 width height\n{boxes}")
    marks = "".join(f"{name} 1 1\n" for name in names)
    (folder / "list_landmarks_align_celeba.txt").write_text(f"{len(names)}\nlefteye_x lefteye_y\n{marks}")
    with zipfile.ZipFile(folder / "img_align_celeba.zip", "w") as archive:
        archive.writestr("img_align_celeba/000001.jpg", b"")
    return tmp_path


def test_celeba_becomes_a_manifest_of_identities(celeba, monkeypatch):
    from torchvision.datasets import CelebA

    # The real archive's checksum cannot be had without the real archive.
    monkeypatch.setattr(CelebA, "_check_integrity", lambda self: True)
    manifest = celeba_manifest(celeba, "Eyeglasses")
    assert manifest.identities == ("0", "1", "2")
    assert [row.label for row in manifest.rows[:2]] == ["no eyeglasses", "eyeglasses"]
    assert len(load_dataset(manifest, model_input=image_input(32))) == 6
    with pytest.raises(DataError, match="no attribute 'Hat'; it has Eyeglasses, Smiling"):
        celeba_manifest(celeba, "Hat")


def test_a_face_set_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(DataError, match="CelebA is not in"):
        open_source(DataSettings(source="celeba", root=tmp_path))
    with pytest.raises(DataError, match="There is no manifest"):
        open_source(DataSettings(source="manifest", manifest=tmp_path / "none.csv"))


def test_synthetic_faces_are_the_same_for_the_same_seed(tmp_path, silent):
    files = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        file = synthesize(
            tmp_path / name, people=3, images_per_person=2, image_size=32, classes=3, seed=seed, progress=silent
        )
        assert check_manifest(file, None, None, silent) == []
        files.append(file)
    pixels = [load_dataset(read_manifest(file), model_input=image_input(32)).images.numpy() for file in files]
    assert np.array_equal(pixels[0], pixels[1])
    assert not np.array_equal(pixels[0], pixels[2])


def test_synthetic_faces_never_overwrite(tmp_path, silent):
    (tmp_path / "precious.txt").write_text("here")
    with pytest.raises(DataError, match="not empty"):
        synthesize(tmp_path, people=1, images_per_person=1, image_size=32, classes=2, seed=0, progress=silent)


def test_synthetic_mistakes_are_as_many_as_asked_for_and_change_no_image(tmp_path, silent):
    manifests = [
        read_manifest(
            synthesize(
                tmp_path / str(share),
                people=60,
                images_per_person=5,
                image_size=32,
                classes=2,
                seed=1,
                progress=silent,
                mislabelled=share,
            )
        )
        for share in (0.0, 0.2)
    ]
    right, wrong = (np.array([row.label for row in manifest.rows]) for manifest in manifests)
    assert 0.13 < (right != wrong).mean() < 0.27
    pixels = [load_dataset(manifest, model_input=image_input(32)).images.numpy() for manifest in manifests]
    assert np.array_equal(*pixels)


def test_faint_synthetic_eyewear_leaves_less_of_itself_in_the_pixels(tmp_path, silent):
    spreads = []
    for contrast in (1.0, 0.3):
        faces = tmp_path / str(contrast)
        options = {"people": 10, "images_per_person": 4, "image_size": 32, "classes": 2, "seed": 1}
        file = synthesize(faces, **options, progress=silent, contrast=contrast)
        data = load_dataset(read_manifest(file), model_input=image_input(32))
        means = [data.images[data.labels == label].float().mean(dim=0) for label in (0, 1)]
        spreads.append(float((means[0] - means[1]).abs().max()))
    assert spreads[1] < 0.9 * spreads[0]
