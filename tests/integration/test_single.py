"""`dlfd-fleet unlearn`: one model in, one model out, with its report; and every mistake one sentence."""

import json
import subprocess
import sys

import pytest
import torch

from dlfd_fleet.data import assign_people, read_manifest, write_manifest
from dlfd_fleet.models import ModelCard, build, load_model, save_model

QUICK = ("--set", "unlearning.distancing_steps=2", "--set", "unlearning.repair_steps=2", "--set", "audit.resamples=200")


def unlearn(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "dlfd_fleet", "unlearn", *map(str, arguments), *QUICK],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def world(tmp_path, synthetic_faces):
    manifest = assign_people(read_manifest(synthetic_faces), validation_people=2, test_people=3, sites=1, seed=0)
    faces = synthetic_faces.with_name("dealt.csv")
    write_manifest(manifest.rows, faces)
    torch.manual_seed(0)
    card = ModelCard(architecture="mobilenet_v3_small", classes=manifest.classes, image_size=32)
    save_model(build(card), card, tmp_path / "model")
    person = next(row.identity for row in manifest.rows if row.split == "train")
    return tmp_path, faces, person


def test_a_model_comes_out_with_its_lineage_and_a_report(world):
    folder, faces, person = world
    done = unlearn("--model", folder / "model", "--data", faces, "--forget", person, "--output", folder / "out")
    assert done.returncode in (0, 1), done.stderr  # an untrained model has nothing to forget: no success is expected
    assert "Model and report" in done.stdout
    model, card = load_model(folder / "out")
    report = json.loads((folder / "out" / "report.json").read_text())
    assert card.kind == "unlearned"
    assert card.parent == report["parent"]
    assert report["forgotten_people"] == 1
    assert report["verdict"]["outcome"] in ("PASS", "FAIL", "INCONCLUSIVE")
    assert 0.0 <= report["relearned"]["mia_auc"]["value"] <= 1.0
    assert "MIA AUC after further training" in done.stdout
    assert done.returncode == (0 if report["success"] else 1)
    page = (folder / "out" / "report.html").read_text()
    assert "was trained on as any later training would, and attacked again: AUC" in page
    assert person not in page
    assert person not in (folder / "out" / "report.json").read_text()
    assert "not with" in " ".join(page.split()) or "Nothing here proves" in page
    assert model is not None


def test_another_registered_method_does_it_and_the_report_names_it(world):
    folder, faces, person = world
    given = ("--model", folder / "model", "--data", faces, "--forget", person, "--output", folder / "out")
    done = unlearn(*given, "--method", "not", "--set", "erasure.relearning_rounds=0", "--set", "unlearning.epochs=1")
    assert done.returncode in (0, 1), done.stderr
    report = json.loads((folder / "out" / "report.json").read_text())
    assert (report["method"], report["rounds"]) == ("not", 0)
    assert " by not," in (folder / "out" / "report.html").read_text()


def test_mistakes_end_with_2_and_leave_nothing(world):
    folder, faces, person = world
    out = folder / "out"
    given = ("--model", folder / "model", "--output", out)
    for arguments, words in (
        ((*given, "--data", faces, "--forget", "nobody"), "no training images of 'nobody'"),
        ((*given, "--data", faces.with_name("manifest.csv"), "--forget", person), "names no validation people"),
        (("--model", folder, "--output", out, "--data", faces, "--forget", person), "Cannot read the model"),
        (("--model", folder / "model", "--output", folder, "--data", faces, "--forget", person), "is not empty"),
        ((*given, "--data", faces, "--forget", person, "--method", "dlfdd"), "no method 'dlfdd'; there are dlfd,"),
    ):
        done = unlearn(*arguments)
        assert done.returncode == 2, done.stdout
        assert words in " ".join(done.stderr.split())
        assert not out.exists()
