"""From a torch classifier to a checked ONNX file."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from onnxscript import ir
from torch import Tensor, nn
from torch.onnx import OnnxExporterError

from dlfd_fleet.exceptions import ExportError
from dlfd_fleet.export.parity import largest_difference
from dlfd_fleet.models import FeatureClassifier, ModelCard, digest, state_arrays
from dlfd_fleet.settings import ExportSettings

RANDOM_IMAGES = 200


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how near to torch it is.

    Attributes
    ----------
    max_abs_difference
        Largest difference of a probability between torch and ONNX Runtime.
    compared_images
        Images behind that number: the given ones and 200 random ones.
    seconds
        Wall time of the export with all its checks.
    """

    file: Path
    sha256: str
    size_bytes: int
    opset: int
    max_abs_difference: float
    compared_images: int
    seconds: float


class PixelsToProbabilities(nn.Module):
    """The graph of a device: pixels in, probabilities out."""

    def __init__(self, classifier: FeatureClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """Return probabilities ``(N, C)`` of uint8 images ``(N, S, S, 3)``."""
        # Left as a channels-last view, the images make the exporter write average pooling as a chain of gathers.
        unit = (images.permute(0, 3, 1, 2).float() / 255.0).contiguous()
        logits: Tensor = self.classifier(unit)
        return logits.softmax(dim=1)


def export_onnx(
    model: FeatureClassifier,
    card: ModelCard,
    file: Path,
    *,
    version: str,
    settings: ExportSettings,
    images: Tensor,
) -> ExportReport:
    """Write a classifier as one ONNX file, after it was checked and compared with torch.

    Parameters
    ----------
    model
        The classifier; it is left as it was, mode and weights.
    card
        Classes, image size and lineage; they travel in the file's metadata under ``dlfd.*``.
    file
        Where the file appears once every check has passed.
    version
        Model version that a device reports.
    settings
        Opset and tolerance.
    images
        uint8 ``(N, 3, S, S)``, compared beside 200 random ones; N may be 0. None of them enters the file.

    Raises
    ------
    ExportError
        If the images or the model do not fit the card, the exporter fails or falls back to another opset, a
        probability differs from torch's by more than the tolerance, or the file cannot be written.
    """
    started = time.perf_counter()
    size = card.image_size
    if images.dtype != torch.uint8 or images.shape[1:] != (3, size, size):
        raise ExportError(
            f"The images to compare are {images.dtype} of shape {tuple(images.shape)}: "
            f"give torch.uint8 of shape (N, 3, {size}, {size})."
        )
    graph = PixelsToProbabilities(copy.deepcopy(model).cpu()).eval()
    compared = torch.cat([images.cpu(), _random_images(size)]).permute(0, 2, 3, 1).contiguous()
    content = _onnx_bytes(graph, card, settings.opset, _metadata(model, card, version))
    difference = largest_difference(graph, content, compared, classes=len(card.classes))
    # Written so that a NaN, which is under no tolerance, fails too.
    if not difference <= settings.parity_tolerance:
        raise ExportError(
            f"A probability of the ONNX file differs from torch by {difference:.3g}, more than the tolerance "
            f"{settings.parity_tolerance:.3g} (export.parity_tolerance), so {file} was not written."
        )
    _write(content, file)
    return ExportReport(
        file=file,
        sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
        opset=settings.opset,
        max_abs_difference=difference,
        compared_images=len(compared),
        seconds=time.perf_counter() - started,
    )


def _random_images(size: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (RANDOM_IMAGES, 3, size, size), generator=generator, dtype=torch.uint8)


def _metadata(model: FeatureClassifier, card: ModelCard, version: str) -> dict[str, str]:
    return {
        "dlfd.classes": json.dumps(card.classes),
        "dlfd.image_size": str(card.image_size),
        "dlfd.version": version,
        "dlfd.epoch": str(card.epoch),
        "dlfd.kind": card.kind,
        "dlfd.parent": card.parent or "",
        "dlfd.job": card.job or "",
        "dlfd.weights_sha256": digest(state_arrays(model)),
    }


def _onnx_bytes(graph: PixelsToProbabilities, card: ModelCard, opset: int, metadata: dict[str, str]) -> bytes:
    """Trace, translate and check; return the file's bytes."""
    # Two images: with one, the exporter would take the batch size for a constant.
    example = torch.zeros(2, card.image_size, card.image_size, 3, dtype=torch.uint8)
    try:
        with _quiet():
            program = torch.onnx.export(
                graph,
                (example,),
                dynamo=True,
                verbose=False,
                opset_version=opset,
                external_data=False,
                input_names=["images"],
                output_names=["probabilities"],
                dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            )
    except OnnxExporterError as error:
        cause = str(error.__cause__ or error).strip().splitlines()[0].rstrip(".")
        raise ExportError(f"The model cannot be written as ONNX: {cause}.") from error
    assert program is not None  # noqa: S101 - None is the answer of the old exporter only
    # The exporter notes source lines and file names of the machine it ran on; they are nobody else's business.
    ir.passes.common.ClearMetadataAndDocStringPass()(program.model)
    program.model.metadata_props.clear()
    program.model.metadata_props.update(metadata)
    proto = program.model_proto
    written = {entry.domain: entry.version for entry in proto.opset_import}[""]
    if written != opset:
        raise ExportError(
            f"The exporter wrote opset {written} instead of {opset}: set export.opset to {written} or more."
        )
    onnx.checker.check_model(proto, full_check=True)
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress and its notes to its own developers off the terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _write(content: bytes, file: Path) -> None:
    temporary = file.with_name(f".{file.name}.new")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(file)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise ExportError(f"Cannot write {file}: {error.strerror}.") from error
