"""Errors of dlfd-fleet whose message is for a person.

Each message is one sentence: what is wrong, where, and what to do. The commands print it and end with exit code 2, or 1
if they did their work and its result is bad; any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import errno
import traceback
from pathlib import Path
from typing import ClassVar


class FleetError(Exception):
    """Base of every error that a user, an operator or a site can fix.

    Parameters
    ----------
    sentence
        What is wrong, where, and what to do.
    field
        Which part of a decision is wrong, as the function that takes it calls it; empty if it is none of them.

    Attributes
    ----------
    exit_code
        What a command ends with.
    """

    exit_code = 2

    def __init__(self, sentence: str = "", field: str = "") -> None:
        super().__init__(sentence)
        self.field = field


class ConfigurationError(FleetError):
    """A setting is unknown, malformed or contradicts another one."""


class DataError(FleetError):
    """A manifest, an image or a label is missing, unreadable or inconsistent."""


class LedgerError(FleetError):
    """A forget request is refused, or a ledger cannot be read."""


class UnlearningError(FleetError):
    """An unlearning method fails, or does not return an outcome."""


class ModelFileError(FleetError):
    """A model file or its card is missing, damaged or does not fit the model."""


class ExportError(FleetError):
    """An exported ONNX file differs from the model that it was made from."""


class TrackingError(FleetError):
    """The tracking server did not take an entry; the job goes on without it."""


class MessageError(FleetError):
    """A message from a node is not valid; the text names the node."""


class JobError(FleetError):
    """A federated job cannot start or cannot go on."""


class JobCancelledError(JobError):
    """A job was cancelled."""


class VerdictError(JobError):
    """A job did its work, but the verdict on its model is FAIL, so nothing was released."""

    exit_code = 1
    BEGINNING: ClassVar[str] = "The verdict is FAIL"
    """Of each message: Flower hands on the words of an error, and not its class."""


class GoesOnError(JobError):
    """A command was interrupted, and the run that it has started goes on without it."""


class OutboxError(JobError):
    """A job's records for MLflow cannot be stored, for example because the disk is full."""


class DeliveryError(FleetError):
    """A release may not be published, a key is missing, or the signed repository cannot be written."""


class ReportRefusedError(DeliveryError):
    """A device's report is not valid, not signed by a device of the fleet, or was received before."""


class EvidenceError(FleetError):
    """A report or a certificate is missing, damaged or not valid."""


class ReportRepeatedError(ReportRefusedError):
    """A device's report was received before: a replay, or the device missed the acknowledgement."""


class DeviceError(FleetError):
    """A device cannot load its model or read an image."""


class ImageError(DataError, DeviceError):
    """An image cannot be read; sites and devices say the same.

    Parameters
    ----------
    file
        The image.
    reason
        Why not, as a part of a sentence.
    """

    def __init__(self, file: Path, reason: str) -> None:
        super().__init__(f"Cannot read the image {file}: {reason}.")
        self.reason = reason


class UpdateRefusedError(DeviceError):
    """An update is not what the fleet signed; the text names the attack that it looks like."""


class UpdateUnreachableError(DeviceError):
    """The repository does not answer, or the device has no space; a later attempt may succeed."""


_OURS = Path(__file__).parent
_OF_A_FILE = frozenset(
    number
    for name in ("ENOSPC", "EDQUOT", "EROFS", "EIO", "ENAMETOOLONG", "ELOOP", "ENOTDIR", "EISDIR", "ENXIO", "ENODEV")
    if (number := getattr(errno, name, None)) is not None
)
"""Errors of a disk or a given path, which are not bugs."""


def file_refusal(error: BaseException) -> str | None:
    """Return the one sentence for a file that cannot be read or written; None for any other error."""
    if isinstance(error, PermissionError):
        return f"You may not read or write {error.filename}: run the command as the user who owns it."
    if isinstance(error, OSError) and error.errno in _OF_A_FILE:
        return f"Cannot read or write {error.filename or 'a file'}: {error.strerror}; check the path and the disk."
    return None


def place_of(error: BaseException) -> str:
    """Return the file, the line and the function that an error came from.

    Of another package it is the place in the file that we called, and not in a library below that.
    """
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return "place unknown"
    called = next((one.filename for one in frames if _OURS not in Path(one.filename).parents), frames[-1].filename)
    last = next(one for one in reversed(frames) if one.filename == called)
    return f"{Path(last.filename).name}, line {last.lineno}, in {last.name}"
