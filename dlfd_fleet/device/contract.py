"""What a coordinator and its devices say to each other: signed releases, the rollout, and signed reports.

All of it is JSON with pydantic's checks on both sides. Releases and the rollout are read from a TUF repository, whose
signatures protect them; a report is the payload of a DSSE envelope that the device signs.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, field_serializer

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
Epoch = Annotated[int, Field(ge=0)]


class _Signed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SelfTest(_Signed):
    """The golden answers that came with a model: an ``.npz`` target, never an image of a person.

    Its arrays are ``images``, uint8 ``(N, S, S, 3)``, and ``probabilities``, float32 ``(N, C)``.
    """

    target: str
    tolerance: Annotated[float, Field(gt=0.0, le=1.0)]
    """Largest difference of a probability."""

    @field_serializer("tolerance")
    def _as_text(self, tolerance: float) -> str:
        return repr(tolerance)  # TUF signs canonical JSON, which has no fractions


class Release(_Signed):
    """One model file that devices may run; ``custom.dlfd`` of its target, signed by the targets role.

    A release is newer than another if its ``(epoch, sequence)`` is greater.
    """

    version: str
    """Of the registry."""
    format: Literal["fp32", "fp16", "int8", "ort"]
    epoch: Epoch
    """Erasure epoch of the model."""
    minimum_epoch: Epoch
    """Least epoch that may run from now on; a device's floor rises to the greatest that it has seen."""
    sequence: Annotated[int, Field(ge=0)]
    """Counts publications; the same for all formats of one model."""
    self_test: SelfTest
    data: str | None = None
    """Target of the weights beside the file, for models of over 2 GB."""


class Rollout(_Signed):
    """Who may take the newest release: ``rollout/rollout.json``, signed online, so it can delay but never lower."""

    name: str
    """Random; with a device's id it decides the device's place in line."""
    sequence: Annotated[int, Field(ge=0)]
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
        place = int(hashlib.sha256(f"{self.name}|{device}".encode()).hexdigest()[:16], 16) / 2**64
        return self.state == "running" and (device in self.canaries or place < self.share)


class DeviceReport(_Signed):
    """What a device says of itself; payload of type :data:`REPORT_TYPE` in a DSSE envelope."""

    device: DeviceId
    time: AwareDatetime
    nonce: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    """Random, once only: the same report sent twice counts once."""
    sequence: Annotated[int, Field(ge=0)]
    """Of the release that it runs; 0 with none."""
    version: str
    epoch: Epoch
    floor: Epoch
    healthy: bool
    """Whether the last self-test passed, and it answers."""
    installed: tuple[Digest, ...]
    """SHA-256 of every model file that it still holds."""
    purged: tuple[Digest, ...]
    """SHA-256 of every model file that it has deleted."""
    attacks: tuple[str, ...]
    """What it refused since the last report, in words."""
    lease_until: AwareDatetime | None
    """When it stops to answer unless it hears from the coordinator; None without a lease."""
