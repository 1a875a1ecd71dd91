"""What a coordinator and its devices say to each other: signed releases, the rollout, and signed reports.

All of it is JSON with pydantic's checks on both sides. Releases and the rollout are read from a TUF repository, whose
signatures protect them; a report is the payload of a DSSE envelope that the device signs.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, field_serializer

from dlfd_fleet.registry import EntryName

CUSTOM_KEY = "dlfd"
"""Key of a model target's ``custom`` object under which its :class:`Release` is."""
ROLLOUT_ROLE = "rollout"
"""Delegated TUF role, signed online, that may say nothing but :data:`ROLLOUT_TARGET`."""
ROLLOUT_TARGET = "rollout/rollout.json"
MODELS_FOLDER = "models"
"""First part of a model target's name: ``models/EPOCH-SEQUENCE/FILE``."""
REPORT_TYPE = "application/vnd.dlfd-fleet.device-report+json"
REPORTS_PATH = "/reports"
"""Where a device POSTs the DSSE envelope of its report, under the coordinator's URL."""

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
DeviceId = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
"""TUF key id of the device's public key: what it signs its reports with says who it is."""
MOST = 2**31 - 1
"""Greatest epoch and number of a publication: a database holds it, and no fleet comes to it."""
Epoch = Annotated[int, Field(ge=0, le=MOST)]
Sequence = Annotated[int, Field(ge=0, le=MOST)]
Nonce = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
RELEVANT_REPORTS = 16
"""How many of its reports that were taken a device names in the next one, and as many that it wrote since."""


def _in_utc(time: datetime) -> datetime:
    try:
        return time.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("the time is out of range") from error


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)


Moment = Annotated[AwareDatetime, AfterValidator(_in_utc)]
Name = Annotated[str, Field(max_length=255)]
Words = Annotated[str, Field(max_length=1000), AfterValidator(_printable)]
"""Text that goes to terminals and databases: control characters have no place in either."""


class _Signed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SelfTest(_Signed):
    """The reference answers that came with a model: an ``.npz`` target, never an image of a person.

    Its arrays are ``images``, uint8 ``(N, S, S, 3)``, and ``probabilities``, float32 ``(N, C)``.
    """

    target: Name
    tolerance: Annotated[float, Field(gt=0.0, le=1.0)]
    """Largest difference of a probability."""

    @field_serializer("tolerance")
    def _as_text(self, tolerance: float) -> str:
        return repr(tolerance)  # TUF signs canonical JSON, which has no fractions


class Release(_Signed):
    """One model file that devices may run; ``custom.dlfd`` of its target, signed by the targets role.

    A release is newer than another if its ``(epoch, sequence)`` is greater.
    """

    version: Name
    """Of the registry."""
    format: EntryName
    """One of :data:`dlfd_fleet.formats.FORMATS` where it was made; a device takes those that its settings name."""
    epoch: Epoch
    """Erasure epoch of the model."""
    minimum_epoch: Epoch
    """Least epoch that may run from now on; a device's floor rises to the greatest that it has seen."""
    sequence: Sequence
    """Counts publications; the same for all formats of one model."""
    self_test: SelfTest
    data: Name | None = None
    """Target of the weights beside the file, for models of over 2 GB."""


class Rollout(_Signed):
    """Who may take the newest release: ``rollout/rollout.json``, signed online, so it can delay but never lower."""

    name: Name
    """Random; with a device's id it decides the device's place in line."""
    sequence: Sequence
    """Of the release that it rolls out; releases before it are for everybody."""
    share: Annotated[float, Field(ge=0.0, le=1.0)]
    canaries: tuple[DeviceId, ...] = ()
    state: Literal["running", "paused", "aborted", "complete"]

    def admits(self, device: str, sequence: int, *, under_floor: bool, has_it: bool) -> bool:
        """Tell whether a device may take a release.

        Parameters
        ----------
        under_floor
            Whether the device's own model may not run any more: an erasure does not wait for a ring.
        has_it
            Whether the device has it already; an aborted rollout takes it back, by the release before it.
        """
        if sequence < self.sequence or self.state == "complete" or under_floor:
            return True
        if self.state == "aborted":
            return False
        if has_it:
            return True
        return self.state == "running" and self.has_in_its_ring(device)

    def has_in_its_ring(self, device: str) -> bool:
        """Tell whether the rollout has come to a device, paused or not: it is a canary, or among the first in line."""
        place = int(hashlib.sha256(f"{self.name}|{device}".encode()).hexdigest()[:16], 16) / 2**64
        return device in self.canaries or place < self.share


class DeviceReport(_Signed):
    """What a device says of itself; payload of type :data:`REPORT_TYPE` in a DSSE envelope."""

    layout: Literal[2] = 2
    """Of these fields."""
    device: DeviceId
    time: Moment
    """By the device's own clock, set right or not."""
    nonce: Nonce
    """Random, once only: the same report sent twice counts once."""
    follows: Annotated[tuple[Nonce, ...], Field(max_length=2 * RELEVANT_REPORTS)]
    """Nonces of the last reports that the coordinator took, as far as the device has heard, and of those that it wrote
    since. If the one that was taken last is not among them, another machine has the same key."""
    sequence: Sequence
    """Of the release that it runs; 0 with none."""
    failed: Annotated[tuple[Sequence, ...], Field(max_length=100)]
    """Of the releases that it tried in vain, and is offered still."""
    version: Annotated[Name, AfterValidator(_printable)]
    epoch: Epoch
    floor: Epoch
    healthy: bool
    """Whether the last self-test passed, and it answers."""
    installed: Annotated[tuple[Digest, ...], Field(max_length=100)]
    """SHA-256 of every model file that it still holds."""
    purged: Annotated[tuple[Digest, ...], Field(max_length=10_000)]
    """SHA-256 of every model file that it has deleted."""
    attacks: Annotated[tuple[Words, ...], Field(max_length=1000)]
    """What it refused since the last report, in words."""
    lease_until: Moment | None
    """When it stops to answer unless it hears from the coordinator; None without a lease."""
