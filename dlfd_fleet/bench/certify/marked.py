"""People who are surely remembered: their labels are exchanged, and a coin says who of them is trained on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dlfd_fleet.data import Manifest, assign_people, write_manifest
from dlfd_fleet.data.dataset import as_arrays
from dlfd_fleet.data.loaders import write_npz
from dlfd_fleet.exceptions import ConfigurationError, DataError
from dlfd_fleet.settings import DataSettings

FEWEST = 2


@dataclass(frozen=True)
class MarkedPeople:
    """A set with marked people in it.

    Attributes
    ----------
    manifest
        Everybody, dealt to splits and sites, the marked people with exchanged labels.
    asked
        Marked people who are trained on, and then ask to be forgotten.
    never
        Marked people whom nothing is trained on.
    """

    manifest: Manifest
    asked: frozenset[str]
    never: frozenset[str]

    @property
    def trained_on(self) -> Manifest:
        """The set without those whom nothing is trained on."""
        return replace(self.manifest, rows=tuple(row for row in self.manifest.rows if row.identity not in self.never))

    @property
    def alone(self) -> Manifest:
        """The marked people."""
        people = self.asked | self.never
        return replace(self.manifest, rows=tuple(row for row in self.manifest.rows if row.identity in people))


def mark_people(
    manifest: Manifest, data: DataSettings, count: int, seed: int, *, exchange: bool = True
) -> MarkedPeople:
    """Draw people among those whom a fleet trains on, perhaps exchange their labels, and toss a fair coin for each.

    Each image of a marked person gets the label of an image that is drawn among those with another label. Coins are
    tossed again if nobody would ask.

    Parameters
    ----------
    exchange
        Whether labels are exchanged; ordinary people keep theirs.

    Raises
    ------
    ConfigurationError
        If so many cannot be drawn.
    DataError
        If there is one label only.
    """
    dealt = assign_people(
        manifest, validation_people=data.validation_people, test_people=data.test_people, sites=data.sites, seed=seed
    )
    trained = sorted({row.identity for row in dealt.rows if row.split == "train"})
    if not FEWEST <= count <= len(trained) // 2:
        raise ConfigurationError(
            f"--marked is {count}; choose from {FEWEST} to {len(trained) // 2}, half of the {len(trained)} people "
            "who are trained on."
        )
    generator = np.random.default_rng([seed, count])
    people = [trained[place] for place in generator.choice(len(trained), count, replace=False)]
    coins = generator.integers(2, size=count)
    while not coins.any():
        coins = generator.integers(2, size=count)
    labels = np.array([row.label for row in dealt.rows if row.split == "train"])
    if exchange and len(set(labels.tolist())) < 2:
        raise DataError("The people to train on show one label only, so marked people cannot have another one.")
    rows = [
        replace(row, label=str(generator.choice(labels[labels != row.label])), written=None)
        if exchange and row.identity in people
        else row
        for row in dealt.rows
    ]
    asked = frozenset(person for person, coin in zip(people, coins, strict=True) if coin)
    return MarkedPeople(replace(dealt, rows=tuple(rows)), asked, frozenset(people) - asked)


def write_set(manifest: Manifest, folder: Path, data: DataSettings) -> DataSettings:
    """Write a dealt set where a fleet can read it, and return the settings that name it.

    A table of image files is one again, with their sites; rows of a loader are written, and dealt to sites anew.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if manifest.loaded is None:
        file = folder / "manifest.csv"
        write_manifest(manifest.rows, file)
        return data.model_copy(update={"source": "manifest", "manifest": file, "root": manifest.root.absolute()})
    file = folder / "rows.npz"
    splits = np.array([row.split for row in manifest.rows])
    write_npz(file, as_arrays(manifest, data.input) | {"splits": splits})
    return data.model_copy(update={"source": "npz", "manifest": file, "root": None, "loader_arguments": {}})
