"""MLflow's SQLite store is whole or not there, whenever its first process is killed."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import pytest

from dlfd_fleet.exceptions import TrackingError
from dlfd_fleet.settings import TrackingSettings
from dlfd_fleet.tracking import open_registry, open_tracker
from dlfd_fleet.tracking.local_store import prepare_store
from tests.mlflow_client import client_of

PATIENCE = 120.0


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A store that MLflow has just made."""
    file = tmp_path_factory.mktemp("whole") / "mlflow.db"
    prepare_store(f"sqlite:///{file}")
    return file


def halve(file, tables, *, version):
    """Leave a store as a killed process does: some of the tables, and nothing in them."""
    with closing(sqlite3.connect(file)) as database:
        names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for name in sorted(names)[tables:] if tables is not None else ():
            if name != "alembic_version" or not version:
                database.execute(f'DROP TABLE "{name}"')
        if "experiments" in names and (tables is None or "experiments" in sorted(names)[:tables]):
            database.execute("DELETE FROM experiments")
        database.commit()


def test_a_store_is_made_once_and_nothing_is_left_beside_it(whole):
    before = whole.read_bytes()
    prepare_store(f"sqlite:///{whole}")
    assert whole.read_bytes() == before
    assert {file.name for file in whole.parent.iterdir()} <= {"mlflow.db", ".mlflow.db.lock"}
    assert [found.name for found in client_of(f"sqlite:///{whole}").search_experiments()] == ["Default"]


@pytest.mark.parametrize(("tables", "version"), [(0, False), (20, True), (None, True)])
def test_a_half_made_store_is_moved_aside_with_a_sentence_and_what_waits_is_sent(
    whole, tmp_path, caplog, tables, version
):
    file = tmp_path / "mlflow.db"
    shutil.copy(whole, file)
    halve(file, tables, version=version)
    with open_tracker(TrackingSettings(), tmp_path) as tracker:
        tracker.start_job("job-1", kind="train", parameters={"seed": 0}, tags={})
        assert tracker.flush(PATIENCE) == 0
        assert tracker.refused == 0
    (run,) = client_of(f"sqlite:///{file}").search_runs(["1"])
    assert run.data.params == {"seed": "0"}
    assert (tmp_path / "mlflow.db.half-made-1").exists()
    assert "was half made, with nothing in it; it is now mlflow.db.half-made-1" in caplog.text


def test_a_store_with_something_in_it_or_that_is_none_of_ours_is_never_moved(whole, tmp_path):
    file = tmp_path / "mlflow.db"
    shutil.copy(whole, file)
    with closing(sqlite3.connect(file)) as database:  # of another release of MLflow
        database.execute("DROP TABLE alembic_version")
        database.commit()
    for content in (file.read_bytes(), b"no database at all" * 100):
        file.write_bytes(content)
        prepare_store(f"sqlite:///{file}")
        assert file.read_bytes() == content
    assert not list(tmp_path.glob("*half-made*"))


def test_a_process_killed_while_it_makes_the_store_leaves_none_or_a_whole_one(tmp_path):
    code = (
        "import sys; from dlfd_fleet.tracking.local_store import prepare_store; print(1, flush=True);"
        "prepare_store(sys.argv[1])"
    )
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    process = subprocess.Popen([sys.executable, "-c", code, uri], stdout=subprocess.PIPE)
    process.stdout.readline()
    deadline = time.monotonic() + PATIENCE
    while not (tmp_path / ".mlflow.db.new").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with open_registry(TrackingSettings(), tmp_path) as registry:
        assert registry.versions() == []
    assert not list(tmp_path.glob("*half-made*"))


def test_a_store_where_nothing_can_be_made_is_one_sentence_at_once(tmp_path):
    (tmp_path / "file").touch()
    for place in (f"{tmp_path}/file/mlflow.db", "/proc/mlflow.db"):
        with pytest.raises(
            TrackingError, match=r"MLflow's store .*mlflow\.db cannot be made: .*; check space and rights"
        ):
            prepare_store(f"sqlite:///{place}")
