"""The registry of attacks that a model is put through beside retrained ones.

Another package registers an :class:`Attack` by an entry point of the group ``dlfd_fleet.attacks``, or by
``ATTACKS.register``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from dlfd_fleet.audit.attacks import MembershipScores, linear_probe, loss_attack, rmia
from dlfd_fleet.audit.samples import Role, SampleScores
from dlfd_fleet.exceptions import ConfigurationError, DataError
from dlfd_fleet.registry import Registry


@dataclass(frozen=True, eq=False)
class Observation:
    """What one model says of a fixed set of images.

    Attributes
    ----------
    samples
        Rows of retained, forgotten, validation and test people, ``N`` in all.
    features
        Penultimate features, float32 ``(N, F)``; None if they were not recorded.
    """

    samples: SampleScores
    features: NDArray[np.float32] | None = None


class Need(StrEnum):
    """What an attack needs beside the losses of one model."""

    REFERENCES = "references"
    """Models that never saw the attacked people, on the same images."""
    FEATURES = "features"
    """Penultimate features."""
    PEOPLE = "people"
    """Two people or more on each side: it learns from some of them who the others are."""


Score = Callable[[Observation, Sequence[Observation]], MembershipScores]
"""From the attacked model and the reference models (none if not needed) to scores of forgotten and test people."""


@dataclass(frozen=True)
class Attack:
    """A membership inference attack.

    Attributes
    ----------
    name
        What it is called in files, metrics and MLflow: lower-case letters, digits and ``_``.
    title
        What it is called in tables.
    citation
        The paper.
    score
        The attack; a pure function, for its scores are cached.
    needs
        What it needs; where that is missing the attack is left out.
    """

    name: str
    title: str
    citation: str
    score: Score
    needs: frozenset[Need] = frozenset()

    def __post_init__(self) -> None:
        """Refuse a score that cannot be called, and needs that are no set of :class:`Need`."""
        if not callable(self.score):
            raise ConfigurationError(f"The attack '{self.name}' has a score that cannot be called: {self.score!r}.")
        if not isinstance(self.needs, frozenset) or not all(isinstance(need, Need) for need in self.needs):
            raise ConfigurationError(
                f"The attack '{self.name}' has the needs {self.needs!r}; write a frozenset of Need, such as "
                "frozenset({Need.FEATURES})."
            )

    @property
    def scores_people(self) -> bool:
        """Whether a person's images have scores without other people: then people can be attacked one by one."""
        return Need.PEOPLE not in self.needs


def possible_attacks(model: Observation, references: int) -> list[Attack]:
    """Return the registered attacks that can be made on a model.

    Parameters
    ----------
    references
        Number of models that never saw the attacked people.
    """
    fewest = min(len(np.unique(model.samples.of(role).person)) for role in (Role.FORGET, Role.TEST))
    there = {
        Need.REFERENCES: references > 0,
        Need.FEATURES: model.features is not None,
        Need.PEOPLE: fewest > 1,
    }
    return [attack for attack in ATTACKS.values() if all(there[need] for need in attack.needs)]


def _probe(model: Observation, _: Sequence[Observation]) -> MembershipScores:
    if model.features is None:
        raise DataError("A probe needs penultimate features; there are none.")
    rows = model.samples.of_role(Role.FORGET) | model.samples.of_role(Role.TEST)
    member, person = model.samples.of_role(Role.FORGET)[rows], model.samples.person[rows]
    return linear_probe(model.features[rows].astype(np.float64), member, person)


ATTACKS = Registry(
    "attack",
    Attack,
    "dlfd_fleet.attacks",
    (
        Attack("loss", "loss", "arXiv 1709.01604", lambda model, _: loss_attack(model.samples)),
        Attack(
            "rmia",
            "RMIA",
            "arXiv 2312.03262",
            lambda model, references: rmia(model.samples, [one.samples for one in references]),
            frozenset({Need.REFERENCES}),
        ),
        Attack("probe", "probe", "a linear probe of the features", _probe, frozenset({Need.FEATURES, Need.PEOPLE})),
    ),
)
"""Every registered attack by name."""
