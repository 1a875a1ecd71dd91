"""Keep a device's state between starts: its models, deleted files, and what it has to report."""

from __future__ import annotations

from pathlib import PurePosixPath

from pydantic import BaseModel, ConfigDict, ValidationError

from dlfd_fleet.device.contract import Digest, Moment, Release, Sequence


class _Kept(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Slot(_Kept):
    """A model on this device, with its signed release.

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
    """A release that failed on this device; it is tried again a day later."""

    target: str
    sha256: Digest
    sequence: Sequence
    reason: str
    time: Moment


class DeviceState(_Kept):
    """The state of a device, without floor and clock, which have their own files.

    Attributes
    ----------
    current, previous
        The current model, and at most one older model that may still run.
    heard
        Time of the last successful refresh from the coordinator.
    refusals
        Releases that failed.
    purging, purged
        Digests of files that are being deleted, and of deleted files that are not reported yet.
    attacks
        Sentences about refusals since the last report.
    healthy
        Whether in the last poll it answered and accepted what it was offered.
    problem
        The error of the last poll.
    told, reported
        Fingerprint and time of the last report that was written.
    unreported
        Why the coordinator has not acknowledged it.
    acknowledged_lease
        End of the lease in the last acknowledged report.
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
    """Return the newest readable state; without one, nothing is installed."""
    for content in copies:
        try:
            return DeviceState.model_validate_json(content)
        except ValidationError:
            continue
    return DeviceState()
