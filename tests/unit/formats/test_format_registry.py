"""The registry of formats: those that other packages bring, and what of them is never released."""

from functools import partial

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from dlfd_fleet.configuration import load_settings
from dlfd_fleet.device.folder import DeviceSettings
from dlfd_fleet.device.inference import DeviceModel
from dlfd_fleet.exceptions import ConfigurationError, ExportError
from dlfd_fleet.export import export_onnx, export_variant
from dlfd_fleet.formats import FORMATS, ByClasses, ByProbabilities, ExportFormat, Parity
from dlfd_fleet.model_input import image_input
from dlfd_fleet.models import ModelCard, WrappedClassifier
from dlfd_fleet.settings import ExportSettings

CARD = ModelCard(architecture="resnet18", classes=("glasses", "none"), input=image_input(32), kind="unlearned", epoch=4)
NONE = torch.zeros((0, 3, 32, 32), dtype=torch.uint8)
NEAR = ByProbabilities(0.05)


@pytest.fixture(autouse=True)
def fresh_registry():
    FORMATS.reload()
    yield
    FORMATS.reload()


@pytest.fixture
def export(tmp_path):
    """Export a model, and return what makes another format of it."""
    torch.manual_seed(3)
    layers = (nn.Conv2d(3, 32, 3, stride=4), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = WrappedClassifier(nn.Sequential(*layers, nn.Linear(64, 2)).eval(), "4")
    file = tmp_path / "files" / "model.onnx"
    export_onnx(model, CARD, file, version="7", settings=ExportSettings(), images=NONE)
    return partial(export_variant, model, CARD, file, settings=ExportSettings(), images=NONE)


def test_the_format_of_the_how_to_page_is_exported_and_runs_on_a_device(install_how_to, export):
    install_how_to("format.md")
    FORMATS.reload()
    assert load_settings(overrides={"export.formats": "fp32,weights8"}).settings.export.formats == ("fp32", "weights8")
    assert DeviceSettings(url="http://x", formats=("weights8", "fp32")).formats == ("weights8", "fp32")
    report = export(form="weights8")
    fp32 = report.file.with_name("model.onnx")
    assert report.file.name == "model.weights8.onnx"
    assert report.size_bytes < 0.5 * fp32.stat().st_size
    assert 0.0 < report.parity.max_abs_difference < 0.05
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    assert np.abs(DeviceModel(report.file).predict(images) - DeviceModel(fp32).predict(images)).max() < 0.05
    assert DeviceModel(report.file).metadata == {**DeviceModel(fp32).metadata, "dlfd.format": "weights8"}
    assert export(form="weights8").sha256 == report.sha256


def test_a_name_is_known_without_its_code(install_entry):
    """Devices and settings need the metadata of the package, and nothing that it imports."""
    install_entry("dlfd_fleet.formats", "tiny = tiny_format:FORMAT", "import no_such_module_anywhere")
    assert list(FORMATS.names()) == ["fp32", "fp16", "int8", "ort", "tiny"]
    assert DeviceSettings(url="http://x", formats=("tiny",)).formats == ("tiny",)
    assert load_settings(overrides={"export.formats": "fp32,tiny"}).settings.export.formats == ("fp32", "tiny")
    with pytest.raises(ConfigurationError, match="The format 'tiny' of tiny_format:FORMAT cannot be loaded"):
        FORMATS.find("tiny")


def test_an_unknown_format_is_refused_with_those_there_are():
    known = "Input should be 'fp32', 'fp16', 'int8' or 'ort'"
    with pytest.raises(ConfigurationError) as failure:
        load_settings(overrides={"export.formats": "fp32,int4"}, environment={})
    assert str(failure.value) == f"Setting 'export.formats' (flag) is 'int4': {known}."
    advice = f"{known}; the package of another format must be installed on this device"
    with pytest.raises(ValidationError, match=advice):
        DeviceSettings(url="http://x", formats=("int4",))


@pytest.mark.parametrize(
    ("make", "nearness", "words"), [("half", NEAR, "make that cannot be called"), (float, 0.05, "the nearness 0.05")]
)
def test_a_format_that_could_only_fail_later_is_refused_at_once(make, nearness, words):
    with pytest.raises(ConfigurationError, match=words):
        ExportFormat("mine", make, nearness, device_tolerance=1e-3)


def renamed(source):
    """Return a graph that no device can ask."""
    for entry in (source.model.graph.input[0], *source.model.graph.node):
        names = entry.input if hasattr(entry, "input") else None
        if names is None:
            entry.name = "pixels"
        else:
            names[:] = ["pixels" if name == "images" else name for name in names]
    return source.model


def unstamped(source):
    """Return bytes without the model's metadata."""
    del source.model.metadata_props[:]
    return source.model.SerializeToString()


def shifted(source):
    """Return a graph that says something else."""
    for tensor in source.model.graph.initializer:
        if list(tensor.dims) == [2] and tensor.data_type == tensor.FLOAT:
            tensor.raw_data = np.array([9.0, -9.0], dtype=np.float32).tobytes()
    return source.model


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda source: source.nothing,
            "The odd file cannot be made: AttributeError: 'Source' object has no attribute",
        ),
        (lambda source: 7, "The odd file cannot be made: AttributeError"),
        (lambda source: b"nothing", r"ONNX Runtime cannot load model\.odd\.onnx: "),
        (unstamped, "The odd file has lost the model's metadata"),
        (renamed, "The odd file cannot be made: "),
        (shifted, r"The odd file gives a probability that differs from torch by .*, more than the tolerance 0\.05, so"),
    ],
    ids=["fails", "no file", "no model", "unstamped", "renamed", "another model"],
)
def test_a_format_that_goes_wrong_leaves_no_file_and_one_sentence(export, make, words):
    FORMATS.register(ExportFormat("odd", make, NEAR, device_tolerance=0.1))
    with pytest.raises(ExportError, match=words) as failure:
        export(form="odd")
    assert "\n" not in str(failure.value)
    assert not FORMATS.find("odd").file(export.args[2]).exists()


def test_limits_are_numbers_or_settings():
    parity = Parity(0.02, 200, agreement=0.9, accuracy=0.8, torch_accuracy=0.9)
    settings = ExportSettings(fp16_tolerance=0.01)
    assert "more than the tolerance 0.01 (export.fp16_tolerance)" in parity.why_not("fp16", settings)
    FORMATS.register(ExportFormat("coarse", renamed, ByClasses(0.95, 0.5), device_tolerance=0.1))
    assert parity.why_not("coarse", settings).endswith("on 0.900 of the images, less than 0.950")


@pytest.mark.parametrize("name", ["", "Int4", "int4.v2", "a/b", "a" * 33, "onnx"])
def test_a_name_that_files_and_messages_cannot_have_is_refused(name):
    with pytest.raises(ConfigurationError, match="cannot be the name of a format"):
        ExportFormat(name, renamed, NEAR, device_tolerance=0.1)


def test_no_two_formats_share_a_file(export):
    source = export.args[2]
    FORMATS.register(ExportFormat("small", renamed, NEAR, device_tolerance=0.1, extension="ort"))
    names = [form.file(source).name for form in FORMATS.values()]
    assert names == ["model.onnx", "model.fp16.onnx", "model.int8.onnx", "model.ort", "model.small.ort"]
