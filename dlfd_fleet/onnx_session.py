"""Open ONNX files in the same way at the coordinator, at sites and on devices."""

from __future__ import annotations

import onnxruntime

_HALF = b"dlfd.format\x12\x04fp16"
"""As the metadata of a file say it, which can be read only once the file is open."""


def open_session(content: bytes, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    """Open a file with ONNX Runtime on the CPU; what goes wrong is raised, and not logged.

    Parameters
    ----------
    options
        Threads and the like; they are added to.
    """
    # x86 CPUs without VNNI add int8 products in 16 bits, which overflow: rather slower there than wrong.
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.log_severity_level = 4
    # ONNX Runtime 1.32 crashes (SIGSEGV) while it blocks the channels of convolutions in half precision, in a vision
    # transformer for one; files in half precision are for accelerators anyhow.
    left_out = ["NchwcTransformer"] if _HALF in content else []
    return onnxruntime.InferenceSession(
        content, options, providers=["CPUExecutionProvider"], disabled_optimizers=left_out
    )
