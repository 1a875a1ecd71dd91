"""Write the files that devices run, after checking each against torch.

The graph takes ``images``, uint8 ``(batch, H, W, C)``, and returns ``probabilities``, float32 ``(batch, C)``. A model
of numbers takes ``inputs``, float32 ``(batch, *shape)``, in its range. Preprocessing and softmax are in the graph.

:func:`export_onnx` writes the fp32 file. :func:`export_variant` makes every other format of
:data:`~dlfd_fleet.formats.FORMATS` from it. An int8 file also needs activation ranges: :func:`prepare` the graph,
:func:`calibrate` it at each site, and :func:`merge_ranges`. Files that differ too much from torch are not written; an
:class:`~dlfd_fleet.exceptions.ExportError` says why.
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
