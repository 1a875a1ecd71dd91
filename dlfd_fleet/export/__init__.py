"""The files that devices run: made from torch, checked against torch, or not written at all.

The graph takes pixels and gives probabilities: ``images``, uint8 ``(batch, S, S, 3)``, to ``probabilities``, float32
``(batch, C)``. Preprocessing and softmax are inside, so that a device has nothing of its own to get wrong. Every other
format is made of the fp32 file: :func:`export_onnx`, then :func:`export_variant`. An int8 file needs activation ranges,
which are measured where retain images are: :func:`prepare`, :func:`calibrate` there, :func:`merge_ranges`.
"""

from dlfd_fleet.export.formats import Variant, content_of, export_variant, file_of
from dlfd_fleet.export.onnx_export import ExportReport, export_onnx
from dlfd_fleet.export.parity import Parity
from dlfd_fleet.export.quantisation import Ranges, calibrate, calibrated_tensors, merge_ranges, prepare

__all__ = [
    "ExportReport",
    "Parity",
    "Ranges",
    "Variant",
    "calibrate",
    "calibrated_tensors",
    "content_of",
    "export_onnx",
    "export_variant",
    "file_of",
    "merge_ranges",
    "prepare",
]
