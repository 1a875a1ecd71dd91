"""Who asks to be forgotten in a comparison of fleets: ``bench.requests``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dlfd_fleet.data import Manifest, choose_people_to_forget
from dlfd_fleet.exceptions import ConfigurationError


@dataclass(frozen=True)
class Asking:
    """How many people ask, and where.

    Attributes
    ----------
    text
        ``8@4``, so many people at so many sites; or ``5%`` of all that are trained on, wherever they are.
    """

    text: str

    @property
    def folder(self) -> str:
        """A name for files."""
        return self.text.replace("@", "-at-").replace("%", "-percent")

    @property
    def words(self) -> str:
        """Who asks, as a heading says it."""
        people, at, sites = self.text.partition("@")
        if not at:
            return f"{self.text} of the people ask"
        who = "1 person asks" if people == "1" else f"{people} people ask"
        return f"{who} at {sites} site{'s' if sites != '1' else ''}"

    def choose(self, dealt: Manifest, seed: int) -> dict[str, list[str]]:
        """Return who asks, by site.

        Raises
        ------
        ConfigurationError
            If there are fewer sites than they are to ask at.
        DataError
            If a site has too few people.
        """
        names = sorted({row.site for row in dealt.rows if row.site})
        people, at, sites = self.text.partition("@")
        if not at:
            return _share(dealt, float(self.text.removesuffix("%")) / 100.0, seed)
        if int(sites) > len(names):
            raise ConfigurationError(
                f"bench.requests has {self.text}, and the fleet has {len(names)} sites: set data.sites to {sites}, or "
                "let people ask at fewer."
            )
        return choose_people_to_forget(dealt, names[: int(sites)], int(people) // int(sites))


@dataclass(frozen=True)
class Named:
    """People who are named ask, wherever they are.

    Attributes
    ----------
    folder
        A name for files.
    """

    people: frozenset[str]
    folder: str

    def choose(self, dealt: Manifest, seed: int) -> dict[str, list[str]]:  # noqa: ARG002 - as of Asking
        """Return who asks, by site."""
        homes = {row.identity: row.site for row in dealt.rows if row.identity in self.people}
        chosen = dict[str, list[str]]()
        for person in sorted(homes):
            chosen.setdefault(homes[person], []).append(person)
        return chosen


def _share(dealt: Manifest, share: float, seed: int) -> dict[str, list[str]]:
    """Draw a share of the trained people at random; each site keeps one at least."""
    homes = {row.identity: row.site for row in dealt.rows if row.site and row.split == "train"}
    people, chosen = sorted(homes), dict[str, list[str]]()
    left = {site: sum(home == site for home in homes.values()) for site in homes.values()}
    wanted = max(1, round(share * len(people)))
    for place in np.random.default_rng(seed).permutation(len(people)).tolist():
        site = homes[people[place]]
        if wanted and left[site] > 1:
            chosen.setdefault(site, []).append(people[place])
            left[site] -= 1
            wanted -= 1
    return chosen
