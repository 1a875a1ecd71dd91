"""The exported file says what torch says, or it does not appear."""

import copy
import hashlib
import json
import logging
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from dlfd_fleet.exceptions import ExportError
from dlfd_fleet.export import ExportReport, export_onnx
from dlfd_fleet.model_input import image_input
from dlfd_fleet.models import ModelCard, WrappedClassifier, digest, state_arrays
from dlfd_fleet.settings import ExportSettings

SIZE = 32
CARD = ModelCard(
    architecture="mobilenet_v3_small",
    classes=("glasses", "no glasses", "sun"),
    input=image_input(SIZE),
    kind="unlearned",
    epoch=4,
    parent="ab" * 32,
    job="job-7",
)
NO_IMAGES = torch.zeros(0, 3, SIZE, SIZE, dtype=torch.uint8)


def random_images(count: int, seed: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)


def users_module(classes: int = 3) -> nn.Sequential:
    torch.manual_seed(3)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(8, classes),
    )
    module(torch.rand(64, 3, SIZE, SIZE))  # batch statistics other than the initial 0 and 1
    with torch.no_grad():
        module[-1].weight.mul_(30.0)  # answers far enough apart to be told from one another
    return module


def wrapped() -> WrappedClassifier:
    return WrappedClassifier(users_module(), "4")


def export(model, file: Path, *, card=CARD, images=NO_IMAGES, **settings) -> ExportReport:
    return export_onnx(model, card, file, version="12", settings=ExportSettings(**settings), images=images)


def torch_probabilities(model: nn.Module, images: torch.Tensor) -> np.ndarray:
    with torch.inference_mode():
        return copy.deepcopy(model).eval()(images / 255.0).softmax(dim=1).numpy()


def onnx_probabilities(file: Path, images: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())})[0]


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[WrappedClassifier, ExportReport]:
    model = wrapped()
    return model, export(model, tmp_path_factory.mktemp("export") / "new" / "model.onnx", images=random_images(40))


@pytest.mark.parametrize("batch", [1, 3, 7])
def test_file_says_what_torch_says_at_any_batch_size(exported, batch):
    model, report = exported
    images = random_images(batch, seed=batch)
    expected = torch_probabilities(model, images)
    found = onnx_probabilities(report.file, images)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-6)
    if batch > 1:
        assert expected.std(axis=0).max() > 1e-3  # otherwise the comparison would prove nothing


def test_graph_takes_pixels_and_gives_only_probabilities(exported):
    session = onnxruntime.InferenceSession(exported[1].file, providers=["CPUExecutionProvider"])
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [
        ("images", "tensor(uint8)", ["batch", SIZE, SIZE, 3])
    ]
    assert [(o.name, o.type, o.shape) for o in session.get_outputs()] == [
        ("probabilities", "tensor(float)", ["batch", 3])
    ]


def test_file_carries_its_card_and_the_digest_of_its_weights(exported):
    model, report = exported
    metadata = {entry.key: entry.value for entry in onnx.load(report.file).metadata_props}
    assert json.loads(metadata.pop("dlfd.classes")) == list(CARD.classes)
    assert metadata == {
        "dlfd.input": image_input(32).model_dump_json(),
        "dlfd.multi_label": "false",
        "dlfd.version": "12",
        "dlfd.epoch": "4",
        "dlfd.kind": "unlearned",
        "dlfd.parent": "ab" * 32,
        "dlfd.job": "job-7",
        "dlfd.weights_sha256": digest(state_arrays(model)),
        "dlfd.format": "fp32",
        "dlfd.verdict": "",
    }


def test_file_carries_nothing_of_the_machine_that_made_it(exported):
    content = exported[1].file.read_bytes()
    for trace in (b"stack_trace", b".py", str(Path.cwd()).encode(), b"def forward"):
        assert trace not in content


def test_report_describes_the_file(exported):
    report = exported[1]
    content = report.file.read_bytes()
    assert report.sha256 == hashlib.sha256(content).hexdigest()
    assert report.size_bytes == len(content)
    assert report.parity.compared_images == 240
    assert 0.0 <= report.parity.max_abs_difference <= 1e-5
    assert report.seconds > 0.0
    assert [entry.name for entry in report.file.parent.iterdir()] == ["model.onnx"]
    onnx.checker.check_model(report.file, full_check=True)


@pytest.mark.parametrize("opset", [18, 20, 23])
def test_file_has_the_opset_that_was_asked_for(tmp_path, opset):
    report = export(wrapped(), tmp_path / "model.onnx", opset=opset)
    assert report.opset == opset
    assert [(o.domain, o.version) for o in onnx.load(report.file).opset_import] == [("", opset)]


def test_same_model_gives_the_same_bytes(tmp_path, exported):
    assert export(wrapped(), tmp_path / "again.onnx").sha256 == exported[1].sha256


@pytest.mark.parametrize("training", [True, False])
def test_callers_model_is_left_as_it_was(tmp_path, training):
    model = wrapped().train(training)
    before = digest(state_arrays(model))
    export(model, tmp_path / "model.onnx", images=random_images(3))
    assert all(module.training is training for module in model.modules())
    assert digest(state_arrays(model)) == before
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_difference_over_the_tolerance_leaves_the_old_file_alone(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"the model before")
    with pytest.raises(ExportError, match=r"export\.parity_tolerance"):
        export(wrapped(), tmp_path / "model.onnx", parity_tolerance=1e-12)
    assert [(f.name, f.read_bytes()) for f in tmp_path.iterdir()] == [("model.onnx", b"the model before")]


def test_model_that_says_something_else_while_traced_is_refused(tmp_path):
    class Deceiver(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = users_module()

        def forward(self, images):
            logits = self.network(images)
            return -logits if torch.compiler.is_compiling() else logits

    with pytest.raises(ExportError, match="differs from torch"):
        export(WrappedClassifier(Deceiver(), "network.4"), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_no_number_are_refused(tmp_path):
    module = users_module()
    with torch.no_grad():
        module[-1].bias[0] = float("nan")
    with pytest.raises(ExportError, match="by nan"):
        export(WrappedClassifier(module, "4"), tmp_path / "model.onnx")


def test_model_with_other_classes_than_its_card_is_refused(tmp_path):
    with pytest.raises(ExportError, match="has 5 classes and its card names 3"):
        export(WrappedClassifier(users_module(5), "4"), tmp_path / "model.onnx")


def test_model_that_cannot_be_traced_is_one_sentence(tmp_path):
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = users_module()

        def forward(self, images):
            return self.network(images if float(images.sum()) > 3.0 else images * 2)

    with pytest.raises(ExportError, match="cannot be written as ONNX") as caught:
        export(WrappedClassifier(Branching(), "network.4"), tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "images", [torch.zeros(2, 3, SIZE, SIZE), torch.zeros(2, SIZE, SIZE, 3, dtype=torch.uint8), torch.zeros(0)]
)
def test_images_of_another_shape_or_type_are_refused(tmp_path, images):
    with pytest.raises(ExportError, match=r"give torch.uint8 of shape \(N, 3, 32, 32\)"):
        export(wrapped(), tmp_path / "model.onnx", images=images)


def test_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ExportError, match=r"Cannot write .*model\.onnx"):
        export(wrapped(), tmp_path / "file" / "model.onnx")


def test_exporter_keeps_its_chatter_to_itself(tmp_path, capfd, recwarn, caplog):
    level = logging.getLogger("onnxscript").level
    settings = ExportSettings.model_construct(opset=17, parity_tolerance=1e-4)  # the exporter falls back, loudly
    with pytest.raises(ExportError, match=r"wrote opset 18 instead of 17: set export\.opset to 18 or more"):
        export_onnx(wrapped(), CARD, tmp_path / "model.onnx", version="1", settings=settings, images=NO_IMAGES)
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert list(tmp_path.iterdir()) == []
    assert list(recwarn) == []
    assert logging.getLogger("onnxscript").level == level
