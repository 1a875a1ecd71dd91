"""Inputs that show nobody: what MLflow keeps as an example beside a model."""

from __future__ import annotations

import numpy as np
import pytest

from dlfd_fleet.data import drawn_inputs
from dlfd_fleet.model_input import ModelInput


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 28, 28), (3, 32, 48), (4, 16, 16)])
def test_an_example_is_one_that_the_model_takes(shape):
    model_input = ModelInput(shape=shape)
    example = drawn_inputs(model_input, 2)
    assert example.dtype == np.uint8
    assert np.array_equal(model_input.batch(example.tolist()), example)
    assert not np.array_equal(example[0], example[1])


def test_a_drawn_face_is_smooth_as_noise_is_not():
    def roughness(images):
        return float(np.abs(np.diff(images.astype(np.float64), axis=2)).mean())

    model_input = ModelInput(shape=(3, 64, 64))
    assert roughness(drawn_inputs(model_input, 2)) < roughness(model_input.random(2)) / 5.0


def test_where_a_model_takes_numbers_they_are_within_its_range():
    example = drawn_inputs(ModelInput(shape=(5,), kind="numbers", low=-2.0, high=9.0), 3)
    assert example.shape == (3, 5)
    assert -2.0 <= example.min() <= example.max() <= 9.0
