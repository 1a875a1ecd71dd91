"""From the fp32 file to smaller and faster ones: each from that file, each compared with torch, none trusted unseen."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Literal

import onnx
import onnxruntime
from torch import Tensor

from dlfd_fleet.exceptions import ExportError
from dlfd_fleet.export.model_file import DATA_SUFFIX, ModelFile, serialise
from dlfd_fleet.export.onnx_export import ExportReport, check_images, torch_graph, write_checked
from dlfd_fleet.export.quantisation import Ranges, prepare, quantize
from dlfd_fleet.models import FeatureClassifier, ModelCard
from dlfd_fleet.settings import ExportSettings, Format

Variant = Literal["fp16", "int8", "ort"]


def file_of(form: Format, source: Path) -> Path:
    """Return where a model's file of this format lies, beside the fp32 one."""
    if form == "fp32":
        return source
    return source.with_suffix(".ort") if form == "ort" else source.with_name(f"{source.stem}.{form}.onnx")


def export_variant(
    model: FeatureClassifier,
    card: ModelCard,
    source: Path,
    *,
    form: Variant,
    settings: ExportSettings,
    images: Tensor,
    labels: Tensor | None = None,
    ranges: Ranges | None = None,
) -> ExportReport:
    """Write another format of an exported model beside its fp32 file, after it was compared with torch.

    Parameters
    ----------
    model, card
        What the fp32 file was made from.
    source
        The fp32 file of :func:`~dlfd_fleet.export.export_onnx`; its metadata go over.
    form
        fp16: half the size, for accelerators; int8: a quarter, for CPUs; ort: fp32, optimised ahead of time.
    settings
        Tolerances, and for ort the platform.
    images, labels
        uint8 ``(N, 3, S, S)`` and class numbers ``(N,)`` to compare on; N may be 0. int8 is accepted by the class
        that it names on these images, the others by their probabilities.
    ranges
        Activation ranges, for int8, measured on retain images: :func:`~dlfd_fleet.export.calibrate` on
        :func:`~dlfd_fleet.export.prepare` of the source.

    Raises
    ------
    ExportError
        If the file is not near enough to torch, cannot be made of so large a model, or cannot be written.
    """
    started = time.perf_counter()
    check_images(images, card)
    file = file_of(form, source)
    if form == "fp16":
        made = _half(source, file.name)
    elif form == "ort":
        made = _optimised(content_of(source), file.name, settings)
    elif ranges is None:
        raise ExportError("An int8 file needs the ranges of its activations; calibrate on retain images first.")
    else:
        made = serialise(quantize(prepare(content_of(source)), ranges), file.name, {"dlfd.format": "int8"})
    return write_checked(made, form, torch_graph(model), card, file, settings, images, labels, started)


def content_of(file: Path) -> bytes:
    """Return the bytes of a model that is one file, or raise an :class:`ExportError`."""
    if file.with_name(file.name + DATA_SUFFIX).exists():
        raise ExportError(
            f"{file} has more than 2 GB of weights: fp16 can be made of it, but no other format, and sites cannot "
            "audit it in one message."
        )
    return file.read_bytes()


def _half(source: Path, name: str) -> ModelFile:
    """Return weights and activations in half precision; pixels go in and probabilities come out as in fp32."""
    from onnxruntime.quantization.onnx_model import ONNXModel
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    # The exporter has written every shape, and inferring them again fails over 2 GB.
    half = convert_float_to_float16(
        onnx.load(source),
        keep_io_types=True,
        disable_shape_infer=True,
        op_block_list=[*DEFAULT_OP_BLOCK_LIST, "Softmax"],
    )
    ONNXModel(half).topological_sort()  # the casts are appended at the end
    return serialise(half, name, {"dlfd.format": "fp16"})


def _optimised(content: bytes, name: str, settings: ExportSettings) -> ModelFile:
    """Return the graph as ONNX Runtime would have it, in its own format: a device has nothing left to optimise."""
    proto = onnx.load_from_string(content)
    stamped = serialise(proto, name, {"dlfd.format": "ort"})
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # it warns of what ort_platform says
        options.optimized_model_filepath = str(Path(folder) / name)
        options.add_session_config_entry("session.save_model_format", "ORT")
        # As onnxruntime.tools.convert_onnx_models_to_ort does: blocked layouts fit the CPU that they were made on.
        excluded = ["NchwcTransformer"] if settings.ort_platform == "any" else []
        onnxruntime.InferenceSession(
            stamped.content, options, providers=["CPUExecutionProvider"], disabled_optimizers=excluded
        )
        return ModelFile(name, (Path(folder) / name).read_bytes())
