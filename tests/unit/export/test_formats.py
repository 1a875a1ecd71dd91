"""Smaller files say what torch says, or do not appear; ranges hold every image that they were measured on."""

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dlfd_fleet.configuration import load_settings
from dlfd_fleet.device.inference import DeviceModel
from dlfd_fleet.exceptions import ConfigurationError, DeviceError, ExportError
from dlfd_fleet.export import Parity, calibrate, calibrated_tensors, export_onnx, export_variant, merge_ranges, prepare
from dlfd_fleet.export.model_file import ModelFile
from dlfd_fleet.model_input import image_input
from dlfd_fleet.models import ModelCard, WrappedClassifier
from dlfd_fleet.settings import ExportSettings

SIZE = 32
CARD = ModelCard(
    architecture="resnet18", classes=("glasses", "none"), input=image_input(SIZE), kind="unlearned", epoch=4
)
VARIANTS = ("fp16", "int8", "ort")


def faces(count: int, seed: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Return noise in one of two brightnesses, and which of them it is."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    pixels = torch.randint(0, 128, (count, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    return pixels + (labels[:, None, None, None] * 100).to(torch.uint8), labels


def on_device(images: torch.Tensor) -> np.ndarray:
    return CARD.input.on_device(images.numpy())


@pytest.fixture(scope="module")
def model() -> WrappedClassifier:
    """Return a network that was trained to tell bright from dark, so that its answers are far apart."""
    torch.manual_seed(3)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 64, 3, stride=2, padding=1),
        nn.Hardswish(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 256),
        nn.Linear(256, 2),
    )
    images, labels = faces(64, seed=1)
    optimizer = torch.optim.Adam(network.parameters(), 0.003)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images / 255.0), labels).backward()
        optimizer.step()
    return WrappedClassifier(network.eval(), "6")


@pytest.fixture(scope="module")
def fp32(model, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("fp32") / "model.onnx"
    images, _ = faces(0)
    settings = ExportSettings()
    export_onnx(model, CARD, file, version="12", settings=settings, images=images, verdict="PASS")
    return file


@pytest.fixture(scope="module")
def ranges(fp32):
    return calibrate(prepare(fp32.read_bytes()), on_device(faces(64, seed=1)[0]))


@pytest.fixture
def source(fp32, tmp_path) -> Path:
    (tmp_path / "model.onnx").write_bytes(fp32.read_bytes())
    return tmp_path / "model.onnx"


def variant(model, source, form, ranges=None, count=40, **settings):
    images, labels = faces(count)
    return export_variant(
        model,
        CARD,
        source,
        form=form,
        settings=ExportSettings(**settings),
        images=images,
        labels=labels,
        ranges=ranges,
    )


def expected(model, images):
    with torch.inference_mode():
        return model(images / 255.0).softmax(dim=1).numpy()


def said(file, images):
    return DeviceModel(file).predict(images.permute(0, 2, 3, 1).contiguous().numpy())


@pytest.mark.parametrize(("form", "name", "near"), [("fp16", "fp16.onnx", 5e-3), ("int8", "int8.onnx", 0.05)])
def test_smaller_file_says_what_torch_says(model, source, ranges, form, name, near):
    report = variant(model, source, form, ranges)
    images, labels = faces(40)
    truth = expected(model, images)
    np.testing.assert_allclose(said(report.file, images), truth, atol=near)
    assert report.file.name == f"model.{name}"
    assert truth.std(axis=0).max() > 0.1
    assert report.parity.agreement == 1.0
    assert report.parity.accuracy == report.parity.torch_accuracy == float((truth.argmax(1) == labels.numpy()).mean())
    assert 0.0 < report.parity.max_abs_difference <= near
    assert report.size_bytes < source.stat().st_size


def test_optimised_file_says_what_torch_says_and_keeps_its_metadata(model, source):
    report = variant(model, source, "ort")
    images, _ = faces(40)
    np.testing.assert_allclose(said(report.file, images), expected(model, images), atol=1e-5)
    assert report.file.name == "model.ort"
    assert report.file.read_bytes()[4:8] == b"ORTM"  # flatbuffers' identifier of the format


@pytest.mark.parametrize("form", VARIANTS)
def test_every_format_carries_the_card_and_its_own_name(model, source, ranges, form):
    device = DeviceModel(variant(model, source, form, ranges).file)
    before = DeviceModel(source).metadata
    assert before["dlfd.format"] == "fp32"
    assert before["dlfd.verdict"] == "PASS"
    assert device.metadata == {**before, "dlfd.format": form}
    assert json.loads(device.metadata["dlfd.classes"]) == list(CARD.classes)


def test_int8_is_per_channel_and_leaves_softmax_alone(model, source, ranges):
    graph = onnx.load(variant(model, source, "int8", ranges).file).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    weights = [n for n in graph.node if n.op_type == "DequantizeLinear" and len(shapes.get(n.input[0], ())) == 4]
    assert [shapes[node.input[1]] for node in weights] == [(8,), (64,)]
    assert {types[node.input[0]] for node in weights} == {onnx.TensorProto.INT8}
    points = {types[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"}
    assert points == {onnx.TensorProto.UINT8}
    (softmax,) = (node for node in graph.node if node.op_type == "Softmax")
    assert next(node.op_type for node in graph.node if softmax.input[0] in node.output) == "Gemm"


class Residual(nn.Module):
    """Two residual blocks: the sum between them has two readers."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=4, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)) for _ in range(2)
        )
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(16, 2)

    def forward(self, images):
        seen = nn.functional.max_pool2d(self.stem(images).relu(), 2)
        for block in self.blocks:
            seen = (seen + block(seen)).relu()
        return self.head(self.pool(seen))


def test_int8_file_has_no_convolution_that_is_run_in_float(tmp_path):
    torch.manual_seed(3)
    network, images = WrappedClassifier(Residual().eval(), "pool"), faces(32)[0]
    file = tmp_path / "model.onnx"
    export_onnx(network, CARD, file, version="1", settings=ExportSettings(), images=images)
    made = variant(
        network, file, "int8", calibrate(prepare(file.read_bytes()), on_device(images)), int8_accuracy_drop=1.0
    )
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "as-run.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(made.file, options, providers=["CPUExecutionProvider"])
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "as-run.onnx").graph.node)
    assert kinds["QLinearConv"] == 5
    assert kinds["Conv"] == 0


def test_batch_norm_before_its_convolution_stays_in_float(tmp_path):
    torch.manual_seed(3)
    network = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.AdaptiveAvgPool2d(1)),
        *(nn.ReLU(), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(8, 2)),
    )
    model, images = WrappedClassifier(network.eval(), "8"), faces(32)[0]
    file = tmp_path / "model.onnx"
    export_onnx(model, CARD, file, version="1", settings=ExportSettings(), images=images)
    made = variant(
        model, file, "int8", calibrate(prepare(file.read_bytes()), on_device(images)), int8_accuracy_drop=1.0
    )
    graph = onnx.load(made.file).graph
    weights = {tensor.name for tensor in graph.initializer}
    (norm,) = (node for node in graph.node if node.op_type == "BatchNormalization")
    assert set(norm.input[1:]) <= weights


def test_file_that_the_runtime_refuses_is_one_sentence():
    with pytest.raises(ExportError, match=r"ONNX Runtime cannot load model\.onnx: [^\n]+$"):
        ModelFile("model.onnx", b"nothing").session()


@pytest.mark.parametrize("form", VARIANTS)
def test_file_carries_nothing_of_the_machine_that_made_it(model, source, ranges, form):
    content = variant(model, source, form, ranges).file.read_bytes()
    for trace in (b"stack_trace", b'.py"', b"site-packages", b"/tmp", str(Path.cwd()).encode(), b"quant.pre_process"):
        assert trace not in content


@pytest.mark.parametrize("form", ["fp16", "int8"])  # ONNX Runtime writes the maps of an .ort file in any order
def test_same_model_gives_the_same_bytes(model, source, ranges, form):
    assert variant(model, source, form, ranges).sha256 == variant(model, source, form, ranges).sha256


@pytest.mark.parametrize(
    ("form", "setting"), [("fp16", "fp16_tolerance"), ("ort", "parity_tolerance"), ("int8", "int8_agreement")]
)
def test_file_that_is_not_near_enough_does_not_appear(model, source, ranges, form, setting):
    if form == "int8":  # every activation in one step of 255: nothing is left
        strict, ranges = {}, dict.fromkeys(ranges, (-1e6, 1e6))
    else:
        strict = {setting: 1e-12}
    with pytest.raises(ExportError, match=rf"export\.{setting}"):
        variant(model, source, form, ranges, **strict)
    assert [file.name for file in source.parent.iterdir()] == ["model.onnx"]


def test_lost_accuracy_refuses_an_int8_file(model, source, ranges):
    with pytest.raises(ExportError, match=r"less accurate than torch by 0\.\d+.*export\.int8_accuracy_drop"):
        variant(model, source, "int8", dict.fromkeys(ranges, (-1e6, 1e6)), int8_agreement=0.0)


def test_accuracy_may_fall_by_the_setting_and_no_more():
    parity = Parity(0.1, 50, agreement=0.98, accuracy=0.82, torch_accuracy=0.84)
    assert parity.why_not("int8", ExportSettings(int8_accuracy_drop=0.02)) is None
    assert "less accurate than torch by 0.020" in str(parity.why_not("int8", ExportSettings(int8_accuracy_drop=0.019)))


# ------------------------------------------------------------------ calibration


def test_ranges_of_all_images_are_the_merged_ranges_of_their_parts(fp32):
    prepared = prepare(fp32.read_bytes())
    images = faces(48, seed=9)[0]
    whole = calibrate(prepared, on_device(images))
    merged = merge_ranges([calibrate(prepared, on_device(part)) for part in torch.split(images, [5, 32, 11])])
    assert whole.keys() == merged.keys() == calibrated_tensors(prepared)
    np.testing.assert_allclose([merged[name] for name in whole], list(whole.values()), rtol=1e-5, atol=1e-6)


def test_merged_ranges_of_parts_make_the_file_of_the_whole(model, source, fp32):
    prepared = prepare(fp32.read_bytes())
    parts = [calibrate(prepared, on_device(faces(32, seed=seed)[0])) for seed in (1, 2)]
    report = variant(model, source, "int8", merge_ranges(parts))
    assert report.parity.agreement == 1.0


def test_probabilities_ranges_are_those_of_torch(model, fp32):
    images = faces(32, seed=7)[0]
    low, high = calibrate(prepare(fp32.read_bytes()), on_device(images))["probabilities"]
    truth = expected(model, images)
    assert (low, high) == pytest.approx((truth.min(), truth.max()), abs=1e-5)


def test_no_image_is_no_calibration(fp32):
    with pytest.raises(ExportError, match="no image to calibrate with"):
        calibrate(prepare(fp32.read_bytes()), on_device(faces(0)[0]))


def test_int8_without_ranges_or_with_another_models_is_refused(model, source, ranges):
    with pytest.raises(ExportError, match="calibrate on retain images first"):
        variant(model, source, "int8")
    name = min(ranges)
    with pytest.raises(ExportError, match=f"range of the tensor '{name}' is missing"):
        variant(model, source, "int8", {key: value for key, value in ranges.items() if key != name})


Numbers = st.floats(-1e6, 1e6)
Range = st.tuples(Numbers, Numbers).map(lambda pair: (min(pair), max(pair)))
Parts = st.lists(st.fixed_dictionaries({"a": Range, "b": Range}), min_size=1, max_size=6)


@given(parts=Parts, data=st.data())
def test_merged_ranges_hold_every_part_and_no_more(parts, data):
    merged = merge_ranges(parts)
    for name, (low, high) in merged.items():
        assert all(low <= part[name][0] and part[name][1] <= high for part in parts)
        assert low in {part[name][0] for part in parts}
        assert high in {part[name][1] for part in parts}
    assert merge_ranges(data.draw(st.permutations(parts))) == merged
    cut = data.draw(st.integers(1, len(parts)))
    assert merge_ranges([merge_ranges(parts[:cut]), *parts[cut:]]) == merged
    assert merge_ranges([merged, merged]) == merged


@given(parts=Parts, wrong=st.sampled_from([(1.0, 0.0), (math.nan, 1.0), (0.0, math.inf), (-math.inf, 0.0)]))
def test_a_range_that_is_none_is_refused(parts, wrong):
    with pytest.raises(ExportError, match="The range of the tensor 'b' is"):
        merge_ranges([*parts, parts[0] | {"b": wrong}])


def test_ranges_of_other_tensors_and_no_ranges_are_refused():
    with pytest.raises(ExportError, match="different tensors"):
        merge_ranges([{"a": (0.0, 1.0)}, {"b": (0.0, 1.0)}])
    with pytest.raises(ExportError, match="No site has measured ranges"):
        merge_ranges([])


# ------------------------------------------------------------------ large models


@pytest.fixture
def large(monkeypatch, model, tmp_path) -> Path:
    """Return a model whose weights are over the limit, which is lowered for it."""
    monkeypatch.setattr("dlfd_fleet.export.model_file.LARGEST_FILE", 1000)
    file = tmp_path / "model.onnx"
    export_onnx(model, CARD, file, version="1", settings=ExportSettings(), images=faces(4)[0])
    return file


def test_large_models_weights_lie_beside_the_graph(model, large):
    images, _ = faces(40)
    data = large.with_name("model.onnx.data")
    assert {file.name for file in large.parent.iterdir()} == {"model.onnx", data.name}
    assert data.stat().st_size > large.stat().st_size
    np.testing.assert_allclose(said(large, images), expected(model, images), atol=1e-5)
    half = variant(model, large, "fp16")
    assert half.file.with_name("model.fp16.onnx.data").exists()
    np.testing.assert_allclose(said(half.file, images), expected(model, images), atol=5e-3)


def test_large_models_weights_are_signed_with_the_graph(large):
    data = large.with_name("model.onnx.data")
    content = bytearray(data.read_bytes())
    content[100] ^= 1
    data.write_bytes(content)
    with pytest.raises(DeviceError, match=r"weights .*model\.onnx\.data are not those of .*model\.onnx: fetch both"):
        DeviceModel(large)
    data.unlink()
    with pytest.raises(DeviceError, match="damaged"):
        DeviceModel(large)


@pytest.mark.parametrize("form", ["int8", "ort"])
def test_formats_of_one_file_are_refused_to_large_models(model, large, ranges, form):
    with pytest.raises(ExportError, match="more than 2 GB of weights: fp16 can be made"):
        variant(model, large, form, ranges)


# ------------------------------------------------------------------ settings


def test_formats_are_named_in_one_flag():
    assert load_settings(overrides={"export.formats": "fp32, int8,ort"}).settings.export.formats == (
        "fp32",
        "int8",
        "ort",
    )


@pytest.mark.parametrize("formats", ["int8", "fp32,int4"])
def test_unknown_formats_and_none_without_fp32_are_refused(formats):
    with pytest.raises(ConfigurationError, match=r"export\.formats"):
        load_settings(overrides={"export.formats": formats})
