"""The files that devices run: made from torch, checked against torch, or not written at all.

The graph takes pixels and gives probabilities: ``images``, uint8 ``(batch, H, W, C)``, to ``probabilities``, float32
``(batch, C)``. A model of numbers takes ``inputs``, float32 ``(batch, *shape)``, in its range. Preprocessing and
softmax are inside, so that a device has nothing of its own to get wrong. Every other format is made of the fp32 file:
:func:`export_onnx`, then :func:`export_variant`, which knows every format of :data:`~dlfd_fleet.formats.FORMATS`. An
int8 file needs activation ranges, which are measured where retain images are: :func:`prepare`, :func:`calibrate`
there, :func:`merge_ranges`.
"""

from dlfd_fleet.export.onnx_export import ExportReport, export_onnx, no_inputs
from dlfd_fleet.export.variants import content_of, export_variant
from dlfd_fleet.formats import Parity, Ranges
from dlfd_fleet.formats.quantisation import calibrate, calibrated_tensors, merge_ranges, prepare

__all__ = [
    "ExportReport",
    "Parity",
    "Ranges",
    "calibrate",
    "calibrated_tensors",
    "content_of",
    "export_onnx",
    "export_variant",
    "merge_ranges",
    "no_inputs",
    "prepare",
]
