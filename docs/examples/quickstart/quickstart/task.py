"""The network, the data and the training loop that this app had before it knew of unlearning; and its task."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

from dlfd_fleet.data import PersonDataset
from dlfd_fleet.federation import Task

CLASSES = ("no glasses", "glasses")


class Net(nn.Module):
    """A small CNN."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, len(CLASSES))

    def forward(self, x):
        x = self.pool(functional.relu(self.conv1(x)))
        x = self.pool(functional.relu(self.conv2(x)))
        x = x.view(-1, 16 * 5 * 5)
        x = functional.relu(self.fc1(x))
        x = functional.relu(self.fc2(x))
        return self.fc3(x)


class Photos:
    """The photos of a folder PERSON/LABEL-NUMBER.png, as the network takes them: (3, 32, 32), from -1 to 1."""

    def __init__(self, folder):
        self.files = sorted(Path(folder).glob("*/*.png"))

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        file = self.files[index]
        pixels = np.array(Image.open(file).convert("RGB").resize((32, 32)))
        return torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1.0, file.name.rpartition("-")[0]

    def delete(self, indices):
        for index in indices:
            self.files[index].unlink()
            if not any(self.files[index].parent.iterdir()):
                self.files[index].parent.rmdir()  # it bears the person's name


def load_people(data):
    """Return this site's photos, and whose each one is; ``data`` is of the node's configuration."""
    photos = Photos(data)
    people = [file.parent.name for file in photos.files]
    return PersonDataset(photos, people, classes=CLASSES, delete=photos.delete)


def train(network, data, epochs, learning_rate):
    """Train a network; return the loss of the last batch."""
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=learning_rate, momentum=0.9)
    for _ in range(epochs):
        for images, labels in DataLoader(data, batch_size=16, shuffle=True):
            optimizer.zero_grad()
            loss = functional.cross_entropy(network(images), labels)
            loss.backward()
            optimizer.step()
    return loss.item()


task = Task(model=Net, data=load_people, classes=CLASSES, shape=(3, 32, 32), value_range=(-1.0, 1.0))
