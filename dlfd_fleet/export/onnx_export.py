"""Export a torch classifier as an ONNX file that is compared with torch."""

from __future__ import annotations

import copy
import json
import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn
from torch.onnx import OnnxExporterError

from dlfd_fleet.exceptions import ExportError
from dlfd_fleet.export.model_file import ModelFile, serialise
from dlfd_fleet.export.parity import compare
from dlfd_fleet.formats import FP32, Parity
from dlfd_fleet.models import FeatureClassifier, ModelCard, digest, state_arrays
from dlfd_fleet.settings import ExportSettings

_MOST_AT_ONCE = 2**31 - 1  # torch 2.7 takes no batch without a bound through attention


@dataclass(frozen=True)
class ExportReport:
    """The written file, and how close it is to torch.

    Attributes
    ----------
    sha256
        Digest of the file. It covers a large model's second file, whose digest is inside.
    size_bytes
        Bytes of both files.
    seconds
        Wall time of the export with all checks.
    """

    file: Path
    format: str
    sha256: str
    size_bytes: int
    opset: int
    parity: Parity
    seconds: float


class DeviceGraph(nn.Module):
    """The graph of a device: pixels or numbers in, probabilities out."""

    def __init__(self, classifier: FeatureClassifier, card: ModelCard) -> None:
        super().__init__()
        self.classifier = classifier
        self._input, self._multi_label = card.input, card.multi_label

    def forward(self, inputs: Tensor) -> Tensor:
        """Return probabilities ``(N, C)`` of uint8 images ``(N, H, W, C)``, or of numbers ``(N, *shape)``."""
        if self._input.is_image:
            # Left as a channels-last view, the images make the exporter write average pooling as a chain of gathers.
            unit = (inputs.permute(0, 3, 1, 2).float() / 255.0).contiguous()
        else:
            unit = (inputs - self._input.low) / (self._input.high - self._input.low)
        logits: Tensor = self.classifier(unit)
        return logits.sigmoid() if self._multi_label else logits.softmax(dim=1)


def export_onnx(
    model: FeatureClassifier,
    card: ModelCard,
    file: Path,
    *,
    version: str,
    settings: ExportSettings,
    images: Tensor,
    labels: Tensor | None = None,
    verdict: str = "",
) -> ExportReport:
    """Write a classifier as an fp32 ONNX file, if it agrees with torch.

    Parameters
    ----------
    model
        The classifier; mode and weights are not changed.
    card
        Classes, input and lineage, for the file's metadata under ``dlfd.*``.
    file
        Path of the file, which is written after all checks. Weights over 2 GB are in a second file beside it.
    version
        Model version that a device reports.
    settings
        Opset and tolerance.
    images
        Images to compare on, in addition to 200 random ones: uint8 ``(N, C, H, W)``, or numbers in [0, 1]. N may be 0.
        No image is stored in the file.
    labels
        Class numbers ``(N,)``, to report accuracies.
    verdict
        Outcome of the model's audit, for the metadata.

    Raises
    ------
    ExportError
        If the images or the model do not fit the card, the exporter fails or falls back to another opset, a
        probability differs from torch's by more than the tolerance, or the file cannot be written.
    """
    started = time.perf_counter()
    check_images(images, card)
    graph = torch_graph(model, card)
    proto = _onnx_graph(graph, card, settings.opset)
    made = serialise(proto, file.name, _metadata(model, card, version, verdict))
    return write_checked(made, FP32, graph, card, file, settings, images, labels, started)


def check_images(images: Tensor, card: ModelCard) -> None:
    """Refuse images that do not fit a card with an :class:`ExportError`."""
    wanted = no_inputs(card)
    if images.dtype != wanted.dtype or images.shape[1:] != wanted.shape[1:]:
        shape = ", ".join(map(str, ("N", *wanted.shape[1:])))
        raise ExportError(
            f"The images to compare are {images.dtype} of shape {tuple(images.shape)}: "
            f"give {wanted.dtype} of shape ({shape})."
        )


def no_inputs(card: ModelCard) -> Tensor:
    """Return inputs ``(0, *shape)``, to compare on random inputs only."""
    return torch.zeros((0, *card.input.shape), dtype=torch.uint8 if card.input.is_image else torch.float32)


def torch_graph(model: FeatureClassifier, card: ModelCard) -> DeviceGraph:
    """Return the torch graph with which every file of a model is compared."""
    return DeviceGraph(copy.deepcopy(model).cpu(), card).eval()


def write_checked(
    made: ModelFile,
    form: str,
    graph: DeviceGraph,
    card: ModelCard,
    file: Path,
    settings: ExportSettings,
    images: Tensor,
    labels: Tensor | None,
    started: float,
) -> ExportReport:
    """Write a file if it is as close to torch as its format requires; otherwise raise an :class:`ExportError`."""
    session = made.session()
    if session.get_modelmeta().custom_metadata_map.get("dlfd.format") != form:
        raise ExportError(f"The {form} file has lost the model's metadata, so {file} was not written.")
    parity = compare(graph, session, images, card=card, labels=labels)
    reason = parity.why_not(form, settings)
    if reason:
        raise ExportError(f"The {form} file {reason}, so {file} was not written.")
    return ExportReport(
        file=made.write(file.parent),
        format=form,
        sha256=made.sha256,
        size_bytes=made.size_bytes,
        opset=settings.opset,
        parity=parity,
        seconds=time.perf_counter() - started,
    )


def _metadata(model: FeatureClassifier, card: ModelCard, version: str, verdict: str) -> dict[str, str]:
    return {
        "dlfd.classes": json.dumps(card.classes),
        "dlfd.input": card.input.model_dump_json(),
        "dlfd.multi_label": json.dumps(card.multi_label),
        "dlfd.version": version,
        "dlfd.epoch": str(card.epoch),
        "dlfd.kind": card.kind,
        "dlfd.parent": card.parent or "",
        "dlfd.job": card.job or "",
        "dlfd.weights_sha256": digest(state_arrays(model)),
        "dlfd.format": FP32,
        "dlfd.verdict": verdict,
    }


def _onnx_graph(graph: DeviceGraph, card: ModelCard, opset: int) -> onnx.ModelProto:
    """Trace and translate."""
    from onnxscript import ir

    # Two images: with one, the exporter would take the batch size for a constant.
    example = torch.from_numpy(card.input.random(2))
    try:
        with _quiet():
            program = torch.onnx.export(
                graph,
                (example,),
                dynamo=True,
                verbose=False,
                opset_version=opset,
                external_data=False,
                input_names=[card.input.tensor_name],
                output_names=["probabilities"],
                dynamic_shapes={"inputs": {0: torch.export.Dim("batch", max=_MOST_AT_ONCE)}},
            )
    except OnnxExporterError as error:
        cause = str(error.__cause__ or error).strip().splitlines()[0].rstrip(".")
        raise ExportError(f"The model cannot be written as ONNX: {cause}.") from error
    assert program is not None  # noqa: S101 - None is the answer of the old exporter only
    # The exporter notes source lines and file names of the machine it ran on; they are nobody else's business.
    ir.passes.common.ClearMetadataAndDocStringPass()(program.model)
    proto = program.model_proto
    written = {entry.domain: entry.version for entry in proto.opset_import}[""]
    if written != opset:
        raise ExportError(
            f"The exporter wrote opset {written} instead of {opset}: set export.opset to {written} or more."
        )
    return proto


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress and its notes to its own developers off the terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
