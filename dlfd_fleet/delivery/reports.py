"""Open and verify a device's report: envelope, signature and fields."""

from __future__ import annotations

import json
import re

from pydantic import ValidationError
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import FormatError, VerificationError
from securesystemslib.signer import SSlibKey

from dlfd_fleet.device.contract import REPORT_TYPE, DeviceReport
from dlfd_fleet.exceptions import ReportRefusedError

_KEYID = re.compile("[0-9a-f]{64}")


def open_envelope(content: bytes) -> tuple[Envelope, str]:
    """Return a report's envelope, and the id of the device that it claims to be from.

    Raises
    ------
    ReportRefusedError
        If the content is no envelope of a report.
    """
    try:
        envelope = Envelope.from_dict(json.loads(content))
        (keyid,) = envelope.signatures
        if not _KEYID.fullmatch(keyid):
            raise ValueError("no key id")
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError, FormatError) as error:
        raise ReportRefusedError("This is not a DSSE envelope with one signature.") from error
    if envelope.payload_type != REPORT_TYPE:
        raise ReportRefusedError(f"The envelope holds no device report ({REPORT_TYPE}).")
    return envelope, keyid


def verified_report(envelope: Envelope, key: SSlibKey) -> DeviceReport:
    """Return the report, after checking the device's signature.

    Raises
    ------
    ReportRefusedError
        If the signature is wrong, or a field is not valid.
    """
    try:
        envelope.verify([key], 1)
        report = DeviceReport.model_validate_json(envelope.payload)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ReportRefusedError(f"The report is not valid: {where}: {first['msg']}.") from error
    except (VerificationError, ValueError, TypeError) as error:
        raise ReportRefusedError(f"The report is not signed by the device {key.keyid[:12]}.") from error
    if report.device != key.keyid:
        raise ReportRefusedError("The report is of another device than the one that signed it.")
    return report
