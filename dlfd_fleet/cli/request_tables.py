"""How requests and their history are shown in a terminal of 80 columns or more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from rich.cells import cell_len
from rich.table import Table

from dlfd_fleet.ledger.dates import site_day
from dlfd_fleet.ledger.entries import Event, Export, ForgetRequest
from dlfd_fleet.ledger.site import SHORTEST_ID
from dlfd_fleet.plain_text import plain, visible

_PURGED = "(purged)"
_DAY, _LONGEST_STATE, _LONGEST_LEFT, _GAP = 10, 11, 9, 2


def requests_table(requests: Sequence[ForgetRequest], now: datetime, width: int) -> Table:
    """Return requests with states and deadlines; the days of receipt only if names have room beside them."""
    people = {request: visible(request.identity or _PURGED) for request in requests}
    longest = max((cell_len(word) for name in people.values() for word in name.split()), default=0)
    taken = SHORTEST_ID + _LONGEST_STATE + 2 * _DAY + _LONGEST_LEFT + 5 * _GAP
    with_receipt = longest <= width - taken
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0))
    table.add_column("request", no_wrap=True)
    table.add_column("person", overflow="fold")
    names = ("state", *(("received",) if with_receipt else ()), "due", "left")
    for name in names:
        table.add_column(name, no_wrap=True)
    for request in requests:
        received = (str(request.received),) if with_receipt else ()
        left = plain(_left(request, now), "bold red" if request.overdue(now) else "")
        table.add_row(request.id[:SHORTEST_ID], people[request], request.state, *received, str(request.due), left)
    return table


def request_facts(
    request: ForgetRequest, events: Sequence[Event], waits: str, ids: Mapping[str, str], now: datetime
) -> Table:
    """Return what is known of one request, what it waits for, and its ids in jobs."""
    asked = events[0]
    taken = f", recorded {_moment(asked.at)}" + (f" by {asked.done_by}" if asked.done_by else "")
    left = _left(request, now)
    extended = f", extended from {request.first_deadline.date()}" if request.deadline != request.first_deadline else ""
    facts = {
        "request": request.id,
        "person": request.identity or _PURGED,
        "state": request.state.value,
        "received": f"{request.received}{taken}",
        "due": f"{request.due}{extended}" + (f" ({left})" if left else ""),
        "verified": request.verified_by or "nobody said how",
        "note": request.note,
        "waits": waits,
        **{f"in {job}": name for job, name in ids.items()},
    }
    table = Table.grid(padding=(0, _GAP, 0, 0))
    table.add_column(no_wrap=False, overflow="fold", style="bold")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if value:
            table.add_row(name, value)
    return table


def history_table(events: Sequence[Event]) -> Table:
    """Return what happened to a request: when, what, by whom and why."""
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0))
    table.add_column("when", no_wrap=True)
    for name in ("what", "by", "why"):
        table.add_column(name, overflow="fold")
    for event in events:
        parts = [event.reason, event.remark, event.ground.value if event.ground else ""]
        parts += [f"due {event.due}" if event.due else "", f"told {event.noticed}" if event.noticed else ""]
        parts += [event.job or "", f"epoch {event.epoch}" if event.epoch is not None else ""]
        table.add_row(_moment(event.at), event.action, event.done_by, "; ".join(part for part in parts if part))
    return table


def exports_table(exports: Sequence[Export]) -> Table:
    """Return who exported records: when, of which period, and to where."""
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0))
    table.add_column("when", no_wrap=True)
    for name in ("by", "period", "names", "to"):
        table.add_column(name, overflow="fold")
    for each in exports:
        period, names = f"{each.begin} to {each.end}", "yes" if each.with_names else "no"
        table.add_row(_moment(each.at), each.done_by, period, names, each.destination)
    return table


def _left(request: ForgetRequest, now: datetime) -> str:
    if not request.is_open:
        return ""
    days = (request.due - site_day(now)).days
    if request.overdue(now):
        return "OVERDUE"
    return "today" if days <= 0 else f"{days} day" if days == 1 else f"{days} days"


def _moment(moment: datetime) -> str:
    return f"{moment.astimezone():%Y-%m-%d %H:%M}"
