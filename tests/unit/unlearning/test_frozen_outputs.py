"""Training computes what frozen layers make of an image once, and comes to the same model."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from dlfd_fleet.model_input import image_input
from dlfd_fleet.models import ModelCard, WrappedClassifier, build, frozen_outputs, state_arrays
from dlfd_fleet.settings import TrainingSettings
from dlfd_fleet.unlearning import LabelledImages, fit
from tests.small_networks import small_networks

SETTINGS = TrainingSettings(batch_size=8)
EPOCHS = 3
IMAGES = 21
BATCHES = 3


def some_images():
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (IMAGES, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return LabelledImages(images, torch.arange(IMAGES) % 2)


def built_in(frozen=("backbone",)):
    card = ModelCard(architecture="mobilenet_v3_small", classes=("no", "yes"), input=image_input(32))
    with small_networks():
        model = build(card)
    model.freeze(frozen)
    return model


def in_a_row():
    """Frozen layers with layers between them that have nothing to learn; the one that comes after them draws."""
    layers = [nn.Conv2d(3, 4, 5, stride=4), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten()]
    network = nn.Sequential(*layers, nn.Dropout(0.5), nn.Linear(196, 8), nn.ReLU(inplace=True), nn.Linear(8, 2))
    model = WrappedClassifier(network)
    model.freeze(["0", "1"])
    return model


class Body(nn.Module):
    """A network that gives its input to a frozen submodule, and to a learning one beside it."""

    def __init__(self, before=lambda images: images) -> None:
        super().__init__()
        self.before = before
        self.body = nn.Sequential(nn.Conv2d(3, 4, 5, stride=4), nn.BatchNorm2d(4), nn.ReLU())
        self.beside = nn.Conv2d(3, 4, 5, stride=4)
        self.last = nn.Linear(196, 2)

    def forward(self, images):
        images = self.before(images)
        return self.last((self.body(images) + self.beside(images)).flatten(1))


def somebodys(before=lambda images: images):
    model = WrappedClassifier(Body(before))
    model.freeze(["body"])
    return model


def trained(model, **changes):
    """How often a training has run the first convolution, and what it comes to."""
    calls, first = [], next(one for one in model.network.modules() if isinstance(one, nn.Conv2d))
    hook = first.register_forward_hook(lambda *_: calls.append(1))
    loss = fit(model, some_images(), SETTINGS, epochs=EPOCHS, learning_rate=0.05, seed=0, **changes)
    hook.remove()
    return len(calls), state_arrays(model), loss


@pytest.mark.parametrize("make", [built_in, in_a_row, somebodys])
def test_frozen_layers_see_each_image_once_and_the_model_is_the_same(make, monkeypatch):
    torch.manual_seed(0)
    model = make()
    again = copy.deepcopy(model)
    calls, arrays, loss = trained(model)
    assert calls == BATCHES
    monkeypatch.setattr(frozen_outputs, "MOST_BYTES", 0)
    calls, expected, other_loss = trained(again)
    assert calls == EPOCHS * BATCHES
    assert loss == pytest.approx(other_loss, rel=1e-4)
    for name, array in arrays.items():
        torch.testing.assert_close(array, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "changes"),
    [
        (built_in, {"augment": lambda images, generator: images.flip(3)}),
        (lambda: somebodys(lambda images: images * 2.0), {}),
        (lambda: somebodys(lambda images: images.mul_(2.0)), {}),
    ],
)
def test_what_may_differ_from_epoch_to_epoch_is_computed_each_time(make, changes):
    assert trained(make(), **changes)[0] == EPOCHS * BATCHES


def test_what_has_learned_is_never_kept():
    assert trained(built_in(frozen=()))[0] == EPOCHS * BATCHES


def test_a_network_is_as_it_was_afterwards():
    for make in (built_in, in_a_row, somebodys):
        model = make()
        trained(model)
        assert not any("forward" in vars(module) for module in model.modules())
        one, other = (torch.rand(4, 3, 32, 32) for _ in range(2))
        assert not torch.equal(model(one), model(other))
