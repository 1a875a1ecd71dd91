"""What a device remembers between two starts: its models, what it deleted, and what it has still to tell."""

from __future__ import annotations

from pathlib import PurePosixPath

from pydantic import BaseModel, ConfigDict, ValidationError

from dlfd_fleet.device.contract import Digest, Moment, Release, Sequence


class _Kept(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Slot(_Kept):
    """A model on this device, and what was signed of it when it was installed.

    Attributes
    ----------
    target
        Its name in the repository.
    sha256, data_sha256
        Signed digests of the file, and of a large model's weights beside it.
    """

    target: str
    sha256: Digest
    data_sha256: Digest | None = None
    release: Release

    @property
    def file_name(self) -> str:
        """Name of the model file; the graph of a large model names its weights by it."""
        return PurePosixPath(self.target).name

    @property
    def digests(self) -> tuple[Digest, ...]:
        """Digests of all its files."""
        return (self.sha256, *((self.data_sha256,) if self.data_sha256 else ()))


class Refusal(_Kept):
    """A release that this device tried and will not take; it is tried again a day later."""

    target: str
    sha256: Digest
    sequence: Sequence
    reason: str
    time: Moment


class DeviceState(_Kept):
    """Everything but the floor and the clock, which are files of their own.

    Attributes
    ----------
    current, previous
        What runs, and at most one older model that still may.
    heard
        When the coordinator was last heard from: the last refresh that succeeded.
    refusals
        What was tried in vain.
    purging, purged
        Digests of files that are being deleted, and of those that are gone and of which no report has told.
    attacks
        What was refused since the last report, in words.
    healthy
        As of the last poll: it answers, and takes what it is offered.
    problem
        What went wrong in the last poll, in words.
    told, reported
        Fingerprint and time of the last report that was written.
    unreported
        Why the coordinator has not acknowledged it, in words.
    acknowledged_lease
        End of the lease in the last report that it has acknowledged.
    """

    current: Slot | None = None
    previous: Slot | None = None
    heard: Moment | None = None
    refusals: tuple[Refusal, ...] = ()
    purging: tuple[Digest, ...] = ()
    purged: tuple[Digest, ...] = ()
    attacks: tuple[str, ...] = ()
    healthy: bool = False
    problem: str = ""
    told: str = ""
    reported: Moment | None = None
    unreported: str = ""
    acknowledged_lease: Moment | None = None

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The models on this device, the current one first."""
        return tuple(slot for slot in (self.current, self.previous) if slot)

    def but(self, **changes: object) -> DeviceState:
        """Return this state with some of it changed."""
        return self.model_copy(update=changes)


def read_state(copies: list[bytes]) -> DeviceState:
    """Return the newest state that can be read; a device that has none has nothing installed."""
    for content in copies:
        try:
            return DeviceState.model_validate_json(content)
        except ValidationError:
            continue
    return DeviceState()
