"""The formats of a model's files: what is made of the fp32 file, and how near to torch it must be.

``export.formats`` names formats of :data:`FORMATS`. An :class:`ExportFormat` turns an ONNX graph into another file that
ONNX Runtime opens; :mod:`dlfd_fleet.export` writes it, and every file that ships is attacked and judged by itself.
Nothing here loads torch, and ONNX is loaded only where a file is made: settings and devices ask for names alone.

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
