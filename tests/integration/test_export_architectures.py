"""Every architecture of the fleet reaches the device, in every format, with the answers that it has in torch."""

import numpy as np
import pytest
import torch
from torch import nn

from dlfd_fleet.device.inference import DeviceModel
from dlfd_fleet.export import calibrate, export_onnx, export_variant, prepare
from dlfd_fleet.model_input import image_input
from dlfd_fleet.models import ARCHITECTURES, FaceClassifier, ModelCard, build
from dlfd_fleet.settings import ExportSettings


def outspoken(card: ModelCard) -> FaceClassifier:
    """Return a network whose answers differ from image to image, as a trained one's do."""
    torch.manual_seed(0)
    model = build(card)
    batch_norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in batch_norms:
        module.momentum = None  # plain averages: two looks are enough for statistics that fit
    with torch.no_grad():
        for _ in range(2):
            model(torch.rand(16, *card.input.shape))
        for layer in model.head:
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(4.0)
    return model.eval()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_architecture_says_on_the_device_what_it_says_in_torch(tmp_path, architecture):
    card = ModelCard(architecture=architecture, classes=("glasses", "none", "sun"), input=image_input(32))
    model, settings = outspoken(card), ExportSettings(int8_agreement=0.6, fp16_tolerance=0.1)
    pixels = torch.randint(0, 256, (64, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    file = tmp_path / "model.onnx"
    export_onnx(model, card, file, version="1", settings=settings, images=pixels)
    ranges = calibrate(prepare(file.read_bytes()), card.input.on_device(pixels.numpy()))
    reports = [
        export_variant(model, card, file, form=form, settings=settings, images=pixels, ranges=ranges)
        for form in ("fp16", "int8", "ort")
    ]

    with torch.inference_mode():
        expected = model(pixels / 255.0).softmax(dim=1).numpy()
    assert expected.std(axis=0).max() > 1e-3  # otherwise the comparison would prove nothing
    found = {}
    for one in (file, *(report.file for report in reports)):
        device = DeviceModel(one)
        found[device.metadata["dlfd.format"]] = device.predict(pixels.permute(0, 2, 3, 1).contiguous().numpy())
    assert found.keys() == {"fp32", "fp16", "int8", "ort"}
    np.testing.assert_allclose(found["fp32"], expected, atol=1e-4)
    np.testing.assert_allclose(found["ort"], expected, atol=1e-4)
    np.testing.assert_allclose(found["fp16"], expected, atol=0.1)
    # Random weights and noise for images are the worst that int8 can meet; trained models are in the benchmark.
    assert np.corrcoef(found["int8"].ravel(), expected.ravel())[0, 1] > 0.7
    assert [report.size_bytes / file.stat().st_size < 0.31 for report in reports] == [False, True, False]
