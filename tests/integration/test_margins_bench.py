"""The comparison by margins on drawn faces: real trainings, real methods; run twice, it does nothing twice."""

from __future__ import annotations

import csv
import io

import pytest
from rich.console import Console

from dlfd_fleet.data import synthesize
from dlfd_fleet.progress import ConsoleProgress
from tests.command import run_command

TINY = {
    "data.image_size": 32,
    "data.validation_people": 3,
    "data.test_people": 3,
    "model.architecture": "mobilenet_v3_small",
    "bench.epochs": 1,
    "bench.batch_size": 8,
    "bench.jobs": 1,
    "references.models": 2,
    "unlearning.distancing_steps": 1,
    "unlearning.repair_epochs": 0.3,
    "unlearning.max_rounds": 1,
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("margins")
    silent = ConsoleProgress(Console(file=io.StringIO()))
    synthesize(folder / "faces", people=14, images_per_person=3, image_size=32, classes=2, seed=0, progress=silent)
    flags = [part for key, value in TINY.items() for part in ("--set", f"{key}={value}")]
    arguments = ("bench", "margins", "--data", folder / "faces" / "manifest.csv", "--models", 3, "--budget", "9m")
    arguments += ("--methods", "fine-tune,dlfd+references", "--set", f"state_folder={folder / 'state'}", *flags)
    return folder / "state" / "bench-margins", arguments, run_command(*arguments)


def test_every_kind_of_model_is_compared_with_retrained_ones(measured):
    folder, _, done = measured
    assert done.returncode == 0, done.stderr
    with (folder / "table.csv").open() as stream:
        rows = {row["method"]: row for row in csv.DictReader(stream)}
    assert list(rows) == ["original", "retrained again", "fine-tune", "dlfd+references"]
    for row in rows.values():
        assert row["models"] == "3"
        for role in ("forget", "retain", "test"):
            assert 0.0 <= float(row[f"klom_{role}"]) <= float(row[f"klom_{role}_95"])
        assert 0.0 <= float(row["told_apart_image"]) <= 1.0
    for word in ("KLoM", "U-LiRA", "retrained again"):
        assert word in done.stdout


def test_what_is_made_is_not_made_again(measured):
    folder, arguments, _ = measured
    made = {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.suffix in (".npz", ".safetensors")}
    assert len([file for file in made if file.suffix == ".npz"]) == 5 * 3
    again = run_command(*arguments)
    assert again.returncode == 0, again.stderr
    assert {file: file.stat().st_mtime_ns for file in made} == made


def test_too_few_models_and_unknown_methods_are_refused_in_a_sentence():
    few = run_command("bench", "margins", "--models", 2)
    assert few.returncode == 2
    assert few.stderr.splitlines()[-1].startswith("Error: --models is 2; choose from 3 to 120.")
    unknown = run_command("bench", "margins", "--methods", "nobody")
    assert unknown.returncode == 2
    assert "nobody" in unknown.stderr
