"""Make int8 files from ranges that sites measure on their images.

The coordinator prepares the graph. Each site measures the range of every activation on its retain images. The
coordinator merges the ranges and writes the file. Only two numbers for each tensor travel.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from dlfd_fleet.exceptions import ExportError
from dlfd_fleet.formats import Ranges

BATCH = 32
# Losses are what attackers read: softmax in 256 steps would round them, and logits in 256 steps nearly so.
# A batch norm that no convolution could take in (DenseNet's come before theirs) has no int8 kernel: it would only lose.
# A layer norm's mean and variance are what 256 steps lose first.
_EXACT_OPERATORS = ("Softmax", "BatchNormalization", "LayerNormalization")
_EXACT_OUTPUTS = ("Gemm", "MatMul")


def prepare(content: bytes) -> bytes:
    """Return the fp32 graph for calibration and quantisation: batch norms folded, all shapes known.

    The result depends on the release of ONNX Runtime, so it is made once and sent to sites.

    Parameters
    ----------
    content
        Bytes of an fp32 ONNX file.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with scratch_folder() as folder:
        (folder / "model.onnx").write_bytes(content)
        # Symbolic shapes are for transformers; a convolutional network's follow from its input's.
        quant_pre_process(folder / "model.onnx", folder / "prepared.onnx", skip_symbolic_shape=True)
        return (folder / "prepared.onnx").read_bytes()


def calibrated_tensors(prepared: bytes) -> frozenset[str]:
    """Return the names of a prepared graph's activations; each needs a range."""
    from onnxruntime.quantization.calibrate import CalibraterBase

    with scratch_folder() as folder:
        (folder / "prepared.onnx").write_bytes(prepared)
        base = CalibraterBase(folder / "prepared.onnx")
        return frozenset(base.select_tensors_to_calibrate(base.model)[0])


def calibrate(prepared: bytes, inputs: NDArray[Any]) -> dict[str, tuple[float, float]]:
    """Return the range of every activation over some images.

    Parameters
    ----------
    prepared
        What :func:`prepare` returned.
    inputs
        Device inputs of retain images, N > 0, such as uint8 ``(N, H, W, C)``. Do not use other images: ranges reveal
        something about them.

    Raises
    ------
    ExportError
        If there is no image, or an activation is not finite.
    """
    from onnxruntime.quantization import CalibrationDataReader
    from onnxruntime.quantization.calibrate import create_calibrator

    if not len(inputs):
        raise ExportError("There is no image to calibrate with; an int8 file needs retain images.")

    name = onnx.load_from_string(prepared).graph.input[0].name

    class Batches(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = (inputs[start : start + BATCH] for start in range(0, len(inputs), BATCH))

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {name: batch}

    with scratch_folder() as folder:
        (folder / "prepared.onnx").write_bytes(prepared)
        calibrator = create_calibrator(folder / "prepared.onnx", augmented_model_path=str(folder / "augmented.onnx"))
        calibrator.collect_data(Batches())
        measured = {name: data.range_value for name, data in calibrator.compute_data().items()}
    return merge_ranges([{name: (float(low.item()), float(high.item())) for name, (low, high) in measured.items()}])


def merge_ranges(parts: Sequence[Ranges]) -> dict[str, tuple[float, float]]:
    """Return the smallest ranges that contain those of several calibrations.

    Raises
    ------
    ExportError
        If there is no calibration, tensors differ, or a range is not valid.
    """
    if not parts:
        raise ExportError("No site has measured ranges; an int8 file needs at least one.")
    if any(part.keys() != parts[0].keys() for part in parts):
        raise ExportError("Sites measured the ranges of different tensors; they must all calibrate the same file.")
    for name, (low, high) in (item for part in parts for item in part.items()):
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise ExportError(f"The range of the tensor '{name}' is {low} to {high}; it must be finite and rise.")
    return {name: (min(part[name][0] for part in parts), max(part[name][1] for part in parts)) for name in parts[0]}


def quantize(prepared: bytes, ranges: Ranges) -> onnx.ModelProto:
    """Return the int8 graph: QDQ, activations U8, weights S8 and per output channel, softmax in float32.

    Parameters
    ----------
    prepared
        What :func:`prepare` returned.
    ranges
        What :func:`merge_ranges` returned, of every tensor of the graph.

    Raises
    ------
    ExportError
        If the range of a tensor is missing.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.quant_utils import load_model_with_shape_infer
    from onnxruntime.quantization.registry import QDQRegistry

    missing = calibrated_tensors(prepared) - ranges.keys()
    if missing:
        raise ExportError(f"The range of the tensor '{min(missing)}' is missing; calibrate this very file.")
    data = {name: TensorData(lowest=_value(low), highest=_value(high)) for name, (low, high) in ranges.items()}
    with scratch_folder() as folder:
        (folder / "prepared.onnx").write_bytes(prepared)
        quantizer = QDQQuantizer(  # what quantize_static calls, which takes ranges from ONNX Runtime 1.27 on only
            load_model_with_shape_infer(folder / "prepared.onnx"),
            per_channel=True,
            reduce_range=False,
            # Of signed activations ONNX Runtime makes some unsigned when x86 loads the file, those with one reader, and
            # a convolution between both kinds is run in float: half of ResNet18's.
            activation_qType=QuantType.QUInt8,
            weight_qType=QuantType.QInt8,
            tensors_range=TensorsData(CalibrationMethod.MinMax, data),
            nodes_to_quantize=[],
            nodes_to_exclude=[],
            op_types_to_quantize=sorted(QDQRegistry.keys() - set(_EXACT_OPERATORS)),
            extra_options={"OpTypesToExcludeOutputQuantization": list(_EXACT_OUTPUTS)},
        )
        quantizer.quantize_model()
        quantizer.model.save_model_to_file(folder / "int8.onnx")
        return onnx.load(folder / "int8.onnx")


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Make a temporary folder for a library's files, and delete it afterwards.

    Raises
    ------
    ExportError
        If the disk refuses.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    except OSError as error:
        reason = error.strerror or error
        raise ExportError(f"Cannot write under {tempfile.gettempdir()}: {reason}; check space and rights.") from error


def _value(number: float) -> np.ndarray:
    return np.array([number], dtype=np.float32)
