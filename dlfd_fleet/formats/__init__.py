"""The registry of file formats: how each is made from the fp32 file, and how close to torch it must be.

``export.formats`` names formats of :data:`FORMATS`. An :class:`ExportFormat` turns an ONNX graph into another file that
ONNX Runtime opens::

    half = FORMATS.find("fp16")
    content = half.make(Source(model=graph, settings=settings.export, ranges=None))

:mod:`dlfd_fleet.export` writes the file, and each file is audited separately. This package does not load torch, and
loads ONNX only to make a file.

Stable: the names in ``__all__``. A format of your own: docs/how-to/format.md.
"""

from dlfd_fleet.formats.registry import (
    FORMATS,
    FP32,
    ByClasses,
    ByProbabilities,
    ExportFormat,
    Parity,
    Ranges,
    Source,
)

__all__ = [
    "FORMATS",
    "FP32",
    "ByClasses",
    "ByProbabilities",
    "ExportFormat",
    "Parity",
    "Ranges",
    "Source",
]
