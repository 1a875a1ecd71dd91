"""Training anew is exact only from weights that this fleet has not trained: in whatever precision they are given."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.federation.release.exactness import why_not_exact
from dlfd_fleet.model_input import image_input
from dlfd_fleet.models import ModelCard, build, described, save_model, state_arrays
from dlfd_fleet.settings import Settings
from tests.small_networks import small_networks

CARD = ModelCard(architecture="resnet18", classes=("no", "yes"), input=image_input(32), began_with="random weights")


@pytest.fixture(autouse=True)
def networks():
    with small_networks():
        yield


def floats(arrays, change):
    return {name: change(array) if array.is_floating_point() else array for name, array in arrays.items()}


def with_one_value_changed(arrays):
    name = next(name for name, array in arrays.items() if array.is_floating_point() and array.numel() > 8)
    changed = arrays[name].clone()
    changed.view(-1)[0] += 1e-6
    return arrays | {name: changed}


def with_another_head(arrays):
    last = list(arrays)[-2:]
    return arrays | {name: torch.randn_like(arrays[name]) for name in last}


def doubt(tmp_path, weights, model, began_with=CARD.began_with):
    """Say why training anew from these weights is not exact in a fleet that has trained a model."""
    store = Store(tmp_path / "state")
    folder = store.folders.model(store.new_job("train", Settings()).job)
    folder.mkdir(parents=True)
    save_model(model, CARD.model_copy(update={"began_with": began_with}), folder)
    save_file(weights, tmp_path / "weights.safetensors")
    return why_not_exact(store, CARD, state_arrays(model), str(tmp_path / "weights.safetensors"))


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays,
        lambda arrays: floats(arrays, torch.Tensor.half),
        lambda arrays: floats(arrays, torch.Tensor.bfloat16),
        with_one_value_changed,
        with_another_head,
    ],
    ids=["as it is", "float16", "bfloat16", "one value", "another head"],
)
def test_the_fleets_own_model_is_recognised_in_other_precision_and_where_a_little_differs(tmp_path, change):
    model = build(CARD)
    said = doubt(tmp_path, change(state_arrays(model)), model)
    assert "which were trained on this fleet's people" in said


def test_weights_of_somebody_else_are_exact(tmp_path):
    assert doubt(tmp_path, state_arrays(build(CARD)), build(CARD)) == ""


def test_what_a_training_began_with_is_exact_however_little_the_training_has_changed(tmp_path):
    model = build(CARD)
    weights = floats(state_arrays(model), lambda array: array * (1.0 + 1e-5))
    save_file(weights, tmp_path / "weights.safetensors")
    began_with = described(CARD, str(tmp_path / "weights.safetensors"))
    assert doubt(tmp_path, weights, model, began_with) == ""
