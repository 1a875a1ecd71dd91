"""DLFD: the method as the paper describes it, and what it promises to its caller."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from dlfd_fleet.audit import Reading
from dlfd_fleet.models import WrappedClassifier, digest, state_arrays
from dlfd_fleet.settings import UnlearningSettings
from dlfd_fleet.unlearning import (
    LabelledImages,
    checkpoint_rank,
    cosine_cost,
    dlfd,
    loss_monitor,
    predict_probabilities,
    transport_distance,
)
from dlfd_fleet.unlearning.distancing import distancing_noise

SETTINGS = UnlearningSettings(epochs=2, batch_size=8, learning_rate=0.01, monitor_every=1, gate=0.0)


def small_classifier(seed=0):
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(96, 2),
    )
    return WrappedClassifier(network, "4").eval()


def faces(count, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=generator)
    return LabelledImages(images, torch.arange(count) % 2)


RETAIN, FORGET, VALIDATION = faces(24, 1), faces(6, 2), faces(10, 3)


def test_noise_is_in_the_ball_and_images_stay_pixels():
    model = small_classifier()
    images, labels = RETAIN.batch(torch.arange(8), torch.device("cpu"))
    features = model.features(FORGET.batch(torch.arange(6), torch.device("cpu"))[0]).detach()
    noise = distancing_noise(model, images, labels, features, SETTINGS, 1.0)
    assert noise.abs().max() <= SETTINGS.ball + 1e-6
    assert (images + noise).min() >= 0.0
    assert (images + noise).max() <= 1.0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_noise_distances_features_from_the_forget_set():
    model = small_classifier()
    images, labels = RETAIN.batch(torch.arange(8), torch.device("cpu"))
    features = model.features(FORGET.batch(torch.arange(6), torch.device("cpu"))[0]).detach()

    def distance(batch):
        return transport_distance(cosine_cost(model.features(batch), features), 0.05, 500).item()

    moved = distancing_noise(model, images, labels, features, SETTINGS, 0.0)
    assert distance(images + moved) > distance(images)


def test_forget_weight_changes_the_result_so_transport_takes_part():
    """The released code computes transport on unperturbed images: there this weight changes nothing (METHOD)."""
    digests = set()
    for weight in (0.0, 3.0):
        settings = SETTINGS.model_copy(update={"forget_weight": weight})
        falling = iter(np.linspace(0.9, 0.6, 50))  # so that the last step is the one that is kept
        monitor = lambda _model, auc=falling: Reading(0.9, next(auc))  # noqa: E731
        outcome = dlfd(small_classifier(), RETAIN, FORGET, VALIDATION, settings, monitor, seed=1)
        assert outcome.chosen_step > 0
        digests.add(tuple(np.round(predict_probabilities(outcome.model, RETAIN).ravel(), 6)))
    assert len(digests) == 2


def test_the_same_seed_gives_the_same_model():
    first, second = (dlfd(small_classifier(), RETAIN, FORGET, VALIDATION, SETTINGS, seed=5) for _ in range(2))
    assert digest(state_arrays(first.model)) == digest(state_arrays(second.model))
    assert first.trace == second.trace


def test_an_already_forgotten_set_leaves_the_model_alone():
    model = small_classifier()
    before = digest(state_arrays(model))
    outcome = dlfd(model, RETAIN, FORGET, VALIDATION, SETTINGS, lambda _model: Reading(0.9, 0.5))
    assert outcome.chosen_step == 0
    assert digest(state_arrays(outcome.model)) == before


def test_a_checkpoint_under_the_utility_bound_is_never_chosen():
    readings = iter([Reading(0.9, 0.8), *[Reading(0.5, 0.5)] * 50])
    model = small_classifier()
    before = digest(state_arrays(model))
    outcome = dlfd(model, RETAIN, FORGET, VALIDATION, SETTINGS, lambda _model: next(readings))
    assert outcome.chosen_step == 0
    assert digest(state_arrays(outcome.model)) == before


def test_it_stops_at_the_gate():
    readings = iter([Reading(0.9, 0.8), Reading(0.9, 0.7), Reading(0.9, 0.52), *[Reading(0.9, 0.9)] * 50])
    settings = SETTINGS.model_copy(update={"gate": 0.03})
    outcome = dlfd(small_classifier(), RETAIN, FORGET, VALIDATION, settings, lambda _model: next(readings))
    assert [entry.step for entry in outcome.trace] == [0, 1, 2]
    assert outcome.chosen_step == 2


def test_gate_satisfied_without_utility_trains_on_clean_images():
    readings = iter([Reading(0.9, 0.8), Reading(0.5, 0.5), Reading(0.9, 0.5), *[Reading(0.9, 0.5)] * 50])
    outcome = dlfd(small_classifier(), RETAIN, FORGET, VALIDATION, SETTINGS, lambda _model: next(readings))
    assert [entry.phase for entry in outcome.trace] == ["original", "distancing", "classification"]


def test_without_a_monitor_every_step_distances_and_the_last_weights_stay():
    settings = SETTINGS.model_copy(update={"monitor_every": 0})
    model = small_classifier()
    before = digest(state_arrays(model))
    outcome = dlfd(model, RETAIN, FORGET, VALIDATION, settings)
    assert outcome.trace == ()
    assert outcome.chosen_step == 6  # two epochs of 24 images, 8 a step
    assert digest(state_arrays(outcome.model)) != before


def test_class_weights_change_what_is_learnt():
    weighted = torch.tensor([10.0, 0.1])
    settings = SETTINGS.model_copy(update={"monitor_every": 0, "epochs": 6.0})
    plain = dlfd(small_classifier(), RETAIN, FORGET, VALIDATION, settings)
    tilted = dlfd(small_classifier(), RETAIN, FORGET, VALIDATION, settings, class_weights=weighted)
    first = [predict_probabilities(outcome.model, RETAIN)[:, 0].mean() for outcome in (plain, tilted)]
    assert first[1] > first[0]


def test_augmentation_changes_every_retain_batch():
    seen = []

    def augment(images, generator):
        seen.append(len(images))
        return images.flip(3)

    settings = SETTINGS.model_copy(update={"monitor_every": 0})
    dlfd(small_classifier(), RETAIN, FORGET, VALIDATION, settings, augment=augment)
    assert sum(seen) == 2 * len(RETAIN)


@pytest.mark.parametrize(("retain", "forget"), [(3, 40), (40, 1), (1, 1)])
def test_any_sizes_of_the_sets_work(retain, forget):
    settings = SETTINGS.model_copy(update={"batch_size": 4})
    outcome = dlfd(small_classifier(), faces(retain, 5), faces(forget, 6), VALIDATION, settings)
    assert len(outcome.trace) >= 1


def test_an_empty_set_is_refused():
    with pytest.raises(ValueError, match="at least one forget image"):
        dlfd(small_classifier(), RETAIN, faces(0, 1), VALIDATION, SETTINGS)


def test_the_monitor_leaves_mode_and_weights_alone():
    model = small_classifier().train()
    before = copy.deepcopy(state_arrays(model))
    loss_monitor(FORGET, VALIDATION)(model)
    assert model.training
    assert digest(state_arrays(model)) == digest(before)


def test_rank_prefers_usefulness_then_forgetting_then_utility():
    useless, leaking, forgot, better = Reading(0.5, 0.5), Reading(0.9, 0.8), Reading(0.9, 0.52), Reading(0.92, 0.49)
    order = sorted([better, useless, forgot, leaking], key=lambda reading: checkpoint_rank(reading, 0.85, 0.03))
    assert order == [useless, leaking, forgot, better]
