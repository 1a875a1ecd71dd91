"""The ONNX file that devices run: made from torch, checked against torch, or not written at all.

The graph takes pixels and gives probabilities: ``images``, uint8 ``(batch, S, S, 3)``, to ``probabilities``, float32
``(batch, C)``. Preprocessing and softmax are inside, so that a device has nothing of its own to get wrong.
"""

from dlfd_fleet.export.onnx_export import ExportReport, export_onnx

__all__ = ["ExportReport", "export_onnx"]
