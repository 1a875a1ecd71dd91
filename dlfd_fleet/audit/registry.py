"""The registry of attacks that compare a model with retrained ones.

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
    """Answers of one model for a fixed set of images.

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
    """What an attack needs in addition to the losses of one model."""

    REFERENCES = "references"
    """Answers of models that never saw the attacked people, for the same images."""
    FEATURES = "features"
    """Penultimate features."""
    PEOPLE = "people"
    """At least two people on each side, because it is trained on some and tested on others."""


Score = Callable[[Observation, Sequence[Observation]], MembershipScores]
"""Maps the attacked model and the reference models (none if not needed) to scores of forgotten and test people."""


@dataclass(frozen=True)
class Attack:
    """A membership inference attack.

    Attributes
    ----------
    name
        Name in files, metrics and MLflow: lower-case letters, digits and ``_``.
    title
        Name in tables.
    citation
        The paper.
    score
        The attack. It must be a pure function, because its scores are cached.
    needs
        What it needs. If that is missing, the attack is left out.
    """

    name: str
    title: str
    citation: str
    score: Score
    needs: frozenset[Need] = frozenset()

    def __post_init__(self) -> None:
        """Refuse a score that cannot be called, or needs that are not a set of :class:`Need`."""
        if not callable(self.score):
            raise ConfigurationError(f"The attack '{self.name}' has a score that cannot be called: {self.score!r}.")
        if not isinstance(self.needs, frozenset) or not all(isinstance(need, Need) for need in self.needs):
            raise ConfigurationError(
                f"The attack '{self.name}' has the needs {self.needs!r}; write a frozenset of Need, such as "
                "frozenset({Need.FEATURES})."
            )

    @property
    def scores_people(self) -> bool:
        """Whether people can be attacked one by one, without other people."""
        return Need.PEOPLE not in self.needs


def possible_attacks(model: Observation, references: int) -> list[Attack]:
    """Return the registered attacks that can run on a model.

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
