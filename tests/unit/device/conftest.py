"""A model as the coordinator exports it, for a device to load."""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn

from dlfd_fleet.export import export_onnx
from dlfd_fleet.model_input import image_input
from dlfd_fleet.models import ModelCard, WrappedClassifier
from dlfd_fleet.settings import ExportSettings


class Exported(NamedTuple):
    file: Path
    model: WrappedClassifier


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> Exported:
    torch.manual_seed(3)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 3)
    )
    with torch.no_grad():
        module[-1].weight.mul_(30.0)  # answers far enough apart to be told from one another
    model = WrappedClassifier(module, "3").eval()
    card = ModelCard(architecture="resnet18", classes=("[red]glasses", "none", "sun"), input=image_input(32), epoch=4)
    file = tmp_path_factory.mktemp("device") / "model.onnx"
    images = torch.zeros(0, 3, 32, 32, dtype=torch.uint8)
    export_onnx(model, card, file, version="12", settings=ExportSettings(), images=images)
    return Exported(file, model)
