"""The Open Inference Protocol, version 2: JSON and binary tensors of one model. No sockets here.

Source: KServe's "predict protocol - version 2" (open-inference-protocol), and Triton's binary tensor data extension.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from dlfd_fleet.device.answering import Loaded
from dlfd_fleet.device.inference import DeviceModel
from dlfd_fleet.exceptions import DeviceError
from dlfd_fleet.model_input import ModelInput

MODEL_NAME = "classifier"
EXTENSIONS = ["binary_tensor_data"]
LARGEST_REQUEST = 16 * 2**20
_LARGEST_REST = 2**16
"""Most bytes of a request besides its numbers."""
_IMAGES, _LONGEST_NUMBER = 32, 16
"""Images in a request, and bytes of one number of JSON, blanks included."""
_BYTE = 255
_DATA = re.compile(rb'"data"\s*:\s*(\[[\[\]0-9.eE+\-,\s]*+)?+')
"""The value of a tensor's data, as far as it is numbers, commas and brackets; no text in JSON can look like its key."""
_TOO_LONG = {True: re.compile(rb"[0-9]{4}|[.eE+\-]"), False: re.compile(rb"[0-9.eE+\-]{33}")}
"""What no number is written as: of pixels, and of others."""
_NUMBERS = b"0123456789.eE+- \t\r\n"
_Size = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class InvalidRequestError(DeviceError):
    """A request is not one that the protocol or the model allows."""


class _Tensor(BaseModel):
    name: str
    shape: list[_Size] = Field(max_length=8)
    datatype: str
    parameters: dict[str, Any] = {}
    data: list[int] | None = Field(None, max_length=0)
    """An empty list in place of the numbers, which are not read with the rest."""


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
    """A client's request.

    Attributes
    ----------
    images
        Inputs of the model: uint8 ``(N, H, W, C)``, or float32 ``(N, *shape)``.
    id
        Id of the client, which the answer repeats.
    binary
        Whether to answer in bytes instead of JSON numbers.
    """

    images: NDArray[Any]
    id: str | None
    binary: bool


def model_metadata(loaded: Loaded) -> dict[str, Any]:
    """Return the model's metadata for clients."""
    wanted, classes = loaded.model.input, loaded.model.classes
    return {
        "name": MODEL_NAME,
        "versions": [loaded.release.version],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": wanted.tensor_name, "datatype": _datatype(wanted), "shape": [-1, *wanted.device_shape]}],
        "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, len(classes)]}],
        "parameters": {
            "classes": json.dumps(classes),
            "multi_label": loaded.model.multi_label,
            "epoch": loaded.release.epoch,
        },
    }


def largest_request(wanted: ModelInput) -> int:
    """Return the largest size of a request in bytes: 32 inputs in JSON, but at most 16 MiB."""
    longest = _LONGEST_NUMBER if wanted.is_image else 2 * _LONGEST_NUMBER
    return min(LARGEST_REQUEST, _LARGEST_REST + _IMAGES * math.prod(wanted.shape) * longest)


def _datatype(wanted: ModelInput) -> str:
    return "UINT8" if wanted.is_image else "FP32"


def read_request(body: bytes, json_length: int | None, model: DeviceModel) -> InferenceRequest:
    """Read the body of an inference request.

    Parameters
    ----------
    json_length
        Bytes of JSON at the start of the body, if tensors follow as bytes; None if all of it is JSON.

    Raises
    ------
    InvalidRequestError
        If the model cannot answer it.
    """
    head = len(body) if json_length is None else json_length
    if not 0 <= head <= len(body):
        raise InvalidRequestError("Inference-Header-Content-Length is longer than the body.")
    wanted = model.input
    rest, numbers = _apart(body[:head], wanted)
    try:
        request = _Request.model_validate_json(rest)
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidRequestError(f"{'.'.join(map(str, first['loc'])) or 'body'}: {first['msg']}.") from error
    if [tensor.name for tensor in request.inputs] != [wanted.tensor_name]:
        raise InvalidRequestError(f"inputs: give one tensor, '{wanted.tensor_name}'.")
    unknown = [output.name for output in request.outputs if output.name != "probabilities"]
    if unknown or len(request.outputs) > 1:
        raise InvalidRequestError("outputs: there is one, 'probabilities'.")
    binary = bool(request.parameters.get("binary_data_output", False))
    for output in request.outputs:
        binary = bool(output.parameters.get("binary_data", binary))
    images = _inputs(request.inputs[0], numbers, body[head:], wanted)
    return InferenceRequest(images, request.id, binary)


def write_response(
    request: InferenceRequest, loaded: Loaded, probabilities: NDArray[np.float32]
) -> tuple[bytes, int | None]:
    """Return the body of an answer and the length of its JSON; None if all of it is JSON.

    Its parameter ``answers`` is a JSON list with the name of each image's class, or of the labels that apply.
    """
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
        "parameters": {"answers": json.dumps(loaded.model.named(probabilities))},
    }
    if request.id is not None:
        answer["id"] = request.id
    head = json.dumps(answer).encode()
    return head + tail, len(head) if request.binary else None


def _apart(document: bytes, wanted: ModelInput) -> tuple[bytes, bytes | None]:
    """Return a request without its numbers, and the numbers; they are most of it, and objects would be many times more.

    Nothing of a length that the client chooses is made of JSON: the rest is short, and the numbers are counted first.
    """
    found = list(_DATA.finditer(document))
    texts = [match[1].rstrip(b", \t\r\n") if match[1] else None for match in found]
    given = [(match.start(1), text) for match, text in zip(found, texts, strict=True) if text is not None]
    if len(given) > 1:
        raise InvalidRequestError(f"inputs: give one tensor, '{wanted.tensor_name}', with data once.")
    start, numbers = given[0] if given else (0, None)
    rest = document if numbers is None else document[:start] + b"[]" + document[start + len(numbers) :]
    if len(rest) > _LARGEST_REST or (numbers is not None and not numbers.endswith(b"]")):
        raise InvalidRequestError(
            f"{wanted.tensor_name}: data are {_numbers(wanted)} in lists, and nothing else in a request is longer than "
            f"{_LARGEST_REST} bytes."
        )
    return rest, numbers


def _numbers(wanted: ModelInput) -> str:
    return "whole numbers from 0 to 255" if wanted.is_image else f"numbers from {wanted.low:g} to {wanted.high:g}"


def _inputs(tensor: _Tensor, numbers: bytes | None, binary: bytes, wanted: ModelInput) -> NDArray[Any]:
    name, datatype, one = wanted.tensor_name, _datatype(wanted), list(wanted.device_shape)
    if tensor.datatype != datatype:
        raise InvalidRequestError(f"{name}: the datatype is {datatype}, not '{tensor.datatype:.20}'.")
    if len(tensor.shape) != len(one) + 1 or tensor.shape[0] < 1 or tensor.shape[1:] != one:
        raise InvalidRequestError(f"{name}: the shape is [N, {', '.join(map(str, one))}] with N of at least 1.")
    count = tensor.shape[0] * math.prod(one)
    announced = tensor.parameters.get("binary_data_size")
    has_data = tensor.data is not None and numbers is not None
    if announced is None and numbers is not None and has_data and not binary:
        values = _read_numbers(numbers, tensor.shape[0], wanted).reshape(tensor.shape)
    elif has_data or announced != len(binary):
        raise InvalidRequestError(f"{name}: give either data, or binary_data_size and so many bytes after the JSON.")
    elif len(binary) != count * wanted.dtype.itemsize:
        raise InvalidRequestError(
            f"{name}: the shape needs {count * wanted.dtype.itemsize} bytes, and there are {len(binary)}."
        )
    else:
        values = np.frombuffer(binary, dtype=wanted.dtype.newbyteorder("<")).reshape(tensor.shape)
        values = values.astype(wanted.dtype, copy=False)
    if reason := wanted.why_not(values):
        raise InvalidRequestError(f"{name}: {reason}.")
    return values


def _read_numbers(text: bytes, count: int, wanted: ModelInput) -> NDArray[Any]:
    """Read numbers, flat or nested as the shape says; what they make is known to fit before any of it is made."""
    name, one, skeleton = wanted.tensor_name, math.prod(wanted.device_shape), text.translate(None, _NUMBERS)
    needed, found = count * one, skeleton.count(b",") + 1
    if skeleton not in (b"[" + b"," * (found - 1) + b"]", _nested(found // one, wanted.device_shape)):
        nested = ", ".join(map(str, ("N", *wanted.device_shape)))
        raise InvalidRequestError(f"{name}: the rows of data differ in length, or are not nested as [{nested}].")
    if found != needed:
        raise InvalidRequestError(f"{name}: the shape needs {needed} numbers, and there are {found}.")
    flat = b"[" + text.translate(None, b"[]") + b"]"
    try:
        given = [] if _TOO_LONG[wanted.is_image].search(flat) else json.loads(flat)
        values = np.array(given, dtype=np.int16 if wanted.is_image else np.float64)
    except ValueError as error:
        raise InvalidRequestError(f"{name}: data are {_numbers(wanted)}, with commas between them.") from error
    if len(values) != needed or (wanted.is_image and values.max() > _BYTE):
        raise InvalidRequestError(f"{name}: data are {_numbers(wanted)}.")
    with np.errstate(over="ignore"):
        return values.astype(wanted.dtype)


def _nested(count: int, shape: tuple[int, ...]) -> bytes:
    """Return the brackets and commas of nested data."""
    lists = b"[" + b"," * (shape[-1] - 1) + b"]"
    for length in (*reversed(shape[:-1]), count):
        lists = b"[" + b",".join([lists] * length) + b"]"
    return lists
