"""Batch-norm statistics are those of all images, whatever the batches; a rate falls to 0 over the steps."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dlfd_fleet.settings import TrainingSettings
from dlfd_fleet.unlearning import LabelledImages, recalibrate
from dlfd_fleet.unlearning.training import fit, moved_statistics


def bright(count, kinds):
    """Images of one brightness each, in blocks."""
    values = torch.linspace(0.0, 1.0, kinds).repeat_interleave(-(-count // kinds))[:count]
    return LabelledImages(values[:, None, None, None].expand(count, 3, 2, 2).clone(), torch.zeros(count).long())


@pytest.mark.parametrize("count", [129, 172, 300])
def test_statistics_are_those_of_all_images(count):
    network, data = nn.BatchNorm2d(3), bright(count, 5)
    recalibrate(network, data)
    assert network.running_mean.numpy() == pytest.approx(data.images.mean(dim=(0, 2, 3)).numpy(), abs=0.01)
    assert not network.training


def test_a_last_batch_of_one_image_does_not_break_maps_of_one_pixel():
    network = nn.Sequential(nn.AvgPool2d(2), nn.BatchNorm2d(3))
    recalibrate(network, bright(129, 3))
    recalibrate(network, bright(1, 1))
    assert torch.isfinite(network[1].running_var).all()


@given(count=st.integers(1, 200), size=st.integers(1, 40))
def test_batches_of_an_epoch_hold_each_image_once_and_are_of_one_size(count, size):
    """A last batch of two or three images would be a step on the batch statistics of two or three images."""
    data = LabelledImages(torch.zeros(count, 1), torch.zeros(count).long())
    batches = list(data.batches(size, torch.Generator().manual_seed(0)))
    assert sorted(torch.cat(batches).tolist()) == list(range(count))
    sizes = [len(batch) for batch in batches]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= min(2, count)
    assert max(sizes) <= max(size, 3)  # three images in batches of one are one batch


def two_layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2))


def statistics(network):
    return {name: value.clone() for name, value in network.named_buffers() if "running" in name}


def test_statistics_of_others_stay_where_no_weight_moves():
    network, own = two_layers(), bright(40, 5)
    recalibrate(network, LabelledImages(torch.rand(200, 3, 2, 2) ** 3, torch.zeros(200).long()))
    before = statistics(network)
    with moved_statistics(network, own):
        network.train()
        network(own.images)
    for name, value in statistics(network).items():
        torch.testing.assert_close(value, before[name], rtol=1e-5, atol=1e-6)


def test_statistics_move_with_the_weights_as_those_of_ones_own_images_do():
    """A first layer whose answers are doubled has twice the mean and four times the variance, for everybody."""
    network, own = two_layers(), bright(200, 5)
    others = LabelledImages(
        torch.rand(400, 3, 2, 2, generator=torch.Generator().manual_seed(1)) ** 2, torch.zeros(400).long()
    )
    recalibrate(network, others)
    with moved_statistics(network, own), torch.no_grad():
        network[0].weight.mul_(1.05)
        network[0].bias.mul_(1.05)
    moved = statistics(network)
    recalibrate(network, others)
    true = statistics(network)
    before = two_layers()
    recalibrate(before, others)
    recalibrate(own_only := two_layers(), own)
    for name in ("1.running_mean", "1.running_var"):
        kept, alone = statistics(before)[name], statistics(own_only)[name]
        assert (moved[name] - true[name]).abs().max() < 0.5 * (kept - true[name]).abs().max()
        assert (moved[name] - true[name]).abs().max() < 0.5 * (alone - true[name]).abs().max()


def test_the_rate_falls_to_0_along_half_a_cosine_over_the_steps_of_all_epochs():
    rates, network = [], nn.Sequential(nn.Flatten(), nn.Linear(12, 2))

    class Noted(torch.optim.SGD):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    def train(**changes):
        rates.clear()
        settings = TrainingSettings(batch_size=8)
        fit(
            network,
            bright(20, 2),
            settings,
            epochs=2,
            learning_rate=0.1,
            seed=0,
            optimizer=lambda weights, rate: Noted(weights, lr=rate),
            **changes,
        )
        return list(rates)

    assert train(cosine=True) == pytest.approx([0.05 * (1.0 + math.cos(math.pi * step / 6)) for step in range(6)])
    assert train() == [0.1] * 6
