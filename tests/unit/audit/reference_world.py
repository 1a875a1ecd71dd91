"""People, their images, and what half models and a model of all of them say: with known memory, and known noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dlfd_fleet.audit import MemberShare, ReferenceLosses, ReferenceSums, member_share, reference_sums
from dlfd_fleet.audit.shift import Floats


def losses(confidences: Floats) -> Floats:
    """Turn confidences back into losses: -log of a logistic."""
    with np.errstate(invalid="ignore"):  # of answers that are not known
        return np.logaddexp(0.0, -np.asarray(confidences))


def share_of(sums: list[ReferenceSums]) -> MemberShare | None:
    """The share that sites, numbered in their order, show together."""
    return member_share({str(number): each for number, each in enumerate(sums)})


@dataclass
class World:
    """A fleet of some sites; of each image, how hard it is, and how much a member of a half model says more."""

    seed: int = 0
    sites: int = 5
    people: int = 12
    unseen: int = 8
    images: int = 8
    models: int = 4
    asked: int = 8
    noise: float = 1.0

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        count = self.sites * (self.people + self.unseen)
        self.person = np.repeat(np.arange(count), self.images)
        self.site = self.person % self.sites
        self.hard = self.rng.normal(2.0, 2.0, len(self.person))
        self.gap = np.clip(2.0 - 0.4 * self.hard, 0.2, None)
        self.member = self.person < self.sites * self.people
        self.forget = self.person < self.asked
        order = [self.rng.permutation(count) for _ in range(self.models // 2)]
        half = np.stack([ranks[self.person] % 2 == side for ranks in order for side in (0, 1)])
        self.trained = half & self.member
        self.said = np.stack([self.says(trained * 1.0) for trained in self.trained])

    def says(self, memory: Floats | float, knows: float = 0.0, slope: float = 1.0) -> Floats:
        """What a model says that shows so much of each image; of strangers it is surer by ``knows``."""
        noise = self.rng.normal(0.0, self.noise, len(self.person))
        return slope * (self.hard + memory * self.gap + noise) + knows

    def model(self, left: float, members: float = 0.7, knows: float = 0.5, slope: float = 1.0) -> Floats:
        """What a model of all people says that shows ``left`` of what members show of those who asked."""
        memory = np.where(self.forget, left * members, np.where(self.member, members, 0.0))
        return self.says(memory, knows, slope)

    def sums(self, said: Floats, shared: bool = False) -> list[ReferenceSums]:
        """What the sites send of a model; with ``shared`` they all hold the same unseen people."""
        found = []
        for site in range(self.sites):
            rows = self.site == site
            unseen = ~self.member & (rows | shared)
            rows |= unseen
            one = reference_sums(
                losses(said[rows]),
                ReferenceLosses(losses(self.said[:, rows]), self.trained[:, rows]),
                self.person[rows],
                forget=self.forget[rows],
                retain=(self.member & ~self.forget)[rows],
                unseen=unseen[rows] & (not shared),
                shared=unseen[rows] & shared,
            )
            assert one is not None
            found.append(one)
        return found
