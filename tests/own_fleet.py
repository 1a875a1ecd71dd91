"""A fleet that somebody has: networks, data and loops of their own, as their package would define them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from dlfd_fleet.federation import Task

CLASSES = ("class-0", "class-1")


class GreyNet(nn.Module):
    """A small CNN of one channel; it flattens by view, as many do."""

    def __init__(self, classes: int = 2, width: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 5, stride=2)
        self.pool = nn.MaxPool2d(2, 2)
        self.fc1 = nn.Linear(width * 7 * 7, 32)
        self.fc2 = nn.Linear(32, classes)

    def forward(self, images: Tensor) -> Tensor:
        seen = self.pool(functional.relu(self.conv1(images)))
        return self.fc2(functional.relu(self.fc1(seen.view(-1, self.fc1.in_features))))


class WiderNet(GreyNet):
    """Another network for the same images."""

    def __init__(self) -> None:
        super().__init__(width=12)


def task(**changes: object) -> Task:
    """Grey images of 32 by 32 pixels from -1 to 1, read from files."""
    return Task(
        **{"model": GreyNet, "classes": CLASSES, "shape": (1, 32, 32), "value_range": (-1.0, 1.0)} | changes  # type: ignore[arg-type]
    )


def train_own_way(network: nn.Module, data, *, epochs: int, learning_rate: float) -> float:
    """A training loop of one's own."""
    optimizer = torch.optim.Adam(network.parameters(), learning_rate / 10)
    loss = torch.zeros(())
    for _ in range(epochs):
        for images, labels in torch.utils.data.DataLoader(data, batch_size=8, shuffle=True):
            optimizer.zero_grad()
            loss = functional.cross_entropy(network(images), labels)
            loss.backward()
            optimizer.step()
    return float(loss.detach())
