"""The tutorial's app on data that is not the tutorial's: nothing of it is taken for something else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dlfd_fleet.components import Component
from dlfd_fleet.data import Row, write_manifest
from dlfd_fleet.data.loaded import LoadedRows
from dlfd_fleet.exceptions import DataError
from dlfd_fleet.model_input import image_input
from tests.command import environment_of

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "quickstart"


def image(file):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(file)


def dealt(folder, labels):
    rows = [Row(f"{number}.png", f"person-{number}", label, "", "") for number, label in enumerate(labels)]
    for row in rows:
        image(folder / "faces" / row.image)
    write_manifest(rows, folder / "faces" / "manifest.csv")
    command = [sys.executable, "-m", "quickstart.deal_photos", folder / "faces", folder / "photos", "1"]
    return subprocess.run(command, cwd=EXAMPLE, env=environment_of({}), capture_output=True, text=True, check=False)


def test_drawn_photos_are_dealt(tmp_path):
    done = dealt(tmp_path, ["class-1", "class-0"])
    assert (done.returncode, done.stderr) == (0, "")
    assert {file.name for file in (tmp_path / "photos").rglob("*.png")} == {"glasses-0.png", "no glasses-0.png"}


@pytest.mark.parametrize("labels", [("cat", "dog"), ("class-0", "class-1", "class-2"), ("class-0", "beard")])
def test_photos_of_other_classes_are_not_dealt_as_these(tmp_path, labels):
    done = dealt(tmp_path, labels)
    (sentence,) = done.stderr.splitlines()
    assert done.returncode != 0
    assert f"has the class '{sorted(set(labels) - {'class-0', 'class-1'})[0]}'" in sentence
    assert not (tmp_path / "photos").exists()


def test_a_photo_of_another_class_is_refused_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE))
    for name in ("glasses-0.png", "no glasses-0.png", "beard-0.png"):
        image(tmp_path / "anna" / name)
    loader = Component(name="quickstart.task:load_people", arguments={"data": str(tmp_path)})
    rows = LoadedRows(loader, image_input(32, low=-1.0), ("no glasses", "glasses"))
    with pytest.raises(DataError, match="the label 'beard' is outside the classes no glasses, glasses"):
        list(rows.rows())
    (tmp_path / "anna" / "beard-0.png").unlink()
    assert [one.row.label for one in rows.rows()] == ["glasses", "no glasses"]
