"""Hold a model file in memory: one block of bytes, or two above protobuf's limit of 2 GiB."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime

from dlfd_fleet.exceptions import ExportError
from dlfd_fleet.formats.quantisation import scratch_folder
from dlfd_fleet.onnx_session import open_session

LARGEST_FILE = 2**31 - 2**20
"""Bytes of weights that one ONNX file can hold."""
DATA_SUFFIX = ".data"
DATA_DIGEST = "dlfd.data_sha256"
_PREFIX = "dlfd."
_SMALL_TENSOR = 1024


@dataclass(frozen=True)
class ModelFile:
    """The content of a model's file or files.

    Attributes
    ----------
    name
        File name. A large model's weights are in a second file with the suffix ``.data``.
    content
        The graph, with the weights unless the model is large.
    weights
        Weights of a large model. Their digest is in the metadata of the content, so one signature covers both.
    """

    name: str
    content: bytes
    weights: bytes = b""

    @property
    def sha256(self) -> str:
        """Digest of the content, and through its metadata of the weights."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def size_bytes(self) -> int:
        """Bytes on disk."""
        return len(self.content) + len(self.weights)

    def session(self) -> onnxruntime.InferenceSession:
        """Open it with ONNX Runtime on the CPU.

        Raises
        ------
        ExportError
            If ONNX Runtime refuses it.
        """
        options = onnxruntime.SessionOptions()
        if self.weights:
            names, sizes = [self.name + DATA_SUFFIX], [len(self.weights)]
            options.add_external_initializers_from_files_in_memory(names, [self.weights], sizes)
        try:
            return open_session(self.content, options)
        except Exception as error:  # ONNX Runtime's errors have no base class but Exception
            raise ExportError(f"ONNX Runtime cannot load {self.name}: {str(error).splitlines()[0]}") from error

    def write(self, folder: Path) -> Path:
        """Write each file whole or not at all, the graph last, and return the graph's path.

        Raises
        ------
        ExportError
            If the disk refuses.
        """
        file = folder / self.name
        parts = {file.with_name(file.name + DATA_SUFFIX): self.weights} if self.weights else {}
        for part, content in (parts | {file: self.content}).items():
            new = part.with_name(f".{part.name}.new")
            try:
                folder.mkdir(parents=True, exist_ok=True)
                new.write_bytes(content)
                new.replace(part)
            except OSError as error:
                with suppress(OSError):
                    new.unlink()
                raise ExportError(f"Cannot write {file}: {error.strerror}.") from error
        return file


def serialise(proto: onnx.ModelProto, name: str, changes: Mapping[str, str]) -> ModelFile:
    """Check a graph and turn it into bytes.

    Parameters
    ----------
    proto
        The graph. It must not be used afterwards.
    changes
        Metadata to set. Existing metadata stay only under our own keys.
    """
    metadata = stamp(proto, changes)
    if sum(len(tensor.raw_data) for tensor in proto.graph.initializer) <= LARGEST_FILE:
        onnx.checker.check_model(proto, full_check=True)
        return ModelFile(name, proto.SerializeToString(deterministic=True))
    with scratch_folder() as folder:
        file, data = folder / name, folder / (name + DATA_SUFFIX)
        onnx.save_model(proto, file, save_as_external_data=True, location=data.name, size_threshold=_SMALL_TENSOR)
        onnx.checker.check_model(file, full_check=True)
        weights = data.read_bytes()
    _set_metadata(proto, metadata | {DATA_DIGEST: hashlib.sha256(weights).hexdigest()})
    return ModelFile(name, proto.SerializeToString(deterministic=True), weights)


def stamp(proto: onnx.ModelProto, changes: Mapping[str, str]) -> dict[str, str]:
    """Set metadata of a graph, remove all but our own keys, and return them."""
    metadata = {entry.key: entry.value for entry in proto.metadata_props if entry.key.startswith(_PREFIX)}
    metadata |= changes
    _set_metadata(proto, metadata)
    return metadata


def _set_metadata(proto: onnx.ModelProto, metadata: Mapping[str, str]) -> None:
    # The classes, which every device needs, come last: a file that was cut off is never one without some metadata.
    onnx.helper.set_model_props(proto, dict(sorted(metadata.items(), reverse=True)))
