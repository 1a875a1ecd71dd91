"""What is measured after each erasure, and what grows with their number."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from dlfd_fleet.settings import Settings
from dlfd_fleet.tracking import open_registry

_QUERIES, _RUNS = 5, 50
MEBIBYTE = 2**20


@dataclass(frozen=True)
class Erasure:
    """What is known after one erasure.

    Attributes
    ----------
    asked, forgotten, waiting
        People who asked so far, whom released models have forgotten, and who wait.
    lost
        People who have not asked, and whom their site does not train on any more; or who asked, and whose request is
        gone.
    wrong_devices
        Devices that polled and do not run the champion then, or keep an older one.
    returned
        Forgotten people whom a site would train on, by their names or their rows.
    memory, state, sites
        Mebibytes of this process, of the coordinator's state without MLflow, and of all sites' folders.
    mlflow
        Mebibytes of MLflow's store and files.
    query
        Seconds of two questions to MLflow: all versions of the model, and the last 50 erasures.
    """

    number: int
    verdict: str
    released: bool
    seconds: float
    asked: int
    forgotten: int
    waiting: int
    lost: int
    returned: int
    wrong_devices: int
    memory: float
    state: float
    sites: float
    mlflow: float
    query: float
    process: int
    """That did it: a life that was interrupted goes on in another one."""


@dataclass(frozen=True)
class Utility:
    """The champion beside a model that was trained anew on whoever is left.

    Attributes
    ----------
    champion, retrained
        Accuracy on people who never were at a site.
    champion_attack, retrained_attack
        AUC of the loss attack: everybody whom the fleet has forgotten so far, against people who never were at a site.
        0.5 knows nothing of them.
    """

    number: int
    champion: float
    retrained: float
    champion_attack: float
    retrained_attack: float


@dataclass(frozen=True)
class Slope:
    """How much something grows with each erasure, with the standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:+.3f} ± {self.error:.3f}"


def slope(values: Sequence[float], groups: Sequence[int] | None = None) -> Slope | None:
    """Return the slope of a straight line through values, one an erasure; None if they are too few.

    Parameters
    ----------
    groups
        Of which process each value is: each has a line of its own, of the same slope.
    """
    x, y = np.arange(len(values), dtype=np.float64), np.asarray(values, dtype=np.float64)
    kinds = np.zeros(len(values), dtype=np.int64) if groups is None else np.asarray(groups)
    for kind in np.unique(kinds):
        x[kinds == kind] -= x[kinds == kind].mean()
        y[kinds == kind] -= y[kinds == kind].mean()
    spread, free = float((x**2).sum()), len(values) - len(np.unique(kinds)) - 1
    if free < 1 or not spread:
        return None
    found = float((x * y).sum()) / spread
    return Slope(found, math.sqrt(float(((y - found * x) ** 2).sum()) / free / spread))


def size_of(*folders: Path) -> float:
    """Return the mebibytes of folders and files; what is not there has none."""
    files = (file for folder in folders for file in (folder, *folder.rglob("*")) if file.is_file())
    return sum(file.stat().st_size for file in files) / MEBIBYTE


def seconds_of_queries(settings: Settings) -> float:
    """Return how long MLflow takes for all versions and the last erasures, the median of a few times."""
    with open_registry(settings.tracking, settings.state_folder) as registry:
        client = registry.client
        found = client.get_experiment_by_name(settings.tracking.experiment)
        experiments, took = [found.experiment_id] if found else list[str](), list[float]()
        for _ in range(_QUERIES):
            started = time.perf_counter()
            registry.versions()
            client.search_runs(experiments, "tags.`dlfd.kind` = 'erase'", max_results=_RUNS)
            took.append(time.perf_counter() - started)
    return median(took)


def attack_auc(forgotten: NDArray[np.float64], unseen: NDArray[np.float64]) -> float:
    """Return the chance that a forgotten row has a smaller loss than an unseen one."""
    both = np.concatenate([forgotten, unseen])
    ranks = np.empty(len(both))
    ranks[np.argsort(both, kind="stable")] = np.arange(1, len(both) + 1)
    below = ranks[: len(forgotten)].sum() - len(forgotten) * (len(forgotten) + 1) / 2
    return 1.0 - float(below) / (len(forgotten) * len(unseen))


def read_rows(file: Path, kind: type[Erasure] | type[Utility]) -> list[dict[str, str]]:
    """Return the rows of a CSV file; none if there is no such file, or it is of other columns."""
    if not file.exists():
        return []
    with file.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    names = [each.name for each in fields(kind)]
    return [row for row in rows if list(row) == names]


def append_row(file: Path, row: Erasure | Utility) -> None:
    """Add a row to a CSV file."""
    values, new = asdict(row), not file.exists()
    with file.open("a", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, values)
        if new:
            writer.writeheader()
        writer.writerow(values)
