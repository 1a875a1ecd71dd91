"""A model of labels as files of every format, and what devices say of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from dlfd_fleet.device.answering import Loaded
from dlfd_fleet.device.cli import app as device
from dlfd_fleet.device.contract import Release, SelfTest
from dlfd_fleet.device.inference import DeviceModel
from dlfd_fleet.device.inference_protocol import model_metadata, read_request, write_response
from dlfd_fleet.export import calibrate, export_onnx, export_variant, prepare
from dlfd_fleet.model_input import image_input
from dlfd_fleet.models import ModelCard, WrappedClassifier
from dlfd_fleet.settings import ExportSettings

SIZE = 32


def exported(folder: Path, classes: tuple[str, ...], form: str = "fp32", *, multi_label: bool = True):
    """Export a small network of these labels; return the report, the network, and images with their labels."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.LazyLinear(len(classes)),
    )
    network(torch.zeros(1, 3, SIZE, SIZE))
    with torch.no_grad():
        network[-1].weight.mul_(30.0)
    model = WrappedClassifier(network, "3").eval()
    card = ModelCard(architecture="resnet18", classes=classes, input=image_input(SIZE), multi_label=multi_label)
    images = torch.randint(0, 256, (24, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    labels = (network(images / 255.0) > 0).to(torch.uint8)
    labels[0] = 1 - labels[0]
    if not multi_label:
        labels = network(images / 255.0).argmax(dim=1)
    settings, file = ExportSettings(int8_agreement=0.9, int8_accuracy_drop=0.1), folder / "model.onnx"
    report = export_onnx(model, card, file, version="1", settings=settings, images=images, labels=labels)
    if form != "fp32":
        ranges = calibrate(prepare(file.read_bytes()), card.input.on_device(images.numpy()))
        report = export_variant(
            model, card, file, form=form, settings=settings, images=images, labels=labels, ranges=ranges
        )
    return report, network, images, labels


@pytest.mark.parametrize("form", ["fp32", "fp16", "int8", "ort"])
def test_every_format_says_which_labels_apply(tmp_path, form):
    report, network, images, _ = exported(tmp_path, ("hat", "glasses", "scarf"), form)
    model = DeviceModel(report.file)
    said = model.predict(np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy()))
    np.testing.assert_allclose(said, torch.sigmoid(network(images / 255.0)).detach().numpy(), atol=0.1)
    assert model.multi_label
    assert report.parity.agreement >= 0.9
    assert report.parity.torch_accuracy == pytest.approx(1.0 - 1.0 / len(images))  # of all labels, not of whole images
    names = [[name for name, one in zip(model.classes, row, strict=True) if one >= 0.5] for row in said]
    assert model.named(said) == [";".join(row) or "none" for row in names]


def test_labels_are_told_apart_in_single_precision_as_classes_are(tmp_path):
    """A network's own sigmoids may well be in half precision."""
    report, *_ = exported(tmp_path, ("hat", "glasses"), "fp16")
    graph = onnx.load(report.file).graph
    made = {name: node for node in graph.node for name in node.output}
    node = made["probabilities"]
    while node.op_type == "Cast":
        node = made[node.input[0]]
    before = made[node.input[0]]
    assert (node.op_type, before.op_type, before.attribute[0].i) == ("Sigmoid", "Cast", onnx.TensorProto.FLOAT)
    assert any(other.op_type == "Sigmoid" and made[other.input[0]].op_type != "Cast" for other in graph.node)


@pytest.mark.parametrize("labels", [1, 100])
def test_one_label_and_a_hundred_are_answered_by_name(tmp_path, labels):
    classes = tuple(f"label {number}" for number in range(labels))
    model = DeviceModel(exported(tmp_path, classes)[0].file)
    said = model.predict(np.zeros((1, SIZE, SIZE, 3), np.uint8))
    assert said.shape == (1, labels)
    assert set(model.named(np.ones((1, labels)))[0].split(";")) == set(classes)


def test_a_thousand_classes_are_answered_by_one_name_each(tmp_path):
    classes = tuple(f"class {number:03d}" for number in range(1000))
    report, _, images, labels = exported(tmp_path, classes, multi_label=False)
    model = DeviceModel(report.file)
    said = model.predict(np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy()))
    assert model.named(said) == [classes[number] for number in labels.tolist()]
    loaded = Loaded(model, RELEASE)
    assert len(json.loads(model_metadata(loaded)["parameters"]["classes"])) == 1000


RELEASE = Release(
    version="1",
    format="fp32",
    epoch=0,
    minimum_epoch=0,
    sequence=1,
    self_test=SelfTest(target="t", tolerance=0.1),
)


def test_an_answer_over_the_network_has_the_names_of_its_labels(tmp_path):
    model = DeviceModel(exported(tmp_path, ("hat", "glasses"))[0].file)
    loaded, images = Loaded(model, RELEASE), np.zeros((2, SIZE, SIZE, 3), np.uint8)
    assert model_metadata(loaded)["parameters"]["multi_label"] is True
    tensor = {"name": "images", "datatype": "UINT8", "shape": list(images.shape), "data": images.tolist()}
    request = read_request(json.dumps({"inputs": [tensor]}).encode(), None, model)
    body, _ = write_response(request, loaded, np.array([[0.7, 0.6], [0.1, 0.2]], np.float32))
    assert json.loads(json.loads(body)["parameters"]["answers"]) == ["hat;glasses", "none"]


def test_a_table_has_a_line_for_every_label_that_applies(tmp_path, monkeypatch):
    from PIL import Image

    file = exported(tmp_path, ("hat", "glasses"))[0].file
    Image.new("RGB", (SIZE, SIZE)).save(tmp_path / "face.png")
    for said, lines in (([0.9, 0.6], ["hat", "0.900", "glasses", "0.600"]), ([0.2, 0.1], ["none"])):
        monkeypatch.setattr(DeviceModel, "predict", lambda *_, said=said: np.array([said], np.float32))
        shown = CliRunner().invoke(device, ["predict", str(file), str(tmp_path / "face.png")]).stdout
        assert all(line in shown for line in lines)
