"""Models as differences: what they stand for, what they weigh, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_numpy

from dlfd_fleet.exceptions import MessageError
from dlfd_fleet.federation.protocol.differences import difference_of, model_of

SMALLER = {"float16": 2**-11, "int8": 1 / 254}  # largest error, in the largest change of a row

ROWS = hypothesis_numpy.arrays(np.float32, (3, 4), elements=st.floats(-1e3, 1e3, width=32))


def model(kernel, variance=1.0, count=3):
    """Of the arrays that a model has: a kernel, a vector that must stay positive, a counter."""
    return {"kernel": torch.tensor(kernel), "running_var": torch.tensor([variance]), "count": torch.tensor(count)}


@pytest.mark.parametrize("precision", ["float16", "int8"])
@given(before=ROWS, after=ROWS)
def test_a_difference_stands_for_the_model_up_to_its_precision(precision, before, after):
    base, trained = model(before), model(after, 1e-9, 7)
    rebuilt = model_of(difference_of(trained, base, precision), base, precision, "site-1")
    assert list(rebuilt) == list(base)
    largest = np.abs(after - before).max(axis=1, keepdims=True)
    error = np.abs(rebuilt["kernel"].numpy() - after)
    assert (error <= SMALLER[precision] * largest + 1e-6 * (np.abs(before) + np.abs(after)) + 1e-7).all()
    assert rebuilt["running_var"].item() == trained["running_var"].item()  # rounded, it could be negative
    assert rebuilt["count"].item() == 7


@pytest.mark.parametrize("precision", ["float16", "int8"])
@given(rows=ROWS)
def test_no_change_stays_none(precision, rows):
    base = model(rows)
    assert torch.equal(
        model_of(difference_of(base, base, precision), base, precision, "site-1")["kernel"], base["kernel"]
    )


def test_exact_is_the_model_itself():
    trained, base = model([[1.0, 2.0]]), model([[0.0, 0.0]])
    assert difference_of(trained, base, "float32") == trained
    assert model_of(trained, base, "float32", "site-1") == trained


@pytest.mark.parametrize(("precision", "share"), [("float16", 0.5), ("int8", 0.25)])
def test_bytes_are_a_half_and_a_quarter(precision, share):
    base, trained = ({"kernel": torch.rand(64, 32, 3, 3)} for _ in range(2))
    sizes = [
        sum(array.nbytes for array in arrays.values()) for arrays in (difference_of(trained, base, precision), base)
    ]
    assert share <= sizes[0] / sizes[1] < share + 0.01


@pytest.mark.parametrize(
    ("precision", "sent", "sentence"),
    [
        ("float16", {"kernel": torch.zeros(2, 2)}, "the difference of 'kernel' as torch.float32"),
        (
            "float16",
            {"kernel": torch.zeros(2, 3).half()},
            r"'kernel' as .* \(2, 3\), not .* \(2, 2\)",
        ),
        ("int8", {"kernel": torch.zeros(2, 2).half()}, "'kernel' as torch.float16"),
        ("int8", {"kernel": torch.zeros(2, 2).char()}, "no difference of 'kernel:scale'"),
        ("int8", {"kernel": torch.zeros(2, 2).char(), "kernel:scale": torch.zeros(3)}, r"'kernel:scale' as .* \(3,\)"),
        ("int8", {}, "no difference of 'kernel'"),
    ],
)
def test_what_is_no_difference_is_refused(precision, sent, sentence):
    with pytest.raises(MessageError, match=f"site-1 sent .*{sentence}"):
        model_of(sent, {"kernel": torch.zeros(2, 2)}, precision, "site-1")


def test_arrays_that_no_model_has_are_left_for_the_check_of_the_model():
    base = {"kernel": torch.zeros(2, 2)}
    sent = difference_of(base, base, "int8") | {"more": torch.zeros(1)}
    assert set(model_of(sent, base, "int8", "site-1")) == {"kernel", "more"}
