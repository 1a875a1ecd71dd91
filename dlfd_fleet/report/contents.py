"""What an erasure report says, as data: ``report.json``. The page and the certificate are made of it.

There are counts, request ids of this job alone, days and scores in it, and never a name.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from datetime import UTC, date
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from dlfd_fleet.audit import Difference, Estimate, Scores, Verdict
from dlfd_fleet.exceptions import EvidenceError
from dlfd_fleet.settings import Format

LOSS_EDGES: tuple[float, ...] = tuple(np.geomspace(1e-4, 30.0, 25).tolist())
"""Edges of the bins of every loss histogram, nats; what lies outside is in the first or the last bin."""

Compared = Literal["mia_auc", "retain_auc", "test_accuracy", "forget_accuracy"]
AimedAt = Literal["references", "own-answers", "fleet-gate"]
"""What an attempt to unlearn goes to: reference models, the model's own answers to changed copies, or, where sites have
nothing to aim at, one gate of the whole fleet."""


class Part(BaseModel):
    """Base of all parts: frozen, and strict about its fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class AskedRequest(Part):
    """One person's request at one site, under the id that it had in this job alone, with its days in UTC."""

    request: str
    site: str
    asked_at: date
    deadline: date


class SiteShare(Part):
    """What a site that took part holds."""

    site: str
    requests: int
    forget_images: int
    training_images: int
    counted_images: int
    """By how many of them it counted."""


class GateReading(Part):
    """What the gate saw of a model after a round; round 0 is the original."""

    attempt: int
    round: int
    utility: float | None
    """Balanced accuracy on validation people; None if there are none."""
    utility_half_width: float
    """Half the width of its 95% interval."""
    retain_accuracy: float
    """Balanced accuracy on the retained people."""
    attack_auc: float | None
    """Of the attack between the forget set and validation people; None if there are none."""


class AttemptMade(Part):
    """One attempt to unlearn: what it aimed at, what it took, and how it ended."""

    number: int
    aim: AimedAt
    because: str = ""
    """Why not at something better, as what follows the word because; empty where it aimed at reference models."""
    forgetting: int
    """Rounds at the sites that were asked: each unlearned, or said that its people were forgotten."""
    repair: int
    """Rounds of training on everybody else."""
    reached: bool
    """Whether the gate was reached: that of every site that was asked, or that of the fleet."""
    ended: str
    """How the rounds ended, in a sentence."""
    gates: dict[str, float] = {}
    """By site: the share that was left to forget in the model of which its gate was last read."""
    failed: str = ""
    """Why its model was not good enough, in a sentence; empty if it was."""


class Phase(Part):
    """What one kind of step took, in all."""

    steps: int
    seconds: float
    """From its beginning to its end, waiting included."""
    sent_bytes: int
    """Array bytes in both directions."""
    received_bytes: int = 0
    """Those of them that came from the sites; 0, like all that follows, where an earlier release did not count them."""
    most_bytes_of_a_site: int = 0
    """Array bytes in both directions of the site that had the most of them."""
    site_seconds: float = 0.0
    """That the sites say they have worked, all together."""
    longest_site_seconds: float = 0.0
    """Of the site that has worked longest."""
    coordinator_seconds: float = 0.0
    """Processor time of the coordinator's process."""

    @property
    def bytes_to_sites(self) -> int:
        """Array bytes that were sent to the sites."""
        return self.sent_bytes - self.received_bytes


class ModelResult(Part):
    """What is known of one model of a job."""

    scores: Scores
    seconds: float
    bytes_sent: int
    sites: int = 0
    """That answered its audit; 0 where an earlier release did not count them."""


class FileResult(Part):
    """One exported file, attacked by itself at the sites."""

    name: str
    sha256: str
    size_bytes: int
    max_abs_difference: float
    """Largest difference of a probability from torch."""
    compared_images: int
    agreement: float | None
    """Share of the images of which the file and torch name the same class."""
    scores: Scores
    sites: int = 0
    """That answered its audit; 0 where an earlier release did not count them."""
    verdict: Verdict | None


class Revoked(Part):
    """An older released model, which remembers somebody who is forgotten now."""

    job: str
    epoch: int


class Proceedings(Part):
    """What a job notes on its way, for its report."""

    asked: tuple[AskedRequest, ...] = ()
    sites: tuple[SiteShare, ...] = ()
    parent: str | None = None
    """SHA-256 of the weights that were unlearned from."""
    began_with: str = ""
    """What their first training began with, in words; empty if nobody knows."""
    frozen_layers: dict[str, int] = {}
    """Their layers that no job trains, and how many values each has."""
    method: str = "dlfd"
    """Name of the method that the sites unlearned by."""
    method_title: str = ""
    method_package: str = ""
    """Where it comes from, at the coordinator: distribution and version."""
    method_settings: dict[str, Any] = {}
    """Its own hyper-parameters; the shared ones are in the settings under ``erasure.unlearning``."""
    way: Literal["unlearn", "retrain"] = "unlearn"
    """Which way the job took at first."""
    way_chosen: str = ""
    """Why that one, in a sentence, where there was a choice."""
    anew_failed: str = ""
    """Why a model that was trained anew at first failed, so that the job unlearned; empty if none did."""
    retrained: bool = False
    """Whether the model was trained anew, without the forgotten people: at first, or because unlearning did not do."""
    exact: bool = False
    """Whether that is exact, as far as is known: nothing that the model was made of has seen the people who asked."""
    exactness: str = ""
    """Why it is, or why not, in words."""
    attempts: int = 0
    """Number of the attempt that the unlearned model is of."""
    attempts_made: tuple[AttemptMade, ...] = ()
    """All of them; records of earlier releases do not say it."""
    readings: tuple[GateReading, ...] = ()
    losses: dict[str, dict[str, tuple[int, ...]]] = {}
    """Images in each bin of :data:`LOSS_EDGES`, by model and group."""
    files: dict[Format, FileResult] = {}
    refused_files: dict[Format, str] = {}
    """Formats that were not released, and why."""
    phases: dict[str, Phase] = {}
    purged_images: int = 0
    software: dict[str, str] = {}
    settled_at: AwareDatetime | None = None


class ErasureReport(Proceedings):
    """The report of one erasure job."""

    format: Literal["urn:dlfd-fleet:erasure-report:1"] = "urn:dlfd-fleet:erasure-report:1"
    job: str
    state: str
    note: str
    started_at: AwareDatetime
    released: bool
    epoch: int
    """Of the fleet after the job."""
    requests: int
    asked: Annotated[tuple[AskedRequest, ...], Field(min_length=1)]
    served: tuple[str, ...]
    """Requests that the released model has forgotten, or that no model was trained on."""
    verdict: Verdict | None
    models: dict[str, ModelResult]
    """By column: original, unlearned, relearned, retrained."""
    released_files: tuple[Format, ...]
    absent: dict[str, str]
    acknowledged: dict[str, int]
    """The epoch under which each site said that it had purged."""
    revoked: tuple[Revoked, ...]
    settings: dict[str, Any]
    """What governs an erasure, by dotted key."""
    seconds: float
    e_product: float | None = None
    """Of the e-values of all erasures so far that reference models judged, this one too; None if it is none of them."""

    procedure: str = ""
    """Whether this procedure was tried before, by which procedure certificate, and what came of it, in words."""

    @property
    def nothing_to_unlearn(self) -> bool:
        """Whether the fleet's model was trained on nobody who asked, so that the sites had only to purge."""
        return not self.released and bool(self.served)

    @property
    def judged_by_usefulness(self) -> bool:
        """Whether of a model retrained in place of an unlearned one only usefulness was judged, because it is exact.

        Earlier releases judged each so, and did not say whether it is exact.
        """
        return self.retrained and self.way == "unlearn" and (self.exact or not self.exactness)

    @property
    def settings_sha256(self) -> str:
        """Digest of the settings."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()

    @property
    def first_deadline(self) -> date:
        """The earliest deadline of a request."""
        return min(request.deadline for request in self.asked)

    def deadline_met(self, request: AskedRequest) -> bool | None:
        """Tell whether a request's model was released by the day it was due; None if it waits."""
        if self.settled_at is None or request.request not in self.served:
            return None
        return self.settled_at.astimezone(UTC).date() <= request.deadline

    def beside_retrained(self, name: Compared) -> Difference | None:
        """Return a score of the unlearned model minus the retrained one's, where there is one.

        Images cannot be paired, for nobody is to be followed from one audit to the next; taking the two as independent
        errs on the wide side.
        """
        models = [self.models.get(column) for column in ("unlearned", "retrained")]
        one, other = (getattr(model.scores, name) if model else None for model in models)
        if not isinstance(one, Estimate) or not isinstance(other, Estimate):
            return None
        error = math.hypot(one.standard_error, other.standard_error)
        return Difference(model=one.value, reference=other.value, standard_error=error, references=1)

    def to_json(self) -> bytes:
        """Return ``report.json``: the same bytes for the same report."""
        return (self.model_dump_json(indent=2) + "\n").encode()

    @classmethod
    def from_json(cls, content: bytes) -> Self:
        """Read ``report.json``, or raise an :class:`EvidenceError` if it is no report that this release knows."""
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            key = ".".join(str(part) for part in error.errors()[0]["loc"]) or "its JSON"
            raise EvidenceError(f"report.json is none that this release can read: '{key}' is wrong.") from error


def loss_counts(losses: Mapping[str, NDArray[np.float64]]) -> dict[str, tuple[int, ...]]:
    """Count losses ``(N,)`` of each group in the bins of :data:`LOSS_EDGES`."""
    return {
        group: tuple(np.histogram(np.clip(values, LOSS_EDGES[0], LOSS_EDGES[-1]), LOSS_EDGES)[0].tolist())
        for group, values in losses.items()
    }
