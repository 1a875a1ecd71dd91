"""Define what a coordinator and its devices exchange: signed releases, the rollout, and signed reports.

All are JSON, checked by pydantic on both sides. Signatures of the TUF repository protect releases and the rollout. A
report is the payload of a DSSE envelope that the device signs.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, field_serializer

from dlfd_fleet.registry import EntryName

CUSTOM_KEY = "dlfd"
"""Key of a model target's ``custom`` object with its :class:`Release`."""
ROLLOUT_ROLE = "rollout"
"""Delegated TUF role, signed online, for :data:`ROLLOUT_TARGET` only."""
ROLLOUT_TARGET = "rollout/rollout.json"
MODELS_FOLDER = "models"
"""First part of a model target's name: ``models/EPOCH-SEQUENCE/FILE``."""
REPORT_TYPE = "application/vnd.dlfd-fleet.device-report+json"
REPORTS_PATH = "/reports"
"""Path under the coordinator's URL to which a device POSTs its report's DSSE envelope."""

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
DeviceId = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
"""TUF key id of the device's public key, with which its reports are verified."""
MOST = 2**31 - 1
"""Greatest epoch and publication number."""
Epoch = Annotated[int, Field(ge=0, le=MOST)]
Sequence = Annotated[int, Field(ge=0, le=MOST)]
Nonce = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
RELEVANT_REPORTS = 16
"""How many acknowledged reports a device names in the next one, and as many that it wrote since."""


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
"""Text for terminals and databases, without control characters."""


class _Signed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SelfTest(_Signed):
    """Reference answers of a model: an ``.npz`` target, without images of people.

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
    """Version in the registry."""
    format: EntryName
    """One of :data:`dlfd_fleet.formats.FORMATS` where it was made; a device takes those that its settings name."""
    epoch: Epoch
    """Erasure epoch of the model."""
    minimum_epoch: Epoch
    """Lowest epoch that may run from now on. A device's floor rises to the greatest that it has seen."""
    sequence: Sequence
    """Counts publications; the same for all formats of one model."""
    self_test: SelfTest
    data: Name | None = None
    """Target of the weights of models over 2 GB."""


class Rollout(_Signed):
    """Which devices may take the newest release: ``rollout/rollout.json``.

    It is signed online, so it can only delay a release.
    """

    name: Name
    """Random name. With a device's id it decides the device's position."""
    sequence: Sequence
    """Sequence of the release that is rolled out; earlier releases are for all devices."""
    share: Annotated[float, Field(ge=0.0, le=1.0)]
    canaries: tuple[DeviceId, ...] = ()
    state: Literal["running", "paused", "aborted", "complete"]

    def admits(self, device: str, sequence: int, *, under_floor: bool, has_it: bool) -> bool:
        """Tell whether a device may take a release.

        Parameters
        ----------
        under_floor
            Whether the device's own model may no longer run; then it does not wait for a ring.
        has_it
            Whether the device has the release. An aborted rollout replaces it by the earlier release.
        """
        if sequence < self.sequence or self.state == "complete" or under_floor:
            return True
        if self.state == "aborted":
            return False
        if has_it:
            return True
        return self.state == "running" and self.has_in_its_ring(device)

    def has_in_its_ring(self, device: str) -> bool:
        """Tell whether a device is a canary or in the current share, paused or not."""
        place = int(hashlib.sha256(f"{self.name}|{device}".encode()).hexdigest()[:16], 16) / 2**64
        return device in self.canaries or place < self.share


class DeviceReport(_Signed):
    """A device's report: payload of type :data:`REPORT_TYPE` in a DSSE envelope."""

    layout: Literal[2] = 2
    """Version of these fields."""
    device: DeviceId
    time: Moment
    """Time by the device's own clock."""
    nonce: Nonce
    """Random, so that a report sent twice counts once."""
    follows: Annotated[tuple[Nonce, ...], Field(max_length=2 * RELEVANT_REPORTS)]
    """Nonces of the last reports that the coordinator acknowledged, and of those written since. If the last
    acknowledged one is missing, another machine has the same key."""
    sequence: Sequence
    """Sequence of the release that it runs; 0 for none."""
    failed: Annotated[tuple[Sequence, ...], Field(max_length=100)]
    """Sequences of offered releases that failed."""
    version: Annotated[Name, AfterValidator(_printable)]
    epoch: Epoch
    floor: Epoch
    healthy: bool
    """Whether the last self-test passed and it answers."""
    installed: Annotated[tuple[Digest, ...], Field(max_length=100)]
    """SHA-256 of every model file that it holds."""
    purged: Annotated[tuple[Digest, ...], Field(max_length=10_000)]
    """SHA-256 of every model file that it has deleted."""
    attacks: Annotated[tuple[Words, ...], Field(max_length=1000)]
    """Sentences about what it refused since the last report."""
    lease_until: Moment | None
    """End of its lease; None without a lease."""
