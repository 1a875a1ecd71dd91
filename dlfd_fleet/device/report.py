"""Write, sign and send a device's reports; each stays on disk until it is acknowledged."""

from __future__ import annotations

import hashlib
import json
import secrets
import urllib.error
import urllib.request
from contextlib import suppress
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import FormatError

from dlfd_fleet.device.contract import RELEVANT_REPORTS, REPORT_TYPE, REPORTS_PATH, DeviceReport, Nonce
from dlfd_fleet.device.durable import read_copies, write_durably, write_twice
from dlfd_fleet.device.folder import DeviceFolder
from dlfd_fleet.device.lease import is_to_be_renewed
from dlfd_fleet.device.state import DeviceState
from dlfd_fleet.exceptions import UpdateUnreachableError

DAILY = timedelta(days=1)
_SECONDS = 30.0
_MOST_PURGED, _MOST_FAILED = 10_000, 100


class _Chain(BaseModel):
    """Nonces of a device's acknowledged reports, and of those written since.

    It is a separate file, stored twice. If it is lost, the coordinator takes the device for another machine with its
    key.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    taken: tuple[Nonce, ...] = ()
    """The last one would do, but for a coordinator whose database was restored from a copy."""
    written: tuple[Nonce, ...] = ()


def is_due(state: DeviceState, floor: int, now: datetime, wall: datetime, lease_until: datetime | None) -> bool:
    """Tell whether there is something to report, or the last report is a day old.

    Parameters
    ----------
    now
        Time by the clock for leases, which does not go back.
    wall
        Time by the device's own clock.
    """
    if is_to_be_renewed(lease_until, state.acknowledged_lease, now):
        return True
    news = state.purged or state.attacks or state.told != _fingerprint(state, floor)
    # A report of the future is of a time when the clock was ahead.
    return bool(news) or state.reported is None or not timedelta(0) <= wall - state.reported < DAILY


def write_report(
    folder: DeviceFolder, state: DeviceState, floor: int, wall: datetime, lease_until: datetime | None
) -> DeviceState:
    """Sign a report and write it to disk; return the state that notes it.

    Parameters
    ----------
    wall
        Time by the device's own clock, which the coordinator compares with its own.
    """
    current = state.current.release if state.current else None
    chain, nonce = _read_chain(folder), secrets.token_hex(16)
    report = DeviceReport(
        device=folder.device,
        time=wall,
        nonce=nonce,
        follows=(*chain.taken, *chain.written),
        failed=tuple(dict.fromkeys(refusal.sequence for refusal in state.refusals))[:_MOST_FAILED],
        sequence=current.sequence if current else 0,
        version=current.version if current else "",
        epoch=current.epoch if current else 0,
        floor=floor,
        healthy=state.healthy,
        installed=_installed(state),
        purged=state.purged[:_MOST_PURGED],
        attacks=state.attacks,
        lease_until=lease_until,
    )
    envelope = Envelope(report.model_dump_json().encode(), REPORT_TYPE, {})
    envelope.sign(folder.signer)
    # Before the report itself: whatever is sent, the next report says that it follows it.
    _write_chain(folder, chain.model_copy(update={"written": (*chain.written, nonce)[-RELEVANT_REPORTS:]}))
    write_durably(folder.waiting_report, json.dumps(envelope.to_dict()).encode())
    return state.but(told=_fingerprint(state, floor), reported=wall)


def send_report(folder: DeviceFolder, state: DeviceState) -> DeviceState:
    """Send the waiting report; return the state without what is acknowledged.

    The report stays on disk until the state is written. After a power cut in between it is sent again, and the
    coordinator recognises its nonce.

    Raises
    ------
    UpdateUnreachableError
        If the coordinator does not accept it. The report waits, unless it was refused as wrong (damaged, too old,
        device not enrolled): then it is deleted, and the next one reports everything.
    """
    url = folder.settings.url.rstrip("/") + REPORTS_PATH
    content = folder.waiting_report.read_bytes()
    request = urllib.request.Request(  # noqa: S310 - the settings take http and https alone
        url, content, {"Content-Type": "application/json"}, method="POST"
    )
    try:
        report = DeviceReport.model_validate_json(Envelope.from_dict(json.loads(content)).payload)
        with _OPENER.open(request, timeout=_SECONDS):
            pass
    except urllib.error.HTTPError as error:
        with error:
            reason = error.read(300).decode("utf-8", "replace").strip() or error.reason
        if error.code == HTTPStatus.BAD_REQUEST:
            folder.waiting_report.unlink()
        raise UpdateUnreachableError(f"{url} did not take the report: {error.code} {reason}.") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, FormatError) as error:
        folder.waiting_report.unlink()
        raise UpdateUnreachableError(f"{folder.waiting_report} is damaged; another report is written.") from error
    except OSError as error:
        raise UpdateUnreachableError(f"{url} did not take the report: {error}.") from error
    taken = dict.fromkeys((*_read_chain(folder).taken, report.nonce))
    _write_chain(folder, _Chain(taken=tuple(taken)[-RELEVANT_REPORTS:]))
    return acknowledged(state, report)


def acknowledged(state: DeviceState, report: DeviceReport) -> DeviceState:
    """Return the state without what a report contained."""
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


def _read_chain(folder: DeviceFolder) -> _Chain:
    for content in read_copies(folder.chain):
        with suppress(ValidationError):
            return _Chain.model_validate_json(content)
    return _Chain()


def _write_chain(folder: DeviceFolder, chain: _Chain) -> None:
    write_twice(folder.chain, chain.model_dump_json().encode())


def _fingerprint(state: DeviceState, floor: int) -> str:
    current = state.current.release.sequence if state.current else None
    facts = [current, floor, state.healthy, _installed(state), state.purging]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
