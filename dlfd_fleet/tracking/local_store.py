"""Make MLflow's SQLite store, whole or not at all.

MLflow makes its tables in dozens of steps. If the process is killed in between, MLflow can neither complete nor use the
store. So a new store is made under another name and renamed. One that another program left half made, with nobody's
records in it, is put aside.
"""

from __future__ import annotations

import functools
import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import filelock
import sqlalchemy as sa

from dlfd_fleet.exceptions import TrackingError

logger = logging.getLogger(__name__)

_LONGEST_MAKING = 300.0  # another process may be making it
_BESIDE = ("", "-journal", "-wal", "-shm")  # SQLite's own files of a database
_OF_MLFLOW = frozenset(("alembic_version", "experiments", "metrics", "params", "runs", "tags"))
_RECORDS = {
    "runs": "SELECT 1 FROM runs LIMIT 1",
    "registered_models": "SELECT 1 FROM registered_models LIMIT 1",
}


def prepare_store(uri: str) -> None:
    """Make the store of a ``sqlite:`` URI, unless it is there and whole, or has records.

    Raises
    ------
    TrackingError
        If another process makes it and does not finish, or it cannot be written.
    """
    if not uri.startswith("sqlite:"):
        return
    name = sa.make_url(uri).database
    if not name or name == ":memory:":
        return
    file = Path(name)
    if file.exists() and not _is_half_made(file):
        return
    lock = file.with_name(f".{file.name}.lock")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()  # where it cannot be made, whoever locks it would wait to no end
        with filelock.FileLock(lock, timeout=_LONGEST_MAKING):
            if file.exists() and _is_half_made(file):
                _put_aside(file)
            if not file.exists():
                _make(file)
    except filelock.Timeout as error:
        raise TrackingError(f"Another process has been making {file} for {_LONGEST_MAKING:.0f} s; end it.") from error
    except OSError as error:
        why = f"MLflow's store {file} cannot be made: {error.strerror}; check space and rights."
        raise TrackingError(why) from error


def _is_half_made(file: Path) -> bool:
    """Tell whether a file is a store that MLflow cannot use, without a run or a registered model in it."""
    try:
        with closing(sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True)) as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if tables and not tables & _OF_MLFLOW:
                return False  # somebody else's
            if any(database.execute(query).fetchone() for name, query in _RECORDS.items() if name in tables):
                return False
            row = None
            if "alembic_version" in tables:
                row = database.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.Error:
        return False  # no database, or one that is in use: MLflow says so
    return row is None or row[0] != _version_of_mlflow()


@functools.cache
def _version_of_mlflow() -> str:
    """Return the version of the tables that the installed MLflow makes."""
    from mlflow.store.db.utils import _get_latest_schema_revision

    return str(_get_latest_schema_revision())  # type: ignore[no-untyped-call]


def _put_aside(file: Path) -> None:
    """Rename a half-made store."""
    aside = file.with_name(f"{file.name}.half-made")
    for ending in _BESIDE:
        beside = file.with_name(file.name + ending)
        if beside.exists():
            beside.replace(aside.with_name(aside.name + ending))
    logger.warning("MLflow's store %s was half made, with no record in it: it is %s now, and made anew", file, aside)


def _make(file: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    new = file.with_name(f".{file.name}.new")
    for ending in _BESIDE:
        new.with_name(new.name + ending).unlink(missing_ok=True)  # of a process that was killed
    artifacts = (file.parent / "mlartifacts").absolute().as_uri()
    store = SqlAlchemyStore(f"sqlite:///{new}", artifacts)  # type: ignore[no-untyped-call]
    store.engine.dispose()
    new.replace(file)
