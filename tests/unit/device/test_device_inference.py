"""A device loads the fleet's models and nothing else, and says what torch says."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from PIL import Image

from dlfd_fleet.device.inference import DeviceModel, read_image
from dlfd_fleet.exceptions import DeviceError
from dlfd_fleet.model_input import image_input


def random_images(count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def save_identity_graph(file: Path, metadata: dict[str, str]) -> None:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "identity", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, metadata)
    onnx.save(model, file)


@pytest.mark.parametrize("count", [0, 1, 3, 70])
def test_device_says_what_torch_says(exported, count):
    images = random_images(count)
    found = DeviceModel(exported.file).predict(images)
    with torch.inference_mode():
        expected = exported.model(torch.tensor(images).permute(0, 3, 1, 2) / 255.0).softmax(dim=1).numpy()
    assert found.dtype == np.float32
    assert found.shape == (count, 3)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(found.sum(axis=1), np.ones(count), atol=1e-6)


def test_mirrored_view_of_an_array_is_read_as_it_looks(exported):
    model, images = DeviceModel(exported.file, threads=2), random_images(4)
    mirrored = images[:, :, ::-1]
    np.testing.assert_array_equal(model.predict(mirrored), model.predict(mirrored.copy()))
    assert np.abs(model.predict(mirrored) - model.predict(images)).max() > 1e-4


def test_model_knows_its_classes_size_version_and_epoch(exported):
    model = DeviceModel(exported.file)
    assert (model.classes, model.input) == (("[red]glasses", "none", "sun"), image_input(32))
    assert (model.version, model.epoch) == ("12", 4)
    assert model.metadata["dlfd.kind"] == "original"


@pytest.mark.parametrize("shape", [(32, 32, 3), (1, 3, 32, 32), (1, 32, 31, 3)])
def test_images_of_another_shape_are_refused(exported, shape):
    with pytest.raises(DeviceError, match=r"give uint8 of shape \(N, 32, 32, 3\)"):
        DeviceModel(exported.file).predict(np.zeros(shape, dtype=np.uint8))


def test_images_of_another_type_are_refused(exported):
    with pytest.raises(DeviceError, match="The images are float32"):
        DeviceModel(exported.file).predict(np.zeros((1, 32, 32, 3), dtype=np.float32))


def test_missing_model_is_refused(tmp_path):
    with pytest.raises(DeviceError, match=r"Cannot read the model .*none\.onnx: No such file"):
        DeviceModel(tmp_path / "none.onnx")


@given(part=st.floats(0.0, 0.999))
def test_truncated_model_is_refused(exported, tmp_path_factory, part):
    content = exported.file.read_bytes()
    file = tmp_path_factory.mktemp("truncated") / "model.onnx"
    file.write_bytes(content[: int(part * len(content))])
    with pytest.raises(DeviceError, match=r"The model .*model\.onnx (is damaged|was not exported)"):
        DeviceModel(file)


def test_anybody_elses_model_is_refused(tmp_path):
    save_identity_graph(tmp_path / "identity.onnx", {})
    with pytest.raises(DeviceError, match=r"not exported by dlfd-fleet: its metadata has no usable 'dlfd\.classes'"):
        DeviceModel(tmp_path / "identity.onnx")


def test_model_whose_graph_is_not_what_its_metadata_tells_is_refused(tmp_path, exported):
    save_identity_graph(tmp_path / "identity.onnx", dict(DeviceModel(exported.file).metadata))
    with pytest.raises(DeviceError, match="does not take the images or give the probabilities"):
        DeviceModel(tmp_path / "identity.onnx")


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("dlfd.classes", "glasses"),
        ("dlfd.classes", '["one"]'),
        ("dlfd.input", "large"),
        ("dlfd.epoch", "-1"),
        ("dlfd.version", None),
    ],
)
def test_metadata_that_makes_no_sense_is_refused(tmp_path, exported, key, text):
    proto = onnx.load(exported.file)
    metadata = {entry.key: entry.value for entry in proto.metadata_props} | {key: text}
    del proto.metadata_props[:]
    helper.set_model_props(proto, {name: value for name, value in metadata.items() if value is not None})
    onnx.save(proto, tmp_path / "model.onnx")
    with pytest.raises(DeviceError, match=f"no usable '{key}'"):
        DeviceModel(tmp_path / "model.onnx")


def test_model_needs_a_thread(exported):
    with pytest.raises(DeviceError, match="at least 1 thread, not 0"):
        DeviceModel(exported.file, threads=0)


def test_image_is_turned_upright_and_made_rgb(tmp_path):
    pixels = np.zeros((8, 16, 3), dtype=np.uint8)
    pixels[:, :8] = (255, 0, 0)  # red on the left as stored
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise: the left side comes to the top
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    found = read_image(tmp_path / "turned.png", image_input(32))
    assert (found.dtype, found.shape) == (np.uint8, (32, 32, 3))
    assert (found[:12] == (255, 0, 0)).all()
    assert (found[20:] == 0).all()


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_every_colour_mode_becomes_rgb(tmp_path, mode):
    Image.new("RGB", (40, 20), (255, 255, 255)).convert(mode).save(tmp_path / "image.tiff")
    assert (read_image(tmp_path / "image.tiff", image_input(32)) == 255).all()


def test_missing_image_is_named(tmp_path):
    with pytest.raises(DeviceError, match=r"Cannot read the image .*none\.png: No such file"):
        read_image(tmp_path / "none.png", image_input(32))


@pytest.mark.parametrize("kind", ["png", "jpeg", "bmp", "gif", "tiff", "webp", "ppm"])
def test_image_truncated_in_the_middle_is_named(tmp_path, kind):
    Image.fromarray(random_images(1)[0]).save(tmp_path / f"whole.{kind}")
    content = (tmp_path / f"whole.{kind}").read_bytes()
    for length in (0, 1, 10, len(content) // 4, len(content) // 2):
        (tmp_path / f"part.{kind}").write_bytes(content[:length])
        with pytest.raises(DeviceError, match=rf"Cannot read the image .*part\.{kind}: it is damaged or not an image"):
            read_image(tmp_path / f"part.{kind}", image_input(32))


def triangle_weights(old: int, new: int) -> np.ndarray:
    """Return the (new, old) matrix of bilinear resampling whose triangle widens as the image shrinks."""
    scale = old / new
    centres = (np.arange(new) + 0.5) * scale
    distances = np.abs(np.arange(old) + 0.5 - centres[:, np.newaxis]) / max(scale, 1.0)
    weights = np.clip(1.0 - distances, 0.0, None)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("shape", [(100, 70), (32, 32), (20, 25)])
def test_resampling_is_bilinear_over_the_whole_image(tmp_path, shape):
    pixels = np.random.default_rng(4).integers(0, 256, (*shape, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    rows, columns = triangle_weights(shape[0], 32), triangle_weights(shape[1], 32)
    expected = np.einsum("ih,hwc,jw->ijc", rows, pixels, columns)
    # Pillow rounds once a direction.
    np.testing.assert_allclose(read_image(tmp_path / "image.png", image_input(32)), expected, atol=1.1)


def test_prediction_loads_nothing_of_the_training_side(exported, tmp_path):
    Image.fromarray(random_images(1)[0]).save(tmp_path / "face.png")
    program = (
        "import sys\n"
        "from dlfd_fleet.device.cli import main\n"
        "try:\n"
        "    main(sys.argv[1:])\n"
        "finally:\n"
        "    print('\\n'.join(sys.modules), file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", program, "predict", str(exported.file), str(tmp_path / "face.png"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stderr.split()}
    assert "face.png" in done.stdout
    assert "onnxruntime" in loaded
    assert loaded.isdisjoint({"torch", "torchvision", "flwr", "mlflow", "sklearn", "sqlalchemy", "onnx", "ray"})
    assert {name for name in done.stderr.split() if name.startswith("dlfd_fleet.")} == {
        "dlfd_fleet.answers",
        "dlfd_fleet.cores",
        "dlfd_fleet.device",
        "dlfd_fleet.device.agent_commands",
        "dlfd_fleet.device.cli",
        "dlfd_fleet.device.inference",
        "dlfd_fleet.exceptions",
        "dlfd_fleet.images",
        "dlfd_fleet.model_input",
        "dlfd_fleet.onnx_session",
        "dlfd_fleet.plain_text",
    }
