"""Networks of a factory's: what is built, what is refused and why, and that a device says what torch says."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from dlfd_fleet.components import name_of
from dlfd_fleet.device.inference import DeviceModel
from dlfd_fleet.exceptions import DeviceError, ModelFileError
from dlfd_fleet.export import calibrate, export_onnx, export_variant, no_inputs, prepare
from dlfd_fleet.model_input import ModelInput, image_input
from dlfd_fleet.models import (
    CARD_FILE,
    ModelCard,
    WrappedClassifier,
    build,
    load_model,
    permit,
    save_model,
    state_arrays,
)
from dlfd_fleet.settings import ExportSettings
from dlfd_fleet.unlearning import LabelledImages, UnlearningProblem, dlfd, predict_probabilities
from tests import own_fleet

GREY = image_input(32, channels=1, low=-1.0, high=1.0)
VIT = "torchvision.models.vision_transformer:VisionTransformer"
VIT_ARGUMENTS = {
    "image_size": 32,
    "patch_size": 8,
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 32,
    "mlp_dim": 64,
    "num_classes": 3,
}


def mlp(width: int = 16) -> nn.Module:
    return nn.Sequential(nn.Linear(7, width), nn.ReLU(), nn.Linear(width, 3))


def frozen_mlp() -> nn.Module:
    return mlp().requires_grad_(False)


def no_module() -> str:
    return "a network"


def failing() -> nn.Module:
    raise ValueError("no such width")


class TwoAnswers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(7, 3)

    def forward(self, inputs):
        return self.layer(inputs), inputs


class Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(7, 3)

    def forward(self, inputs):
        return self.layer(inputs).detach()


class Sums(nn.Module):
    """One answer for all inputs together."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(7, 3)

    def forward(self, inputs):
        return self.layer(inputs).sum(dim=0)


class Convolutional(nn.Module):
    """It has no linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(1, 4, 3)
        self.head = nn.Conv2d(4, 2, 30)

    def forward(self, images):
        return self.head(self.body(images)).flatten(1)


def card_of(factory, model_input=None, **changes) -> ModelCard:
    fields = {
        "architecture": permit(factory),
        "classes": ("a", "b", "c"),
        "input": model_input or ModelInput(shape=(7,)),
    }
    return ModelCard(**fields | changes)


def grey_card(**changes) -> ModelCard:
    return card_of(own_fleet.GreyNet, GREY, classes=own_fleet.CLASSES, **changes)


def test_the_features_are_what_goes_into_the_last_linear_layer_unless_another_is_named():
    torch.manual_seed(0)
    model = build(grey_card()).eval()
    images = torch.rand(4, 1, 32, 32)
    features, logits = model.features_and_logits(images)
    network = model.network
    seen = network.pool(network.conv1(images * 2.0 - 1.0).relu()).flatten(1)
    torch.testing.assert_close(features, network.fc1(seen).relu())
    torch.testing.assert_close(logits, network.fc2(features))
    torch.testing.assert_close(model(images), logits)
    named = build(grey_card(feature_layer="pool")).eval()
    assert named.features(images).shape == (4, 8 * 7 * 7)


def test_the_network_takes_values_of_its_range_normalised_as_its_card_says():
    seen = []

    class Seeing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, values):
            seen.append(values)
            return self.layer(values.mean((2, 3)))

    model = WrappedClassifier(Seeing(), low=-1.0, high=1.0, mean=(0.5, 0.0, 0.0), std=(0.5, 1.0, 2.0))
    unit = torch.rand(2, 3, 4, 4)
    expected = (unit * 2.0 - 1.0 - torch.tensor([0.5, 0.0, 0.0]).view(1, 3, 1, 1)) / torch.tensor([0.5, 1.0, 2.0]).view(
        1, 3, 1, 1
    )
    model(unit)
    torch.testing.assert_close(seen[0], expected)


def test_weights_have_the_names_of_the_network_itself_and_a_card_brings_it_back(tmp_path):
    card = grey_card(arguments={"width": 4})
    model = build(card)
    assert state_arrays(model).keys() == own_fleet.GreyNet(width=4).state_dict().keys()
    save_model(model, card, tmp_path)
    loaded, read = load_model(tmp_path)
    assert read == card
    images = torch.rand(3, 1, 32, 32)
    assert torch.equal(loaded.eval()(images), model.eval()(images))
    with pytest.raises(ModelFileError, match=r"its 'conv1\.weight' has the shape \(4, 1, 5, 5\)"):
        save_model(model, grey_card(), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_only_networks_that_somebody_here_has_named_are_built(tmp_path):
    save_model(build(grey_card()), grey_card(), tmp_path)
    card = json.loads((tmp_path / CARD_FILE).read_text())
    (tmp_path / CARD_FILE).write_text(
        json.dumps(card | {"architecture": "os:system", "arguments": {"command": "true"}})
    )
    with pytest.raises(ModelFileError, match="The model is a os:system, which nobody has permitted here"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("factory", "why"),
    [
        ("no_such_package.models:Net", "cannot be imported: No module named 'no_such_package'"),
        ("tests.own_fleet:NoNet", "cannot be imported: module 'tests.own_fleet' has no attribute 'NoNet'"),
        ("tests.own_fleet:CLASSES", "is a tuple, which cannot be called"),
        (no_module, "returned a str, which is no torch.nn.Module"),
        (failing, "raised ValueError: no such width"),
        (TwoAnswers, r"answers two inputs by tuple; that must be logits \(2, 3\)"),
        (Sums, r"answers two inputs by \(3,\)"),
        (Detached, "No gradient comes back"),
        (frozen_mlp, "takes a gradient: it can neither learn nor forget"),
        (Convolutional, "The model has no linear layer whose input could be its features"),
    ],
)
def test_a_factory_that_makes_no_classifier_is_refused_in_one_sentence(factory, why):
    with pytest.raises(ModelFileError, match=why) as refused:
        build(card_of(factory))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"classes": ("a", "b")}, r"answers two inputs by \(2, 3\); that must be logits \(2, 2\)"),
        ({"input": ModelInput(shape=(8,))}, "does not take inputs of 8 numbers from 0 to 1: RuntimeError"),
        ({"feature_layer": "9"}, "has no layer '9' to take features from; it has: 0, 1, 2"),
        ({"arguments": {"height": 3}}, "raised TypeError.*height"),
    ],
)
def test_a_card_that_its_network_does_not_fit_is_refused_in_one_sentence(changes, why):
    with pytest.raises(ModelFileError, match=why) as refused:
        build(card_of(mlp, **changes))
    assert "\n" not in str(refused.value)


def test_a_factory_that_no_other_process_can_import_has_no_name():
    with pytest.raises(ValueError, match="no name that another process can import"):
        name_of(lambda: None)
    with pytest.raises(ModelFileError, match="define it at the top of a module"):
        permit(lambda: None)
    with pytest.raises(ModelFileError, match="There is no network 'resnet'"):
        permit("resnet")


def numbers(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, 7), dtype=np.float32)


def images(count: int, channels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, channels, 32, 32), dtype=np.uint8)


OWN = {
    "one-channel CNN": lambda: (grey_card(), images(48, 1)),
    "vision transformer": lambda: (card_of(VIT, image_input(32), arguments=VIT_ARGUMENTS), images(48, 3)),
    "tabular MLP": lambda: (card_of(mlp, ModelInput(shape=(7,), low=-4.0, high=4.0)), numbers(48)),
}


@pytest.mark.parametrize("own", OWN)
def test_a_network_of_ones_own_forgets_and_a_device_says_what_it_says(own, tmp_path):
    torch.manual_seed(0)
    card, data = OWN[own]()
    labels = torch.arange(48) % len(card.classes)
    retain, forget, unseen = (
        LabelledImages(torch.from_numpy(data)[rows], labels[rows]) for rows in torch.arange(48).split([32, 8, 8])
    )
    model = build(card)
    before = state_arrays(model)
    outcome = dlfd(UnlearningProblem(model=model, retain=retain, forget=forget, validation=unseen))
    assert outcome.cost.noise_images
    assert any(not torch.equal(array, before[name]) for name, array in state_arrays(model).items())

    settings = ExportSettings(int8_agreement=0.3)
    file = tmp_path / "model.onnx"
    made = [export_onnx(model, card, file, version="1-own", settings=settings, images=torch.from_numpy(data))]
    ranges = calibrate(prepare(file.read_bytes()), card.input.on_device(data))
    made += [
        export_variant(model, card, file, form=form, settings=settings, images=no_inputs(card), ranges=ranges)
        for form in ("fp16", "int8", "ort")
    ]
    expected = predict_probabilities(model, LabelledImages(torch.from_numpy(data), labels))
    for report, tolerance in zip(made, (1e-5, 1e-2, 0.3, 1e-5), strict=True):
        device = DeviceModel(report.file)
        assert (device.classes, device.input) == (card.classes, card.input)
        said = device.predict(card.input.on_device(data))
        np.testing.assert_allclose(said, expected, atol=tolerance)
        np.testing.assert_allclose(said.sum(axis=1), 1.0, atol=1e-3)


def test_a_device_takes_no_number_out_of_the_range_of_its_model(tmp_path):
    card = card_of(mlp, ModelInput(shape=(7,), low=-4.0, high=4.0))
    file = tmp_path / "model.onnx"
    export_onnx(build(card), card, file, version="0-own", settings=ExportSettings(), images=no_inputs(card))
    device = DeviceModel(file)
    for wrong in (4.5, float("nan")):
        with pytest.raises(DeviceError, match="and the model takes -4 to 4"):
            device.predict(np.full((1, 7), wrong, dtype=np.float32))
    with pytest.raises(DeviceError, match=r"give float32 of shape \(N, 7\)"):
        device.predict(np.zeros((1, 7)))
