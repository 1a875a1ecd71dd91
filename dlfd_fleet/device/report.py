"""What a device tells the coordinator of itself: signed, on disk until it is acknowledged, and told once."""

from __future__ import annotations

import hashlib
import json
import secrets
import urllib.error
import urllib.request
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Any

from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import FormatError

from dlfd_fleet.device.contract import REPORT_TYPE, REPORTS_PATH, DeviceReport
from dlfd_fleet.device.durable import write_durably
from dlfd_fleet.device.folder import DeviceFolder
from dlfd_fleet.device.lease import is_to_be_renewed
from dlfd_fleet.device.state import DeviceState
from dlfd_fleet.exceptions import UpdateUnreachableError

DAILY = timedelta(days=1)
_SECONDS = 30.0


def is_due(state: DeviceState, floor: int, now: datetime, lease_until: datetime | None) -> bool:
    """Tell whether there is something to report, or a day has passed since the last report was written."""
    if is_to_be_renewed(lease_until, state.acknowledged_lease, now):
        return True
    news = state.purged or state.attacks or state.told != _fingerprint(state, floor)
    return bool(news) or state.reported is None or now - state.reported >= DAILY


def write_report(
    folder: DeviceFolder, state: DeviceState, floor: int, now: datetime, lease_until: datetime | None
) -> DeviceState:
    """Sign a report and put it on disk to be sent; return the state, which remembers that it was written."""
    current = state.current.release if state.current else None
    report = DeviceReport(
        device=folder.device,
        time=now,
        nonce=secrets.token_hex(16),
        sequence=current.sequence if current else 0,
        version=current.version if current else "",
        epoch=current.epoch if current else 0,
        floor=floor,
        healthy=state.healthy,
        installed=_installed(state),
        purged=state.purged,
        attacks=state.attacks,
        lease_until=lease_until,
    )
    envelope = Envelope(report.model_dump_json().encode(), REPORT_TYPE, {})
    envelope.sign(folder.signer)
    write_durably(folder.waiting_report, json.dumps(envelope.to_dict()).encode())
    return state.but(told=_fingerprint(state, floor), reported=now)


def send_report(folder: DeviceFolder, state: DeviceState) -> DeviceState:
    """Send the report that waits; return the state without what the coordinator has now acknowledged.

    The report is on disk until the state says so too: if power is cut in between, the same one is sent again, and its
    nonce tells the coordinator.

    Raises
    ------
    UpdateUnreachableError
        If the coordinator does not take it. It waits on, unless it was found wrong (damaged, too old, of a device that
        is not enrolled yet): then it is deleted, and the next one tells everything.
    """
    url = folder.settings.url.rstrip("/") + REPORTS_PATH
    content = folder.waiting_report.read_bytes()
    request = urllib.request.Request(  # noqa: S310 - the settings take http and https alone
        url, content, {"Content-Type": "application/json"}, method="POST"
    )
    try:
        report = DeviceReport.model_validate_json(Envelope.from_dict(json.loads(content)).payload)
        with _OPENER.open(request, timeout=_SECONDS):
            return acknowledged(state, report)
    except urllib.error.HTTPError as error:
        with error:
            reason = error.read(300).decode("utf-8", "replace").strip() or error.reason
        if error.code == HTTPStatus.BAD_REQUEST:
            folder.waiting_report.unlink()
        raise UpdateUnreachableError(f"{url} did not take the report: {error.code} {reason}.") from error
    except (ValueError, KeyError, FormatError) as error:
        folder.waiting_report.unlink()
        raise UpdateUnreachableError(f"{folder.waiting_report} is damaged; another report is written.") from error
    except OSError as error:
        raise UpdateUnreachableError(f"{url} did not take the report: {error}.") from error


def acknowledged(state: DeviceState, report: DeviceReport) -> DeviceState:
    """Return the state without what a report has told."""
    return state.but(
        purged=tuple(digest for digest in state.purged if digest not in report.purged),
        attacks=tuple(attack for attack in state.attacks if attack not in report.attacks),
        acknowledged_lease=report.lease_until,
    )


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected POST becomes a GET, whose answer acknowledges nothing."""

    def redirect_request(self, *_arguments: Any, **_named: Any) -> None:
        """Follow none."""


_OPENER = urllib.request.build_opener(_NoRedirect)


def _installed(state: DeviceState) -> tuple[str, ...]:
    return tuple(digest for slot in state.slots for digest in slot.digests)


def _fingerprint(state: DeviceState, floor: int) -> str:
    current = state.current.release.sequence if state.current else None
    told = [current, floor, state.healthy, _installed(state), state.purging]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()
