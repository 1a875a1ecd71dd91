"""The Open Inference Protocol, version 2: JSON and binary tensors of one model. No sockets here.

Source: KServe's "predict protocol - version 2" (open-inference-protocol), and Triton's binary tensor data extension.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from dlfd_fleet.device.answering import Loaded
from dlfd_fleet.device.inference import DeviceModel
from dlfd_fleet.exceptions import DeviceError

MODEL_NAME = "classifier"
EXTENSIONS = ["binary_tensor_data"]
_BYTE = 255


class InvalidRequestError(DeviceError):
    """A request is not one that the protocol or the model allows."""


class _Tensor(BaseModel):
    name: str
    shape: list[int] = Field(max_length=8)
    datatype: str
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class _Output(BaseModel):
    name: str
    parameters: dict[str, Any] = {}


class _Request(BaseModel):
    id: str | None = None
    parameters: dict[str, Any] = {}
    inputs: list[_Tensor]
    outputs: list[_Output] = []


@dataclass(frozen=True)
class InferenceRequest:
    """What a client asks.

    Attributes
    ----------
    images
        uint8 ``(N, S, S, 3)``.
    id
        The client's, to be given back.
    binary
        Whether the answer is wanted as bytes instead of JSON numbers.
    """

    images: NDArray[np.uint8]
    id: str | None
    binary: bool


def model_metadata(loaded: Loaded) -> dict[str, Any]:
    """Return what a client is told of the model."""
    size, classes = loaded.model.image_size, loaded.model.classes
    return {
        "name": MODEL_NAME,
        "versions": [loaded.release.version],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "images", "datatype": "UINT8", "shape": [-1, size, size, 3]}],
        "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, len(classes)]}],
        "parameters": {"classes": json.dumps(classes), "epoch": loaded.release.epoch},
    }


def read_request(body: bytes, json_length: int | None, model: DeviceModel) -> InferenceRequest:
    """Read the body of an inference request.

    Parameters
    ----------
    json_length
        Bytes of JSON at the body's beginning, where tensors follow as bytes; None if all of it is JSON.

    Raises
    ------
    InvalidRequestError
        If it is not one that the model can answer.
    """
    head = len(body) if json_length is None else json_length
    if not 0 <= head <= len(body):
        raise InvalidRequestError("Inference-Header-Content-Length is longer than the body.")
    try:
        request = _Request.model_validate_json(body[:head])
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidRequestError(f"{'.'.join(map(str, first['loc'])) or 'body'}: {first['msg']}.") from error
    if [tensor.name for tensor in request.inputs] != ["images"]:
        raise InvalidRequestError("inputs: give one tensor, 'images'.")
    unknown = [output.name for output in request.outputs if output.name != "probabilities"]
    if unknown or len(request.outputs) > 1:
        raise InvalidRequestError("outputs: there is one, 'probabilities'.")
    binary = bool(request.parameters.get("binary_data_output", False))
    for output in request.outputs:
        binary = bool(output.parameters.get("binary_data", binary))
    return InferenceRequest(_images(request.inputs[0], body[head:], model.image_size), request.id, binary)


def write_response(
    request: InferenceRequest, loaded: Loaded, probabilities: NDArray[np.float32]
) -> tuple[bytes, int | None]:
    """Return the body of an answer, and how much of it is JSON; None for all of it."""
    output: dict[str, Any] = {"name": "probabilities", "datatype": "FP32", "shape": list(probabilities.shape)}
    tail = probabilities.astype("<f4").tobytes() if request.binary else b""
    if request.binary:
        output["parameters"] = {"binary_data_size": len(tail)}
    else:
        output["data"] = probabilities.ravel().tolist()
    answer: dict[str, Any] = {
        "model_name": MODEL_NAME,
        "model_version": loaded.release.version,
        "outputs": [output],
    }
    if request.id is not None:
        answer["id"] = request.id
    head = json.dumps(answer).encode()
    return head + tail, len(head) if request.binary else None


def _images(tensor: _Tensor, binary: bytes, size: int) -> NDArray[np.uint8]:
    if tensor.datatype != "UINT8":
        raise InvalidRequestError(f"images: the datatype is UINT8, not '{tensor.datatype:.20}'.")
    if len(tensor.shape) != 4 or tensor.shape[0] < 1 or tensor.shape[1:] != [size, size, 3]:
        raise InvalidRequestError(f"images: the shape is [N, {size}, {size}, 3] with N of at least 1.")
    count = tensor.shape[0] * size * size * 3
    told = tensor.parameters.get("binary_data_size")
    if told is None and tensor.data is not None and not binary:
        return _numbers(tensor.data, count).reshape(tensor.shape)
    if tensor.data is not None or told != len(binary):
        raise InvalidRequestError("images: give either data, or binary_data_size and so many bytes after the JSON.")
    if len(binary) != count:
        raise InvalidRequestError(f"images: the shape needs {count} bytes, and there are {len(binary)}.")
    return np.frombuffer(binary, dtype=np.uint8).reshape(tensor.shape)


def _numbers(data: list[Any], count: int) -> NDArray[np.uint8]:
    try:
        values = np.array(data)
    except ValueError as error:
        raise InvalidRequestError("images: the rows of data differ in length.") from error
    if values.size != count:
        raise InvalidRequestError(f"images: the shape needs {count} numbers, and there are {values.size}.")
    if values.dtype.kind not in "iu" or values.min() < 0 or values.max() > _BYTE:
        raise InvalidRequestError("images: data are whole numbers from 0 to 255.")
    return values.astype(np.uint8)
