"""A device's report as it arrives: an envelope, a signature, and the contract."""

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
    """Return a report's envelope, and the id of the device that says it is its own.

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
        raise ReportRefusedError("This is no DSSE envelope with one signature.") from error
    if envelope.payload_type != REPORT_TYPE:
        raise ReportRefusedError(f"The envelope holds no device report ({REPORT_TYPE}).")
    return envelope, keyid


def verified_report(envelope: Envelope, key: SSlibKey) -> DeviceReport:
    """Return the report, once the device's signature is found good.

    Raises
    ------
    ReportRefusedError
        If it is not, or the report breaks the contract.
    """
    try:
        envelope.verify([key], 1)
        report = DeviceReport.model_validate_json(envelope.payload)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ReportRefusedError(f"The report breaks the contract: {where}: {first['msg']}.") from error
    except (VerificationError, ValueError, TypeError) as error:
        raise ReportRefusedError(f"The report is not signed by the device {key.keyid[:12]}.") from error
    if report.device != key.keyid:
        raise ReportRefusedError("The report is of another device than the one that signed it.")
    return report
