"""Make MLflow's SQLite store, whole or not at all.

MLflow makes its tables in dozens of steps. If the process is killed in between, MLflow can neither complete nor use the
store. So a new store is made under another name and renamed.
"""

from __future__ import annotations

from pathlib import Path

import filelock
import sqlalchemy as sa

from dlfd_fleet.exceptions import TrackingError

_LONGEST_MAKING = 300.0  # another process may be making it
_BESIDE = ("", "-journal", "-wal", "-shm")  # SQLite's own files of a database


def prepare_store(uri: str) -> None:
    """Make the store of a ``sqlite:`` URI, unless it is there.

    Raises
    ------
    TrackingError
        If another process makes it and does not finish, or it cannot be written.
    """
    if not uri.startswith("sqlite:"):
        return
    name = sa.make_url(uri).database
    if not name or name == ":memory:" or Path(name).exists():
        return
    file = Path(name)
    lock = file.with_name(f".{file.name}.lock")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()  # where it cannot be made, whoever locks it would wait to no end
        with filelock.FileLock(lock, timeout=_LONGEST_MAKING):
            if not file.exists():
                _make(file)
    except filelock.Timeout as error:
        raise TrackingError(f"Another process has been making {file} for {_LONGEST_MAKING:.0f} s; end it.") from error
    except OSError as error:
        why = f"MLflow's store {file} cannot be made: {error.strerror}; check space and rights."
        raise TrackingError(why) from error


def _make(file: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    new = file.with_name(f".{file.name}.new")
    for ending in _BESIDE:
        new.with_name(new.name + ending).unlink(missing_ok=True)  # of a process that was killed
    artifacts = (file.parent / "mlartifacts").absolute().as_uri()
    store = SqlAlchemyStore(f"sqlite:///{new}", artifacts)  # type: ignore[no-untyped-call]
    store.engine.dispose()
    new.replace(file)
