"""Define export formats and their registry.

Another package registers an :class:`ExportFormat` by an entry point of the group ``dlfd_fleet.formats``, or by
``FORMATS.register``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dlfd_fleet.exceptions import ConfigurationError, ExportError
from dlfd_fleet.registry import ENTRY_NAME, Registry

if TYPE_CHECKING:
    import onnx

    from dlfd_fleet.settings import ExportSettings

FP32 = "fp32"
"""The format that is exported from torch; all others are made from its file."""

Ranges = Mapping[str, tuple[float, float]]
"""Smallest and largest value of each activation, by tensor name."""

_ROUNDING = 1e-9  # 0.84 - 0.82 is a little over 0.02

Limit = float | str
"""A number, or the name of a setting of ``export``."""


@dataclass(frozen=True)
class Parity:
    """How close a file is to torch.

    Attributes
    ----------
    max_abs_difference
        Largest difference of a probability.
    compared_images
        Number of compared images: the given ones and 200 random ones.
    agreement
        Share of the given images, or of their labels, with equal answers; None without images.
    accuracy, torch_accuracy
        Accuracy of the file and of torch on them; None without labels.
    """

    max_abs_difference: float
    compared_images: int
    agreement: float | None
    accuracy: float | None
    torch_accuracy: float | None

    def why_not(self, form: str, settings: ExportSettings) -> str | None:
        """Return why a file of this format is not close enough to torch, or None if it is."""
        return FORMATS.find(form).nearness.why_not(self, settings)


@dataclass(frozen=True)
class ByProbabilities:
    """Accepts a file if no probability differs from torch's by more than a tolerance."""

    tolerance: Limit

    def why_not(self, parity: Parity, settings: ExportSettings) -> str | None:
        """Return why a file is not near enough to torch, or None if it is."""
        tolerance, source = _value(self.tolerance, settings)
        # Written so that a NaN, which is under no tolerance, fails too.
        if parity.max_abs_difference <= tolerance:
            return None
        return (
            f"gives a probability that differs from torch by {parity.max_abs_difference:.3g}, more than the tolerance "
            f"{tolerance:.3g}{source}"
        )


@dataclass(frozen=True)
class ByClasses:
    """Accepts a file if it mostly names torch's class and is about as accurate; for coarse rounding.

    Attributes
    ----------
    agreement
        Lowest share of images on which both name the same class.
    accuracy_drop
        Accuracy that the file may lose.
    """

    agreement: Limit
    accuracy_drop: Limit

    def why_not(self, parity: Parity, settings: ExportSettings) -> str | None:
        """Return why a file is not near enough to torch, or None if it is."""
        least, source = _value(self.agreement, settings)
        if parity.agreement is not None and parity.agreement < least:
            return (
                f"names the class that torch names on {parity.agreement:.3f} of the images, less than "
                f"{least:.3f}{source}"
            )
        most, source = _value(self.accuracy_drop, settings)
        drop = (parity.torch_accuracy or 0.0) - (parity.accuracy or 0.0)
        if drop > most + _ROUNDING:
            return f"is less accurate than torch by {drop:.3f}, more than {most:.3f}{source}"
        # Rounding moves every probability; a NaN is no rounding.
        return None if math.isfinite(parity.max_abs_difference) else "gives probabilities that are no numbers"


Nearness = ByProbabilities | ByClasses


def _value(limit: Limit, settings: ExportSettings) -> tuple[float, str]:
    """Return a limit and the setting that holds it."""
    if isinstance(limit, str):
        return float(getattr(settings, limit)), f" (export.{limit})"
    return limit, ""


@dataclass(frozen=True, eq=False)
class Source:
    """The input of a format.

    Attributes
    ----------
    model
        The fp32 graph; its metadata already name the new format. It may be changed in place.
    settings
        The section ``export``.
    ranges
        Activation ranges of the prepared model (:func:`~dlfd_fleet.formats.quantisation.prepare`), measured at sites on
        retain images; None unless the format needs them.
    """

    model: onnx.ModelProto
    settings: ExportSettings
    ranges: Ranges | None = None


Make = Callable[[Source], "onnx.ModelProto | bytes"]
"""Maps the source to a graph, or to bytes that ONNX Runtime opens and that keep the metadata."""


@dataclass(frozen=True)
class ExportFormat:
    """A file format in which models are released.

    Attributes
    ----------
    name
        Name in settings, metrics, tags, reports and releases: lower-case letters, digits, ``-`` and ``_``.
    make
        The function that makes the file.
    nearness
        How close to torch a file must be, at the coordinator and on the sites' images, to be released.
    device_tolerance
        Largest difference of a probability between the coordinator's and a device's CPU, for the device's self-test.
    needs_ranges
        Whether it needs :attr:`Source.ranges`.
    takes_large
        Whether it supports models over 2 GB, whose weights are in a second file.
    extension
        ``ort`` for bytes in ONNX Runtime's own format. The file ends with ``.NAME.EXTENSION``.
    """

    name: str
    make: Make
    nearness: Nearness
    device_tolerance: float
    needs_ranges: bool = False
    takes_large: bool = False
    extension: Literal["onnx", "ort"] = "onnx"

    def __post_init__(self) -> None:
        """Refuse a name that is not valid in files or is fp32, and values of other types."""
        if not re.fullmatch(ENTRY_NAME, self.name) or self.name == "onnx":
            raise ConfigurationError(
                f"'{self.name}' cannot be the name of a format; take up to 32 lower-case letters, digits, '-' and '_', "
                "and not 'onnx'."
            )
        if not callable(self.make):
            raise ConfigurationError(f"The format '{self.name}' has a make that cannot be called: {self.make!r}.")
        if not isinstance(self.nearness, Nearness):
            raise ConfigurationError(
                f"The format '{self.name}' has the nearness {self.nearness!r}; write ByProbabilities(…) or "
                "ByClasses(…)."
            )

    def file(self, source: Path) -> Path:
        """Return the path of the file, beside the fp32 file."""
        if self.name == FP32:
            return source
        end = self.name if self.name == self.extension else f"{self.name}.{self.extension}"
        return source.with_name(f"{source.stem}.{end}")


def _half(source: Source) -> onnx.ModelProto:
    """Return a graph with half-precision weights and activations, and the inputs and outputs of fp32."""
    from onnxruntime.quantization.onnx_model import ONNXModel
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    # The exporter has written every shape, and inferring them again fails over 2 GB. Layer norms, whose sums need more
    # than half precision, stay in single.
    half: onnx.ModelProto = convert_float_to_float16(
        source.model,
        keep_io_types=True,
        disable_shape_infer=True,
        op_block_list=[*DEFAULT_OP_BLOCK_LIST, "Softmax", "LayerNormalization"],
        # Of labels: a network's own sigmoids may well be in half precision, and probabilities not.
        node_block_list=[node.name for node in source.model.graph.node if "probabilities" in node.output],
    )
    del half.graph.value_info[:]  # it calls what stayed in single half, too
    ONNXModel(half).topological_sort()  # the casts are appended at the end
    return half


def _int8(source: Source) -> onnx.ModelProto:
    """Return a graph with 8-bit weights and activations, from the sites' ranges."""
    from dlfd_fleet.formats.quantisation import prepare, quantize

    if source.ranges is None:
        raise ExportError("An int8 file needs the ranges of its activations; calibrate on retain images first.")
    return quantize(prepare(source.model.SerializeToString(deterministic=True)), source.ranges)


def _optimised(source: Source) -> bytes:
    """Return the graph optimised by ONNX Runtime, in its own format."""
    import onnxruntime

    from dlfd_fleet.formats.quantisation import scratch_folder

    with scratch_folder() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # it warns of what ort_platform says
        options.optimized_model_filepath = str(folder / "model.ort")
        options.add_session_config_entry("session.save_model_format", "ORT")
        # As onnxruntime.tools.convert_onnx_models_to_ort does: blocked layouts fit the CPU that they were made on.
        excluded = ["NchwcTransformer"] if source.settings.ort_platform == "any" else []
        content = source.model.SerializeToString(deterministic=True)
        onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"], disabled_optimizers=excluded)
        return (folder / "model.ort").read_bytes()


FORMATS = Registry(
    "format",
    ExportFormat,
    "dlfd_fleet.formats",
    (
        ExportFormat(
            FP32,
            make=lambda source: source.model,
            nearness=ByProbabilities("parity_tolerance"),
            device_tolerance=1e-3,
            takes_large=True,
        ),
        # Half the size, for accelerators.
        ExportFormat(
            "fp16",
            make=_half,
            nearness=ByProbabilities("fp16_tolerance"),
            device_tolerance=2e-2,
            takes_large=True,
        ),
        # A quarter of the size, for CPUs. Its instructions saturate differently from one CPU to the next.
        ExportFormat(
            "int8",
            make=_int8,
            nearness=ByClasses(agreement="int8_agreement", accuracy_drop="int8_accuracy_drop"),
            device_tolerance=0.1,
            needs_ranges=True,
        ),
        # fp32, optimised ahead of time.
        ExportFormat(
            "ort",
            make=_optimised,
            nearness=ByProbabilities("parity_tolerance"),
            device_tolerance=1e-3,
            extension="ort",
        ),
    ),
)
"""Every registered format by name."""
