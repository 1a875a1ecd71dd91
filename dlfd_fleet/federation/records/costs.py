"""Define the cost of a job's steps: time, bytes in each direction, and each site's share."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from dlfd_fleet.report.contents import Phase


class SiteCost(NamedTuple):
    """The cost of one site: array bytes sent and received, and its reported seconds."""

    sent_bytes: int = 0
    received_bytes: int = 0
    seconds: float = 0.0

    def plus(self, other: SiteCost, sign: int = 1) -> SiteCost:
        """Return the sum of two, or what is left of this one without the other."""
        return SiteCost(
            self.sent_bytes + sign * other.sent_bytes,
            self.received_bytes + sign * other.received_bytes,
            self.seconds + sign * other.seconds,
        )


@dataclass(frozen=True)
class Cost:
    """The cost of one step.

    Attributes
    ----------
    seconds
        From its beginning to its end.
    sent_bytes
        Array bytes in both directions.
    coordinator_seconds
        Processor time of the coordinator's process.
    sites
        What each site took of it.
    """

    seconds: float
    sent_bytes: int
    coordinator_seconds: float = 0.0
    sites: Mapping[str, SiteCost] = field(default_factory=dict)


def phases_of(steps: Iterable[tuple[str, Cost]]) -> dict[str, Phase]:
    """Return what steps took, those of one kind together: names are a kind and, for rounds, a number."""
    kinds: dict[str, list[Cost]] = {}
    for name, cost in steps:
        kinds.setdefault(re.sub(r"-\d+$", "", name), []).append(cost)
    return {kind: phase_of(costs) for kind, costs in kinds.items()}


def phase_of(costs: Iterable[Cost]) -> Phase:
    """Return what several steps took together."""
    costs, sites = list(costs), dict[str, SiteCost]()
    for cost in costs:
        for site, took in cost.sites.items():
            sites[site] = sites.get(site, SiteCost()).plus(took)
    return Phase(
        steps=len(costs),
        seconds=sum(cost.seconds for cost in costs),
        sent_bytes=sum(cost.sent_bytes for cost in costs),
        received_bytes=sum(took.received_bytes for took in sites.values()),
        most_bytes_of_a_site=max((took.sent_bytes + took.received_bytes for took in sites.values()), default=0),
        site_seconds=sum(took.seconds for took in sites.values()),
        longest_site_seconds=max((took.seconds for took in sites.values()), default=0.0),
        coordinator_seconds=sum(cost.coordinator_seconds for cost in costs),
    )


def difference(
    after: Mapping[str, SiteCost], before: Mapping[str, SiteCost], seconds: float = math.inf
) -> dict[str, SiteCost]:
    """Return what sites took between two moments, of those that took anything.

    Parameters
    ----------
    seconds
        Time between the two: no site has worked longer, whatever it says.
    """
    took = {site: cost.plus(before.get(site, SiteCost()), -1) for site, cost in after.items()}
    return {site: cost._replace(seconds=min(cost.seconds, seconds)) for site, cost in took.items() if any(cost)}
