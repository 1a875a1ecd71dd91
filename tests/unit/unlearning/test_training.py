"""Batch-norm statistics are those of all images, whatever the batches they are taken in."""

import pytest
import torch
from torch import nn

from dlfd_fleet.unlearning import LabelledImages, recalibrate


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
