"""Loaders of other people's packages, as a site names them: ``tests.loaders:...``."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from dlfd_fleet.data.people import PersonDataset

VALUES = 6
CLASSES = ("well", "ill")


def patients(
    people: int = 12, visits: int = 4, seed: int = 0, prefix: str = "p"
) -> tuple[list[str], np.ndarray, list[int]]:
    """Return the person of each visit, its numbers from -4 to 4, and a class that they tell."""
    generator = np.random.default_rng(seed)
    names, labels = [], []
    for number in range(people):
        names += [f"{prefix}{number:02d}"] * visits
        labels += [number % 2] * visits
    values = generator.normal(size=(len(names), VALUES)).astype(np.float32)
    values[:, 0] += np.array(labels) * 2.0 - 1.0
    return names, values.clip(-4.0, 4.0), labels


def write_database(file: Path, people: int = 12, visits: int = 4, seed: int = 0, prefix: str = "p") -> None:
    """Keep patients where a hospital does: in a database of its own."""
    with sqlite3.connect(file) as database:
        database.execute("pragma secure_delete = on")
        database.execute("create table visit (person text, numbers blob, label integer)")
        rows = zip(*patients(people, visits, seed, prefix), strict=True)
        database.executemany("insert into visit values (?, ?, ?)", ((name, x.tobytes(), y) for name, x, y in rows))
    database.close()


class Visits:
    """A map-style data set of torch over a database."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.keys = [key for (key,) in self._all("select rowid from visit order by rowid")]

    def __len__(self):
        return len(self.keys)

    def __getitem__(self, index):
        ((numbers, label),) = self._all("select numbers, label from visit where rowid = ?", self.keys[index])
        return torch.from_numpy(np.frombuffer(numbers, np.float32).copy()), torch.tensor(label)

    def people(self):
        return [name for (name,) in self._all("select person from visit order by rowid")]

    def delete(self, indices):
        with sqlite3.connect(self.file) as database:
            database.execute("pragma secure_delete = on")
            database.executemany("delete from visit where rowid = ?", [(self.keys[index],) for index in indices])
        database.close()

    def _all(self, query, *values):
        database = sqlite3.connect(self.file)
        try:
            return database.execute(query, values).fetchall()
        finally:
            database.close()


def database(site_folder: Path, file: str = "../hospital.db", deletes: bool = True) -> PersonDataset:
    visits = Visits(site_folder / file)
    return PersonDataset(visits, visits.people(), classes=CLASSES, delete=visits.delete if deletes else None)


def failing_delete(site_folder: Path) -> PersonDataset:
    def delete(indices):
        raise PermissionError("p00 may not be deleted")

    visits = Visits(site_folder / "../hospital.db")
    return PersonDataset(visits, visits.people(), classes=CLASSES, delete=delete)


def photographs(count: int = 8, side: int = 40) -> PersonDataset:
    """Images of PIL in columns of other names, as a Hugging Face data set from disk gives them."""
    generator = np.random.default_rng(0)
    rows = [
        {"photo": Image.fromarray(generator.integers(0, 256, (side, side, 3), dtype=np.uint8)), "wears": number % 2}
        for number in range(count)
    ]
    people = [f"person {number // 2}" for number in range(count)]
    splits = ["test" if number < 2 else "train" for number in range(count)]
    return PersonDataset(rows, people, splits, ("no", "yes"), input_name="photo", label_name="wears")


def one_row(value=0.5, label=0, shape: int = VALUES) -> PersonDataset:
    """Two rows, the second of which is what the arguments say."""
    rows = [(np.zeros(VALUES, np.float32), 0), (np.full(shape, value, np.float32), label)]
    return PersonDataset(rows, ["anna", "bert"], classes=CLASSES)


def wrong(what: str):
    """Return what is no data set with people."""
    rows = [(np.zeros(VALUES, np.float32), 0)]
    if what == "failing":
        raise RuntimeError("the disk is away")
    return {
        "tuple": rows,
        "stream": PersonDataset(iter(rows), ["anna"]),
        "names": PersonDataset(rows, (name for name in ["anna"])),
        "no rows": PersonDataset([], []),
        "no people": PersonDataset(rows, []),
        "none": PersonDataset(rows, None),
        "more people": PersonDataset(rows, ["anna", "bert"]),
        "more splits": PersonDataset(rows, ["anna"], splits=["train", "test"]),
        "split": PersonDataset(rows, ["anna"], splits=["holdout"]),
        "nobody": PersonDataset(rows, ["nan"]),
        "no pair": PersonDataset([rows[0][0]], ["anna"]),
        "column": PersonDataset([{"image": rows[0][0]}], ["anna"]),
        "row": PersonDataset({}.__class__({1: rows[0]}), ["anna"]),
        "text": PersonDataset([("abc", 0)], ["anna"]),
        "label": PersonDataset([(rows[0][0], 1.5)], ["anna"]),
    }[what]


class VisitNet(nn.Module):
    """A network of numbers."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(VALUES, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.head = nn.Linear(width, len(CLASSES))

    def forward(self, numbers: Tensor) -> Tensor:
        return self.head(self.hidden(numbers))


def drawn(count: int, side: int, people: int) -> PersonDataset:
    """Images without a disk of their own."""
    return PersonDataset(_Drawn(count, side), [f"p{number % people}" for number in range(count)], classes=("no", "yes"))


class _Drawn:
    def __init__(self, count, side):
        self.count, self.side = count, side

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return np.random.default_rng(index).integers(0, 256, (3, self.side, self.side), dtype=np.uint8), index % 2
