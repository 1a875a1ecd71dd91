"""A device gets a small installation that works: no torch, no Flower, no MLflow."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dlfd_fleet.export import export_onnx
from dlfd_fleet.model_input import image_input
from dlfd_fleet.models import ModelCard, WrappedClassifier
from dlfd_fleet.settings import ExportSettings
from tests.tuf_repository import Coordinator, TufRepository, random_images

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """Install the device extra into a fresh environment; return the folder of its commands."""
    folder = tmp_path_factory.mktemp("device") / "venv"
    venv.create(folder)
    constraints = ROOT / "constraints.txt"
    pinned = ["-c", str(constraints)] if constraints.exists() else []
    # What is imported is compiled then; most of it never is.
    pip(folder / "bin", "install", "--quiet", "--no-compile", f"{ROOT}[device]", *pinned)
    return folder / "bin"


def pip(commands: Path, *words: str) -> str:
    """Let this environment's pip work on another one, which need not have its own."""
    return run(sys.executable, "-m", "pip", "--python", commands / "python", *words)


def run(*command: str | Path, cwd: Path | None = None) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_device_environment_has_nothing_of_the_training_side(installed):
    listed = json.loads(pip(installed, "list", "--format", "json"))
    names = {package["name"].lower() for package in listed}
    assert {"dlfd-fleet", "onnxruntime", "numpy"} <= names
    assert names.isdisjoint({"torch", "torchvision", "flwr", "mlflow", "scikit-learn", "sqlalchemy", "ray", "onnx"})


@pytest.mark.parametrize(("command", "page"), [("device", "how-to/device.md"), ("demo", "tutorials/demo.md")])
def test_the_page_that_an_error_names_can_be_read_without_a_checkout(installed, tmp_path, command, page):
    assert run(installed / "dlfd-fleet", "explain", command, cwd=tmp_path) == (ROOT / "docs" / page).read_text() + "\n"


def test_installed_command_predicts(installed, tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2))
    card = ModelCard(architecture="resnet18", classes=("glasses", "none"), input=image_input(32))
    images = torch.zeros(0, 3, 32, 32, dtype=torch.uint8)
    settings = ExportSettings()
    export_onnx(
        WrappedClassifier(network, "0"), card, tmp_path / "m.onnx", version="1", settings=settings, images=images
    )
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "face.png")

    out = run(installed / "dlfd-fleet-device", "predict", "m.onnx", "face.png", "--json", cwd=tmp_path)

    with torch.inference_mode():
        expected = network(torch.tensor(pixels).permute(2, 0, 1)[None] / 255.0).softmax(dim=1)[0]
    (row,) = json.loads(out)["predictions"]
    np.testing.assert_allclose([row["probabilities"][name] for name in card.classes], expected, atol=1e-5)


def test_installed_agent_updates_itself_and_predicts(installed, tmp_path):
    repository = TufRepository(tmp_path / "repository")
    repository.add_model(1, 1)
    repository.publish()
    Image.fromarray(random_images(1)[0]).save(tmp_path / "face.png")
    command = installed / "dlfd-fleet-device"
    with Coordinator(repository.folder).running() as coordinator:
        run(command, "init", "device", "--url", coordinator.url, "--root", repository.root_file, cwd=tmp_path)
        assert run(command, "once", "device", cwd=tmp_path) == "Runs version 1 (fp32), epoch 1.\n"
        assert len(coordinator.reports) == 1
    out = run(command, "predict", "--folder", "device", "face.png", "--json", cwd=tmp_path)
    assert json.loads(out)["version"] == "1"
