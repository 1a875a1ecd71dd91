"""The device's command: results on stdout, one sentence and exit code 2 for what the user can put right."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from dlfd_fleet.device.cli import main
from dlfd_fleet.device.inference import DeviceModel, read_image
from dlfd_fleet.model_input import image_input


def run(capfd, *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    out, err = capfd.readouterr()
    return ended.value.code, out, err


@pytest.fixture
def faces(tmp_path):
    generator = np.random.default_rng(2)
    files = [tmp_path / f"face{number}.png" for number in range(3)]
    for file in files:
        Image.fromarray(generator.integers(0, 256, (50, 40, 3), dtype=np.uint8)).save(file)
    return files


def test_json_has_the_probabilities_of_every_image(capfd, exported, faces):
    code, out, err = run(capfd, "predict", exported.file, *faces, "--json", "--threads", 2)
    document = json.loads(out)
    expected = DeviceModel(exported.file).predict(np.stack([read_image(file, image_input(32)) for file in faces]))
    assert (code, err) == (0, "")
    assert (document["version"], document["epoch"]) == ("12", 4)
    assert [row["image"] for row in document["predictions"]] == [str(file) for file in faces]
    for row, probabilities in zip(document["predictions"], expected, strict=True):
        np.testing.assert_allclose(list(row["probabilities"].values()), probabilities, atol=1e-6)
        assert row["probability"] == row["probabilities"][row["class"]] == max(row["probabilities"].values())


def test_table_has_a_row_for_every_image(capfd, exported, faces, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    code, out, err = run(capfd, "predict", exported.file, *faces)
    model = DeviceModel(exported.file)
    assert (code, err) == (0, "")
    for file in faces:
        probabilities = model.predict(read_image(file, image_input(32))[np.newaxis])[0]
        row = next(line for line in out.splitlines() if str(file) in line)
        assert model.classes[probabilities.argmax()] in row  # "[red]" is a name here, no markup
        assert f"{probabilities.max():.3f}" in row


def test_bad_image_among_good_ones_costs_only_itself(capfd, exported, faces):
    faces[1].write_bytes(faces[1].read_bytes()[:60])
    code, out, err = run(capfd, "predict", exported.file, *faces, "--json")
    assert code == 2
    assert [row["image"] for row in json.loads(out)["predictions"]] == [str(faces[0]), str(faces[2])]
    assert err == f"Cannot read the image {faces[1]}: it is damaged or not an image.\n"


def test_only_bad_images_print_no_empty_table(capfd, exported, tmp_path):
    code, out, err = run(capfd, "predict", exported.file, tmp_path / "none.png")
    assert (code, out) == (2, "")
    assert err == f"Cannot read the image {tmp_path / 'none.png'}: No such file or directory.\n"


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_file_name_that_is_no_unicode_is_shown_all_the_same(capfd, exported, faces, tmp_path, options):
    strange = tmp_path / os.fsdecode(b"\xff.png")
    faces[0].rename(strange)
    code, out, _ = run(capfd, "predict", exported.file, strange, *options)
    assert code == 0
    assert "udcff" in out


def test_show_prints_what_the_model_says_of_itself(capfd, exported, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, err = run(capfd, "show", exported.file)
    assert (code, err) == (0, "")
    for key, value in DeviceModel(exported.file).metadata.items():
        assert any(key in line and value in line for line in out.splitlines())


@pytest.mark.parametrize("command", [["show"], ["predict", "face.png"]])
def test_missing_model_is_one_sentence(capfd, tmp_path, command):
    code, out, err = run(capfd, command[0], tmp_path / "none.onnx", *command[1:])
    assert (code, out) == (2, "")
    problem = f"Cannot read the model {tmp_path / 'none.onnx'}: No such file or directory."
    assert err == f"{problem} See docs/how-to/device.md (dlfd-fleet explain device).\n"


def test_no_thread_is_refused(capfd, exported, faces):
    code, out, err = run(capfd, "predict", exported.file, faces[0], "--threads", 0)
    assert (code, out) == (2, "")
    assert "--threads" in err


def test_a_folder_of_another_user_is_one_sentence(capfd, closed_folder):
    code, out, err = run(capfd, "status", closed_folder)
    assert (code, out) == (2, "")
    file = closed_folder / "settings.json"
    assert err == f"You may not read or write {file}: run the command as the user who owns it.\n"


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://ada:geheim@host", "holds a password"),
        ("https://geheim@host", "holds a password"),
        ("http://[::1", "is no address"),
        ("http://host:99999", "is no address"),
        ("http://host:0", "is no address"),
        ("http://:80", "is no address"),
    ],
)
def test_an_address_that_cannot_be_or_holds_a_password_makes_no_device(capfd, tmp_path, url, why):
    code, out, err = run(capfd, "init", tmp_path / "device", "--url", url, "--root", __file__)
    assert code == 2
    assert why in err
    assert "geheim" not in out + err
    assert not list(tmp_path.iterdir())


def test_a_folder_that_no_disk_takes_is_one_sentence(capfd, tmp_path):
    code, _, err = run(capfd, "status", tmp_path / ("a" * 300))
    assert code == 2
    assert err.startswith("Cannot read or write")
    assert "File name too long" in err
