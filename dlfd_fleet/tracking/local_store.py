"""MLflow's SQLite store: made whole or not at all.

MLflow makes its tables in some dozens of steps. A process that is killed between them leaves a store that MLflow can
neither complete nor use. So a new store is made beside its place and renamed.
"""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from itertools import count
from pathlib import Path

import filelock
import sqlalchemy as sa

from dlfd_fleet.exceptions import TrackingError

logger = logging.getLogger(__name__)
_LONGEST_MAKING = 300.0  # another process may be making it
_BESIDE = ("", "-journal", "-wal", "-shm")  # SQLite's own files of a database


def prepare_store(uri: str) -> None:
    """Make the store of a ``sqlite:`` URI, unless it is there; one that was half made is moved aside.

    Nothing is lost: what MLflow has not taken waits in the outbox.

    Raises
    ------
    TrackingError
        If another process makes it and does not come to an end, or it cannot be written there.
    """
    if not uri.startswith("sqlite:"):
        return
    name = sa.make_url(uri).database
    if not name or name == ":memory:" or _is_whole(Path(name)):
        return
    file = Path(name)
    lock = file.with_name(f".{file.name}.lock")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()  # where it cannot be made, whoever locks it would wait to no end
        with filelock.FileLock(lock, timeout=_LONGEST_MAKING):
            if not _is_whole(file):
                _move_aside(file)
                _make(file)
    except filelock.Timeout as error:
        raise TrackingError(f"Another process has been making {file} for {_LONGEST_MAKING:.0f} s; end it.") from error
    except OSError as error:
        why = f"MLflow's store {file} cannot be made: {error.strerror}; check space and rights."
        raise TrackingError(why) from error


def _is_whole(file: Path) -> bool:
    """Tell whether a store has something in it: MLflow's first act in a whole one is to make an experiment."""
    if not file.exists():
        return False
    try:
        with closing(sqlite3.connect(file, timeout=30.0)) as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            return any(
                database.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone()  # noqa: S608 - names of ours
                for table in ("experiments", "registered_models", "runs")
                if table in tables
            )
    except sqlite3.Error:
        return True  # damaged, or not for us to read: not half made, and MLflow says what is wrong


def _move_aside(file: Path) -> None:
    if not file.exists():
        return
    aside = next(
        place for number in count(1) if not (place := file.with_name(f"{file.name}.half-made-{number}")).exists()
    )
    for ending in _BESIDE:
        part = file.with_name(file.name + ending)
        if part.exists():
            part.replace(aside.with_name(aside.name + ending))
    logger.warning(
        "MLflow's store %s was half made, with nothing in it; it is now %s, and a new one is made.", file, aside.name
    )


def _make(file: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    new = file.with_name(f".{file.name}.new")
    for ending in _BESIDE:
        new.with_name(new.name + ending).unlink(missing_ok=True)  # of a process that was killed
    artifacts = (file.parent / "mlartifacts").absolute().as_uri()
    store = SqlAlchemyStore(f"sqlite:///{new}", artifacts)  # type: ignore[no-untyped-call]
    store.engine.dispose()
    new.replace(file)
