"""Make smaller and faster files from the fp32 file, and compare each with torch."""

from __future__ import annotations

import time
from pathlib import Path

import onnx
from torch import Tensor

from dlfd_fleet.exceptions import ExportError
from dlfd_fleet.export.model_file import DATA_SUFFIX, ModelFile, serialise, stamp
from dlfd_fleet.export.onnx_export import ExportReport, check_images, torch_graph, write_checked
from dlfd_fleet.formats import FORMATS, FP32, Ranges, Source
from dlfd_fleet.models import FeatureClassifier, ModelCard
from dlfd_fleet.settings import ExportSettings


def export_variant(
    model: FeatureClassifier,
    card: ModelCard,
    source: Path,
    *,
    form: str,
    settings: ExportSettings,
    images: Tensor,
    labels: Tensor | None = None,
    ranges: Ranges | None = None,
) -> ExportReport:
    """Write another format of an exported model beside its fp32 file, if it agrees with torch.

    Parameters
    ----------
    model, card
        The model and card of the fp32 file.
    source
        The fp32 file of :func:`~dlfd_fleet.export.export_onnx`; its metadata are copied.
    form
        One of :data:`~dlfd_fleet.formats.FORMATS`, such as fp16: half the size, for accelerators; int8: a quarter, for
        CPUs; ort: fp32, optimised ahead of time.
    settings
        Tolerances; for ort also the platform.
    images, labels
        Inputs of a data set and class numbers ``(N,)`` to compare on; N may be 0. The format says whether the file is
        accepted by its probabilities or, as int8, by the class that it names on these images.
    ranges
        Activation ranges, for formats that need them, measured on retain images:
        :func:`~dlfd_fleet.export.calibrate` on :func:`~dlfd_fleet.export.prepare` of the source.

    Raises
    ------
    ExportError
        If the file cannot be made, is not close enough to torch, or cannot be written.
    """
    started = time.perf_counter()
    check_images(images, card)
    wanted, metadata = FORMATS.find(form), {"dlfd.format": form}
    file = wanted.file(source)
    if not wanted.takes_large:
        content_of(source)
    try:
        proto = onnx.load(source)
        stamp(proto, metadata)
        made = wanted.make(Source(proto, settings, ranges))
        whole = ModelFile(file.name, made) if isinstance(made, bytes) else serialise(made, file.name, metadata)
        return write_checked(whole, form, torch_graph(model, card), card, file, settings, images, labels, started)
    except ExportError:
        raise
    except Exception as error:  # whatever the format of another package raises, the other files are released
        reason = next(iter(str(error).splitlines()), "")
        raise ExportError(f"The {form} file cannot be made: {type(error).__name__}: {reason}") from error


def content_of(file: Path) -> bytes:
    """Return the bytes of a model that is one file, or raise an :class:`ExportError`."""
    if file.with_name(file.name + DATA_SUFFIX).exists():
        able = ", ".join(form.name for form in FORMATS.values() if form.takes_large and form.name != FP32)
        raise ExportError(
            f"{file} has more than 2 GB of weights: {able} can be made of it, but no other format, and sites cannot "
            "audit it in one message."
        )
    return file.read_bytes()
