"""Real networks where this machine computes fastest, a GPU if it has one: the same answers as on the CPU."""

import copy

import numpy as np
import ot
import pytest
import torch

from dlfd_fleet.export import export_onnx
from dlfd_fleet.model_input import image_input
from dlfd_fleet.models import ModelCard, build, load_model, save_model, to_best_device
from dlfd_fleet.settings import ExportSettings, TrainingSettings, UnlearningSettings
from dlfd_fleet.unlearning import (
    LabelledImages,
    UnlearningProblem,
    dlfd,
    fit,
    predict_probabilities,
    recalibrate,
    transport_distance,
)
from dlfd_fleet.unlearning.distancing import distancing_noise
from dlfd_fleet.unlearning.methods import METHODS

BEST = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CARD = ModelCard(architecture="resnet18", classes=("glasses", "no glasses"), input=image_input(32))
SETTINGS = UnlearningSettings(epochs=1, batch_size=8, distancing_steps=2, repair_epochs=0.5, gate=0.0, max_rounds=2)


def faces(count, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return LabelledImages(images, torch.arange(count) % 2)


RETAIN, FORGET, VALIDATION = faces(24, 1), faces(6, 2), faces(10, 3)


def network(seed=0):
    torch.manual_seed(seed)
    model = to_best_device(build(CARD)).eval()
    assert next(model.parameters()).device.type == BEST.type
    return model


def test_transport_and_its_gradient_are_those_of_another_library():
    generator = torch.Generator().manual_seed(0)
    cost = torch.rand(12, 7, generator=generator).to(BEST).requires_grad_(True)
    value = transport_distance(cost, 0.05, 5_000, tolerance=1e-9)
    (plan,) = torch.autograd.grad(value, cost)
    oracle = ot.solve(cost.detach().cpu().double().numpy(), reg=0.05, reg_type="KL", max_iter=100_000, tol=1e-12)
    assert (value.device.type, plan.device.type) == (BEST.type, BEST.type)
    assert value.item() == pytest.approx(float(oracle.value), abs=1e-5)
    np.testing.assert_allclose(plan.cpu().numpy(), oracle.plan, atol=1e-5)


def test_predictions_are_those_of_the_cpu():
    model = network()
    fit(model, RETAIN, TrainingSettings(batch_size=8), epochs=2, learning_rate=0.01, seed=0)
    recalibrate(model, RETAIN)
    there = predict_probabilities(model, VALIDATION)
    here = predict_probabilities(copy.deepcopy(model).cpu(), VALIDATION)
    np.testing.assert_allclose(there, here, atol=5e-3)  # convolutions in TF32


def test_noise_stays_in_its_ball_and_on_its_device():
    model = network()
    images, labels = RETAIN.batch(torch.arange(8), BEST)
    features = model.features(FORGET.batch(torch.arange(6), BEST)[0]).detach()
    noise = distancing_noise(model, images, labels, features, SETTINGS, 1.0)
    assert noise.device.type == BEST.type
    assert 0.0 < noise.abs().max() <= SETTINGS.ball + 1e-6


def test_dlfd_runs_its_rounds_and_the_same_seed_begins_alike():
    readings = []
    for _ in range(2):
        outcome = dlfd(
            UnlearningProblem(
                model=network(), retain=RETAIN, forget=FORGET, validation=VALIDATION, settings=SETTINGS, seed=3
            )
        )
        assert len(outcome.trace) > 1
        assert all(torch.isfinite(value).all() for value in outcome.model.state_dict().values())
        readings.append(outcome.trace[0].reading.attack_auc)
    assert readings[0] == pytest.approx(readings[1], abs=0.02)


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_trains_a_real_network_where_it_is(name):
    model = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    candidate = METHODS[name].candidates[0]
    settings = SETTINGS.model_copy(update=dict(candidate.changes) | {"epochs": 1})
    outcome = candidate.unlearner(
        UnlearningProblem(
            model=model,
            retain=RETAIN,
            forget=FORGET,
            validation=VALIDATION,
            settings=settings,
            class_weights=torch.tensor([0.8, 1.2]),
        )
    )
    after = outcome.model.state_dict()
    assert all(value.device.type == BEST.type and torch.isfinite(value).all() for value in after.values())
    assert any(not torch.equal(before[key], after[key]) for key in before)


def test_a_model_is_saved_and_read_from_where_it_is(tmp_path):
    model = network()
    save_model(model, CARD, tmp_path / "model")
    again = to_best_device(load_model(tmp_path / "model")[0])
    np.testing.assert_array_equal(predict_probabilities(again, VALIDATION), predict_probabilities(model, VALIDATION))


def test_a_model_becomes_onnx_and_stays_where_it_is(tmp_path):
    model = network()
    file = tmp_path / "model.onnx"
    report = export_onnx(model, CARD, file, version="1", settings=ExportSettings(), images=RETAIN.images)
    assert file.exists()
    assert report.parity.agreement == 1.0
    assert next(model.parameters()).device.type == BEST.type
