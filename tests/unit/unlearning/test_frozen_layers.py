"""Frozen layers: whatever learns or forgets leaves them as they are, to the bit."""

import copy

import pytest
import torch
from torch import nn

from dlfd_fleet.models import WrappedClassifier, state_arrays
from dlfd_fleet.settings import TrainingSettings, UnlearningSettings
from dlfd_fleet.unlearning import METHODS, LabelledImages, UnlearningProblem, dlfd, fit, recalibrate

SETTINGS = UnlearningSettings(epochs=1, batch_size=8, max_rounds=1, distancing_steps=2, repair_epochs=0.5)
RUNS = [
    pytest.param(unlearner, id=f"{name}-{number}")
    for name, method in METHODS.items()
    for number, unlearner in enumerate(
        [candidate.unlearner for candidate in method.candidates] + ([method.at_site] if method.at_site else [])
    )
]

# One gives the original back where no round was useful, the other may find nothing to dampen.
MAY_CHANGE_NOTHING = [dlfd, *(candidate.unlearner for candidate in METHODS["ssd"].candidates)]


def images(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return LabelledImages(
        torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=generator), torch.arange(count) % 3
    )


RETAIN, FORGET, VALIDATION = images(24, 1), images(6, 2), images(9, 3)


def network():
    """A prefix, a middle and a head, each with what changes by itself in train mode; biases in front of none of it."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.3)),
        nn.Sequential(nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(4), nn.Flatten()),
        nn.Linear(96, 8),
        nn.ReLU(),
        nn.Linear(8, 3),
    )


def model(*layers):
    classifier = WrappedClassifier(network(), "3").eval()
    classifier.freeze(layers)
    return classifier


def moved(before, after):
    return {name for name, array in before.items() if not torch.equal(array, after[name])}


@pytest.mark.parametrize("layers", [("0",), ("0", "2", "1.0.bias"), ("4",)], ids=["prefix", "some", "last"])
@pytest.mark.parametrize("unlearner", RUNS)
def test_every_method_leaves_frozen_layers_as_they_are(unlearner, layers):
    forgetful = model(*layers)
    before = state_arrays(forgetful)
    unlearner(
        UnlearningProblem(
            model=forgetful, retain=RETAIN, forget=FORGET, validation=VALIDATION, settings=SETTINGS, seed=0
        )
    )
    frozen = {name for name in before if name.startswith(tuple(f"{layer}." for layer in layers)) or name in layers}
    changed = moved(before, state_arrays(forgetful))
    assert not changed & frozen
    assert changed or unlearner in MAY_CHANGE_NOTHING


def test_training_and_statistics_leave_them_as_they_are():
    learning = model("0")
    before = state_arrays(learning)
    settings = TrainingSettings(batch_size=8, momentum=0.9, weight_decay=0.1)
    fit(learning, RETAIN, settings, epochs=2, learning_rate=0.1, seed=0)
    recalibrate(learning, RETAIN)
    assert moved(before, state_arrays(learning)) == {name for name in before if not name.startswith("0.")}


def test_frozen_layers_stay_in_eval_mode_and_the_others_do_not():
    learning = model("0").train()
    assert [each.training for each in learning.module[0]] == [False] * 4
    assert [each.training for each in learning.module[1]] == [True] * 4
    assert not copy.deepcopy(learning).train().module[0][3].training


def test_the_backward_pass_does_not_go_through_a_frozen_prefix():
    learning = model("0", "1").train()
    features = learning.module[:2](torch.rand(2, 3, 16, 16))
    assert not features.requires_grad  # nothing of the prefix is kept for a backward pass
    inputs = torch.rand(2, 3, 16, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(learning(inputs).sum(), inputs)
    assert gradient.abs().sum() > 0  # which DLFD's noise needs


def test_what_takes_no_gradient_before_it_is_wrapped_is_frozen_too():
    own = network()
    own[0].requires_grad_(False)
    own[2].bias.requires_grad_(False)
    classifier = WrappedClassifier(own, "3")
    assert classifier.frozen == ("0", "2.bias")
    assert not classifier.train().module[0][1].training


def test_single_frozen_weights_survive_a_reset_of_their_layer():
    learning = model("2.bias")
    before = learning.module[2].bias.clone()
    METHODS["eu-k"].candidates[0].unlearner(
        UnlearningProblem(
            model=learning, retain=RETAIN, forget=FORGET, validation=VALIDATION, settings=SETTINGS, seed=0
        )
    )
    assert torch.equal(learning.module[2].bias, before)


def test_a_layer_may_be_named_twice_and_inside_another():
    assert model("0.0", "0", "0").frozen == ("0.0", "0")


def test_a_model_without_gradients_is_refused_and_none_of_its_layers_is_frozen_for_ever():
    own = network().requires_grad_(False)
    classifier = WrappedClassifier(own, "3")
    problem = UnlearningProblem(model=classifier, retain=RETAIN, forget=FORGET, settings=SETTINGS, seed=0)
    with pytest.raises(ValueError, match="No parameter of the model takes a gradient"):
        METHODS["fine-tune"].default.unlearner(problem)
    classifier.requires_grad_(True)
    METHODS["fine-tune"].default.unlearner(problem)
    assert not classifier.frozen


def test_a_loop_that_knows_nothing_of_frozen_layers_leaves_them_as_they_are():
    learning = model("0")
    before, seen = state_arrays(learning), []
    with learning.kept_frozen():
        own = learning.network.train().requires_grad_(True)
        own[0][1].register_forward_hook(lambda norm, *_: seen.append(norm.training))
        optimizer = torch.optim.SGD(own.parameters(), 0.1, weight_decay=0.1)
        nn.functional.cross_entropy(own(torch.rand(8, 3, 16, 16)), torch.arange(8) % 3).backward()
        optimizer.step()
    assert moved(before, state_arrays(learning)) == {name for name in before if not name.startswith("0.")}
    assert seen == [False]  # also what learns behind them has seen them as they are used
    assert not any(each.requires_grad for each in learning.module[0].parameters())
    assert not learning.module[0][1]._forward_pre_hooks
