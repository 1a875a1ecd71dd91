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
from dlfd_fleet.tracking import open_registry
from dlfd_fleet.tracking.local_store import prepare_store
from tests.mlflow_client import client_of

PATIENCE = 120.0


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A store that MLflow has just made."""
    file = tmp_path_factory.mktemp("whole") / "mlflow.db"
    prepare_store(f"sqlite:///{file}")
    return file


def test_a_store_is_made_once_and_nothing_is_left_beside_it(whole):
    before = whole.read_bytes()
    prepare_store(f"sqlite:///{whole}")
    assert whole.read_bytes() == before
    assert {file.name for file in whole.parent.iterdir()} <= {"mlflow.db", ".mlflow.db.lock"}
    assert [found.name for found in client_of(f"sqlite:///{whole}").search_experiments()] == ["Default"]


def changed(whole, file, *statements):
    """A copy of a whole store, changed."""
    shutil.copyfile(whole, file)
    with closing(sqlite3.connect(file)) as database, database:
        for statement in statements:
            database.execute(statement)
    return file.read_bytes()


A_RUN = "INSERT INTO registered_models (name) VALUES ('somebody')"


@pytest.mark.parametrize(
    "statements",
    [
        ("DROP TABLE alembic_version", A_RUN),  # whatever else is wrong, it holds a record
        ("UPDATE alembic_version SET version_num = 'earlier'", A_RUN),
        None,
    ],
)
def test_a_file_that_holds_records_or_is_no_store_is_left_alone(whole, tmp_path, statements):
    file = tmp_path / "mlflow.db"
    if statements is None:
        file.write_bytes(content := b"no database at all" * 100)
    else:
        content = changed(whole, file, *statements)
    prepare_store(f"sqlite:///{file}")
    assert [(found.name, found.read_bytes()) for found in tmp_path.iterdir()] == [("mlflow.db", content)]


def test_a_database_of_somebody_else_is_left_alone(tmp_path):
    file = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("CREATE TABLE mine (number INTEGER)")
    content = file.read_bytes()
    prepare_store(f"sqlite:///{file}")
    assert file.read_bytes() == content


@pytest.mark.parametrize(
    "statements",
    [
        ("DROP TABLE alembic_version",),
        ("DELETE FROM alembic_version",),
        ("UPDATE alembic_version SET version_num = 'earlier'", "DROP TABLE registered_models"),
        None,
    ],
)
def test_a_store_that_another_program_left_half_made_is_put_aside_and_made_anew(whole, tmp_path, statements):
    file = tmp_path / "mlflow.db"
    if statements is None:
        file.write_bytes(before := b"")
    else:
        before = changed(whole, file, *statements)
    with open_registry(TrackingSettings(), tmp_path) as registry:
        assert registry.versions() == []
    assert (tmp_path / "mlflow.db.half-made").read_bytes() == before


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


def test_a_store_where_nothing_can_be_made_is_one_sentence_at_once(tmp_path):
    (tmp_path / "file").touch()
    for place in (f"{tmp_path}/file/mlflow.db", "/proc/mlflow.db"):
        with pytest.raises(
            TrackingError, match=r"MLflow's store .*mlflow\.db cannot be made: .*; check space and rights"
        ):
            prepare_store(f"sqlite:///{place}")
