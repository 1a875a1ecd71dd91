"""Show, send or drop records that MLflow has not taken."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from rich.table import Table
from rich.text import Text

from dlfd_fleet.exceptions import JobError, TrackingError
from dlfd_fleet.federation.records.store import Store, require_folder
from dlfd_fleet.plain_text import narrow_table
from dlfd_fleet.settings import Settings
from dlfd_fleet.tracking import open_tracker
from dlfd_fleet.tracking.outbox import REGISTRY_KINDS, Outbox

_SEND_PATIENCE = 600.0  # one that does not answer ends the wait at once
_KINDS = {
    "start": "the run and its parameters",
    "tags": "tags",
    "metrics": "metrics",
    "dataset": "the data set",
    "artifact": "a file",
    "model": "the model's version",
    "revoke": "revocation of older versions",
    "finish": "the end",
}


def unsent_table(settings: Settings) -> Table:
    """Return every waiting or refused record, oldest first."""
    table = narrow_table("record", "job", "what", "state", folded={"what", "state"})
    require_folder(settings.state_folder)
    if _file(settings).exists():
        with closing(Outbox(_file(settings))) as outbox:
            for entry in outbox.entries():
                name = entry.fields.get("name")
                what = f"{_KINDS.get(entry.kind, entry.kind)}{f' {name}' if name else ''}"
                # What a server says is text, whatever marks are in it.
                state = Text(f"refused: {entry.refused}" if entry.refused else "waits")
                table.add_row(str(entry.sequence), Text(entry.job), Text(what), state)
    return table


def send_unsent(settings: Settings) -> str:
    """Send waiting and refused records, and return a sentence about the result.

    Raises
    ------
    JobError
        If a job is working on the state folder; it sends the records itself.
    TrackingError
        If MLflow does not answer, or refuses again.
    """
    with _alone(settings) as store:
        with closing(Outbox(_file(settings))) as outbox:
            number = len(outbox.entries())
        champion = store.champions.current()
        return _send(settings, champion.job if champion else None, number)


def _send(settings: Settings, champion: str | None, number: int) -> str:
    with open_tracker(settings.tracking, settings.state_folder) as tracker:
        tracker.try_again(champion, everything=True)
        waiting = tracker.flush(_SEND_PATIENCE)
        if waiting:
            raise TrackingError(
                f"MLflow at {tracker.uri} did not take {waiting} of {number} records: {tracker.problem}"
            )
        if tracker.refused:
            raise TrackingError(
                f"MLflow at {tracker.uri} refused {tracker.refused} of {number} records; `dlfd-fleet outbox list` says "
                "why, and `dlfd-fleet outbox drop RECORD` lets go of one."
            )
        return f"MLflow at {tracker.uri} has taken {number} records; nothing waits."


def drop_unsent(settings: Settings, record: int) -> str:
    """Drop one record for ever, and return a sentence about what MLflow will not get.

    Raises
    ------
    JobError
        If there is no such record, or a job is working on the state folder.
    """
    with _alone(settings), closing(Outbox(_file(settings))) as outbox:
        dropped = outbox.drop(record)
        if dropped is None:
            raise JobError(f"There is no record {record}; `dlfd-fleet outbox list` shows what MLflow does not have.")
    what = _KINDS.get(dropped.kind, dropped.kind)
    if dropped.kind in REGISTRY_KINDS:
        return f"Dropped {what} of {dropped.job}: the registry will not know of it; see `dlfd-fleet registry list`."
    return f"Dropped {what} of {dropped.job}."


@contextmanager
def _alone(settings: Settings) -> Iterator[Store]:
    if not _file(settings).exists():
        raise JobError(f"Nothing waits for MLflow in {settings.state_folder}.")
    with closing(Store(settings.state_folder)) as store, store.lock():
        yield store


def _file(settings: Settings) -> Path:
    return settings.state_folder / "coordinator" / "outbox.db"
