"""Hold what rounds and audits of one job share: fleet, model card, settings and journal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from dlfd_fleet.federation.protocol.messages import Aim
from dlfd_fleet.federation.records.journal import Journal
from dlfd_fleet.federation.rounds.aggregation import UpdateNorm
from dlfd_fleet.federation.rounds.aims import aims_of, have_references
from dlfd_fleet.federation.rounds.fleet import Fleet
from dlfd_fleet.models import ModelCard
from dlfd_fleet.progress import ProgressDisplay
from dlfd_fleet.settings import Settings


@dataclass(frozen=True)
class Effort:
    """Seconds, and array bytes in both directions."""

    seconds: float
    sent_bytes: int

    def __sub__(self, before: Effort) -> Effort:
        return Effort(self.seconds - before.seconds, self.sent_bytes - before.sent_bytes)


@dataclass(frozen=True)
class SiteUpdate:
    """An accepted update: its round and site, the site's measurements, and its norms.

    Attributes
    ----------
    purpose
        train, repair, relearn, retrain or distancing.
    site
        The site's name in logs, MLflow and reports.
    said
        The site's measurements: loss, seconds, images.
    """

    purpose: str
    round: int
    site: str
    said: Mapping[str, float]
    norm: UpdateNorm

    def metrics(self) -> dict[str, float]:
        """Return its metrics by name."""
        values = {**self.said, "update_norm": self.norm.whole, "weights_norm": self.norm.trained}
        return {f"{self.purpose}_{name}": value for name, value in values.items()}


class Recorder(Protocol):
    """Receives the measurements of a job."""

    def metrics(self, values: Mapping[str, float], step: int, attempt: int | None = None) -> None:
        """Record metrics of a round, with the number of the attempt."""

    def gate(self, values: Mapping[str, float], step: int, attempt: int) -> None:
        """Record the gate's reading after a round (:func:`~dlfd_fleet.audit.gate_metrics`)."""

    def update(self, update: SiteUpdate) -> None:
        """Record a site's update."""

    def dataset(self, profile: Mapping[str, object], purpose: str) -> None:
        """Record what the sites hold, in counts, and the purpose."""

    def tags(self, tags: Mapping[str, str]) -> None:
        """Record tags."""


class Unrecorded:
    """Records nothing."""

    def metrics(self, values: Mapping[str, float], step: int, attempt: int | None = None) -> None:
        """Drop the metrics."""

    def gate(self, values: Mapping[str, float], step: int, attempt: int) -> None:
        """Drop the reading."""

    def update(self, update: SiteUpdate) -> None:
        """Drop the update."""

    def dataset(self, profile: Mapping[str, object], purpose: str) -> None:
        """Drop the profile."""

    def tags(self, tags: Mapping[str, str]) -> None:
        """Drop the tags."""


@dataclass(kw_only=True)
class JobContext:
    """What rounds and audits of one job share.

    Attributes
    ----------
    fleet
        The sites that take part, with their first replies.
    card
        The model that travels.
    settings
        The whole tree.
    name
        Name of the job, sent with every task.
    journal
        The job's finished steps; each round and each audit is one. Default: nothing is kept.
    progress, recorder
        Where progress and metrics go.
    round
        Number of the current round of updates, from 1.
    references_too_poor
        Whether a site that unlearns has reported that its reference models are too poor.
    long_updates
        By kind of round the sites whose updates are shortened, and the largest norm that any may have in the next one,
        as the last finished one says.
    """

    fleet: Fleet
    card: ModelCard
    settings: Settings
    name: str
    progress: ProgressDisplay
    journal: Journal = field(default_factory=Journal)
    recorder: Recorder = field(default_factory=Unrecorded)
    round: int = 0
    references_too_poor: bool = False
    long_updates: dict[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        """The seed of the current round, from which each site makes its own."""
        return self.settings.seed * 1000 + self.round

    def next_round(self) -> int:
        """Begin the next round of updates, and return its number."""
        self.round += 1
        return self.round

    @property
    def sites_can_tell(self) -> bool:
        """Whether each site that unlearns has its own gate by reference models.

        None can by models that are too poor. A site that is away counts as it did when the job began.
        """
        return not self.references_too_poor and have_references(self.fleet.said)

    @property
    def aims(self) -> tuple[Aim, ...]:
        """What the sites that unlearn can aim at (:func:`~dlfd_fleet.federation.rounds.aims.aims_of`)."""
        return aims_of(self.fleet.said, self.settings.erasure, references=not self.references_too_poor)

    @property
    def forgetting(self) -> frozenset[int]:
        """The nodes that hold images of people who ask to be forgotten."""
        return frozenset(node for node, reply in self.fleet.replies().items() if reply.forget_images)

    def sampled(self, what: str) -> frozenset[int]:
        """Return the forgetting nodes, and a random share of the others (``erasure.repair_share``), drawn for ``what``.

        They are drawn by the sites' own ids, from all that were there when the job began, so a job that goes on under
        other nodes draws the same sites again. In place of one that is away another one is drawn.
        """
        nodes = {reply.site: node for node, reply in self.fleet.replies().items()}
        others = sorted(reply.site for reply in self.fleet.said if not reply.forget_images)
        count = math.ceil(self.settings.erasure.repair_share * len(others))
        generator = np.random.default_rng([*f"{self.settings.seed} {self.name} {what}".encode()])
        drawn = generator.choice(len(others), count, replace=False).tolist() if count else []
        drawn += [place for place in generator.permutation(len(others)).tolist() if place not in drawn]
        there = [nodes[others[place]] for place in drawn if others[place] in nodes]
        return self.forgetting.union(there[:count])

    def auditing_file(self, *, exact: bool) -> frozenset[int] | None:
        """Return the nodes that audit an exported file, or None for all of them.

        With references, the forgetting sites audit an fp32 file. A share of the others also audits a quantised file.
        """
        if not self.sites_can_tell:
            return None
        return self.forgetting if exact else self.sampled("audit-file")

    def effort(self) -> Effort:
        """Return the cost of the job so far, in all its processes."""
        return Effort(self.journal.seconds, self.fleet.sent_bytes + self.fleet.received_bytes)
