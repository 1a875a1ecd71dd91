"""The Open Inference Protocol: what is asked rightly is answered, and anything else is one sentence."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlfd_fleet.device.answering import Loaded
from dlfd_fleet.device.contract import Release, SelfTest
from dlfd_fleet.device.inference import DeviceModel
from dlfd_fleet.device.inference_protocol import (
    LARGEST_REQUEST,
    InvalidRequestError,
    largest_request,
    model_metadata,
    read_request,
    write_response,
)
from dlfd_fleet.model_input import image_input
from tests.tuf_repository import SIZE, random_images, tiny_model

NUMBERS = SIZE * SIZE * 3


@pytest.fixture(scope="module")
def loaded(tmp_path_factory) -> Loaded:
    file = tmp_path_factory.mktemp("protocol") / "model.onnx"
    file.write_bytes(tiny_model("7", 3))
    test = SelfTest(target="t", tolerance=0.1)
    release = Release(version="7", format="fp32", epoch=3, minimum_epoch=3, sequence=1, self_test=test)
    return Loaded(DeviceModel(file), release)


def tensor(images: np.ndarray, **changes) -> dict:
    return {"name": "images", "datatype": "UINT8", "shape": list(images.shape), "data": images.tolist()} | changes


def body(*inputs: dict, **more) -> bytes:
    return json.dumps({"inputs": list(inputs), **more}).encode()


def test_metadata_have_the_names_of_the_protocol(loaded):
    metadata = model_metadata(loaded)
    assert metadata["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, SIZE, SIZE, 3]}]
    assert metadata["outputs"] == [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]}]
    assert (metadata["name"], metadata["versions"]) == ("classifier", ["7"])
    assert json.loads(metadata["parameters"]["classes"]) == ["glasses", "none", "sun"]


@pytest.mark.parametrize("data", ["nested", "flat", "bytes"])
def test_images_are_read_from_every_form_that_the_protocol_has(loaded, data):
    images = random_images(3)
    if data == "bytes":
        head = body(
            {key: value for key, value in tensor(images).items() if key != "data"}
            | {"parameters": {"binary_data_size": images.nbytes}}
        )
        request = read_request(head + images.tobytes(), len(head), loaded.model)
    else:
        given_data = images.tolist() if data == "nested" else images.ravel().tolist()
        request = read_request(body(tensor(images, data=given_data), id="42"), None, loaded.model)
        assert request.id == "42"
    np.testing.assert_array_equal(request.images, images)


@pytest.mark.parametrize(
    ("more", "binary"),
    [
        ({}, False),
        ({"parameters": {"binary_data_output": True}}, True),
        ({"outputs": [{"name": "probabilities"}]}, False),
        ({"outputs": [{"name": "probabilities", "parameters": {"binary_data": True}}]}, True),
        (
            {
                "outputs": [{"name": "probabilities", "parameters": {"binary_data": False}}],
                "parameters": {"binary_data_output": True},
            },
            False,
        ),
    ],
)
def test_answer_has_the_form_that_was_asked_for(loaded, more, binary):
    images = random_images(2)
    request = read_request(body(tensor(images), **more), None, loaded.model)
    expected = loaded.model.predict(images)
    answer, head = write_response(request, loaded, expected)
    document = json.loads(answer if head is None else answer[:head])
    (output,) = document["outputs"]
    assert (document["model_name"], document["model_version"]) == ("classifier", "7")
    assert (output["name"], output["datatype"], output["shape"]) == ("probabilities", "FP32", [2, 3])
    assert (head is not None) == binary
    if binary:
        assert output["parameters"]["binary_data_size"] == len(answer) - head
        found = np.frombuffer(answer[head:], dtype="<f4")
    else:
        found = np.array(output["data"], dtype=np.float32)
    np.testing.assert_array_equal(found.reshape(2, 3), expected)


IMAGE = random_images(1)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "body: "),
        (b"\xff", "body: "),
        (b"[]", "body: "),
        (b"{}", "inputs: "),
        (body(), "inputs: give one tensor, 'images'"),
        (body(tensor(IMAGE), tensor(IMAGE)), "inputs: give one tensor, 'images'"),
        (body(tensor(IMAGE, name="pixels")), "inputs: give one tensor, 'images'"),
        (body(tensor(IMAGE, datatype="FP32")), "the datatype is UINT8"),
        (body(tensor(IMAGE, shape=[SIZE, SIZE, 3])), "the shape is"),
        (body(tensor(IMAGE, shape=[0, SIZE, SIZE, 3])), "the shape is"),
        (body(tensor(IMAGE, shape=[-1, SIZE, SIZE, 3])), "the shape is"),
        (body(tensor(IMAGE, shape=[2**62, SIZE, SIZE, 3])), "the shape needs"),
        (body(tensor(IMAGE, data=[1, 2])), f"the shape needs {NUMBERS} numbers, and there are 2"),
        (body(tensor(IMAGE, data=[[1], [1, 2]])), "the rows of data differ in length"),
        (body(tensor(IMAGE, data=[256] * NUMBERS)), "whole numbers from 0 to 255"),
        (body(tensor(IMAGE, data=[-1] * NUMBERS)), "whole numbers from 0 to 255"),
        (body(tensor(IMAGE, data=[0.5] * NUMBERS)), "whole numbers from 0 to 255"),
        (body(tensor(IMAGE, data=[True] * NUMBERS)), "whole numbers from 0 to 255"),
        (body(tensor(IMAGE, data=["1"] * NUMBERS)), "whole numbers from 0 to 255"),
        (body(tensor(IMAGE, data=[2**70] * NUMBERS)), "whole numbers from 0 to 255"),
        (body(tensor(IMAGE, data=[None] * NUMBERS)), "whole numbers from 0 to 255"),
        (body(tensor(IMAGE, data=None)), "give either data, or binary_data_size"),
        (body(tensor(IMAGE, parameters={"binary_data_size": NUMBERS})), "give either data, or binary_data_size"),
        (body(tensor(IMAGE), outputs=[{"name": "logits"}]), "outputs: there is one"),
    ],
)
def test_request_that_makes_no_sense_is_one_sentence(loaded, content, words):
    with pytest.raises(InvalidRequestError) as refused:
        read_request(content, None, loaded.model)
    assert words in str(refused.value)


LONG = b"x" * 2**20
HUGE = b'{"inputs": [{"name": "images", "datatype": "UINT8", "shape": [1, 8, 8, 3], "data": %s}]}'


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'["' + LONG + b'"' + b",1" * 191 + b"]", "whole numbers from 0 to 255"),
        (b"[" + b"1," * 2**19 + b"1]", "the shape needs 192 numbers, and there are 524289"),
        (b"[" + b"[]," * 2**18 + b"[]]", "rows of data differ"),
        (b"[" * 2**20, "whole numbers from 0 to 255"),
        (b"[" + b"9" * 2**20 + b",1" * 191 + b"]", "whole numbers from 0 to 255"),
        (b"[" + b"{}," * 2**18 + b"{}]", "whole numbers from 0 to 255"),
        (b"[" + b"null," * 2**18 + b"1]", "whole numbers from 0 to 255"),
        (b"[1" + b" " * 2**20 + b"2" + b",1" * 191 + b"]", "whole numbers from 0 to 255"),
        (b"[" + b",1" * 191 + b"]", "whole numbers from 0 to 255"),
        (b"[1.5" + b",1" * 191 + b"]", "whole numbers from 0 to 255"),
        (b"[01" + b",1" * 191 + b"]", "whole numbers from 0 to 255"),
        (b"[1]], [[1]", "rows of data differ"),
        (b'[1], "data": [2]', "with data once"),
    ],
    ids=range(13),
)
def test_what_a_request_makes_of_memory_is_bounded_by_its_length(loaded, data, words):
    """Two megabytes made 1.2 GiB once, and four asked for 3.6 TiB."""
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequestError, match=words):
            read_request(HUGE % data, None, loaded.model)
        assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("rest", [{"id": "x" * 2**17}, {"parameters": {"a": ["b"] * 2**15}}, {"shape": [10**30]}])
def test_the_rest_of_a_request_is_short(loaded, rest):
    with pytest.raises(InvalidRequestError):
        read_request(body(tensor(IMAGE) | rest, **rest), None, loaded.model)


def test_a_request_may_have_as_many_bytes_as_32_images_of_the_model():
    assert largest_request(image_input(8)) == 2**16 + 32 * 8 * 8 * 3 * 16
    assert largest_request(image_input(4096)) == LARGEST_REQUEST


@pytest.mark.parametrize("told", [-1, 10, NUMBERS - 1, "many", 10.5])
def test_bytes_that_do_not_fit_what_is_told_of_them_are_refused(loaded, told):
    head = body(tensor(IMAGE, data=None, parameters={"binary_data_size": told}))
    with pytest.raises(InvalidRequestError):
        read_request(head + b"\0" * NUMBERS, len(head), loaded.model)
    with pytest.raises(InvalidRequestError):
        read_request(head + b"\0" * 10, len(head), loaded.model)
    with pytest.raises(InvalidRequestError, match="longer than the body"):
        read_request(head, len(head) + 1, loaded.model)


@given(
    content=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["inputs", "outputs", "parameters", "name", "shape", "datatype", "data", "images"]),
                inner,
            )
        ),
        max_leaves=20,
    ),
    head=st.none() | st.integers(0, 300),
)
def test_any_json_is_a_request_or_one_sentence(loaded, content, head):
    try:
        request = read_request(json.dumps(content).encode(), head, loaded.model)
    except InvalidRequestError:
        return
    assert request.images.shape[1:] == (SIZE, SIZE, 3)
