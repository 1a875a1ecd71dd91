"""Networks that take a test no time to build, train, send and export, in the place of torchvision's.

The real ones have tests of their own: of the export, of the methods on the best device, of the benches, and those of
``tests/e2e``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from torch import Tensor, nn


class SmallNetwork(nn.Module):
    """Three convolutions with batch norm, and a classifier: enough to learn what drawn faces wear."""

    def __init__(self) -> None:
        super().__init__()
        layers, width = list[nn.Module](), 3
        for wider in (16, 32, 64):
            layers += [nn.Conv2d(width, wider, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(wider), nn.ReLU()]
            width = wider
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.classifier = nn.Linear(4 * width, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images))


@contextmanager
def small_networks() -> Iterator[None]:
    """Build one of them for every architecture."""
    with mock.patch("torchvision.models.get_model", side_effect=lambda *_, **__: SmallNetwork()):
        yield
