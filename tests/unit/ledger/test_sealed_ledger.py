"""A ledger that somebody changed who has the file, but not the site's key."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from dlfd_fleet.exceptions import LedgerError
from dlfd_fleet.ledger import Ledger, RequestState
from dlfd_fleet.ledger.ledger import Leftover

KEY = bytes(range(32))
DEADLINE = datetime(2027, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    """A ledger with a request that waits, one that is withdrawn, one that a job works on, and one that is purged."""
    file = tmp_path_factory.mktemp("honest") / "ledger.db"
    with Ledger(file, KEY, create=True) as ledger:
        requests = [ledger.request(name, f"digest of {name}", DEADLINE).id for name in ("anna", "bert", "cleo", "dora")]
        ledger.move(requests[1], RequestState.WITHDRAWN, "withdrawn by the person")
        ledger.move(requests[2], RequestState.UNLEARNING, "a job took it up", job="job-1")
        for state in (RequestState.UNLEARNING, RequestState.EVALUATING, RequestState.RELEASED, RequestState.PURGING):
            ledger.move(requests[3], state, "on its way", job="job-1", epoch=1)
        ledger.purged(requests[3], ["ab" * 32, "cd" * 32])
        ledger.note_leftovers(requests[3], [Leftover(requests[3], "a.png", "ab" * 32, True, "Read-only file system")])
        ledger.forget_identity(requests[3])
        ledger.note_trained(["digest of dora", "digest of emil"])
        ledger.request("finn", "digest of finn", DEADLINE, no_data=True)
        for end in (date(2026, 10, 31), date(2026, 11, 30)):
            ledger.note_export(date(2026, 10, 1), end, "download", with_names=True, done_by="ode")
        ledger.raise_epoch(1)
        ledger.verify()
    return file


@pytest.fixture
def file(honest, tmp_path):
    return shutil.copy(honest, tmp_path / "ledger.db")


def change(file, statements):
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript(statements)
        connection.commit()


def assert_seen(file):
    with pytest.raises(LedgerError, match=r"tampered with"), Ledger(file, KEY) as ledger:
        ledger.verify()


def columns(honest):
    with closing(sqlite3.connect(honest)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return [
            (table, row[1], row[2]) for table in tables for row in connection.execute(f"PRAGMA table_info({table})")
        ]


def test_a_change_of_any_column_of_any_row_is_seen(honest, tmp_path):
    tried = 0
    for table, column, kind in columns(honest):
        if (table, column) == ("ledger", "version"):
            continue  # "has the format 9": another sentence
        value = {"INTEGER": "77", "BOOLEAN": "0"}.get(kind, "'other'")
        for rowid in (1, 2):
            file = shutil.copy(honest, tmp_path / "changed.db")
            with closing(sqlite3.connect(file)) as connection:
                done = connection.execute(f"UPDATE {table} SET {column} = {value} WHERE rowid = {rowid}")
                connection.commit()
                if not done.rowcount:
                    continue
            assert_seen(file)
            tried += 1
    assert tried > 40


@pytest.mark.parametrize("table", ["request", "history", "tombstone", "leftover", "trained", "export", "ledger"])
@pytest.mark.parametrize("which", ["max", "min"])
def test_a_row_that_is_gone_is_seen(file, table, which):
    change(file, f"DELETE FROM {table} WHERE rowid = (SELECT {which}(rowid) FROM {table})")
    assert_seen(file)


@pytest.mark.parametrize(
    "statements",
    [
        # The newest request and all that is known of it
        "DELETE FROM history WHERE request = (SELECT id FROM request WHERE identity = 'anna');"
        "DELETE FROM request WHERE identity = 'anna'",
        # A withdrawal of nobody's
        "UPDATE request SET state = 'WITHDRAWN' WHERE identity = 'anna';"
        "INSERT INTO history SELECT max(sequence) + 1, (SELECT id FROM request WHERE identity = 'anna'), at,"
        " 'withdrawn', 'WITHDRAWN', 'withdrawn by the person', '', NULL, NULL, NULL, '', NULL, NULL, seal FROM history",
        # Deadlines that are later
        "UPDATE request SET deadline = '2099-01-01T00:00:00+00:00'",
        # Two people's requests
        "UPDATE request SET identity = CASE identity WHEN 'anna' THEN 'cleo' ELSE 'anna' END"
        " WHERE identity IN ('anna', 'cleo')",
        "DELETE FROM tombstone",
        # An export that nobody is to know of
        "DELETE FROM export WHERE number = 2",
        "UPDATE export SET with_names = 0 WHERE number = 2",
        # An earlier format, by which the table of exports would be made anew
        "UPDATE ledger SET version = 7; DROP TABLE export",
        "DELETE FROM leftover",
        "DELETE FROM trained WHERE person_digest = 'digest of emil'",
        "UPDATE ledger SET epoch = 0",
        "INSERT INTO ledger SELECT 9, epoch, last, rows, nonce, members, seal FROM ledger",
        "UPDATE ledger SET rows = rows - 1; DELETE FROM leftover",
        # A tombstone moved to another request with its seal, and a copy of a row
        "UPDATE tombstone SET request = (SELECT id FROM request WHERE identity = 'anna')",
        "INSERT INTO tombstone SELECT 'ef', request, seal FROM tombstone LIMIT 1",
        "DELETE FROM history; DELETE FROM tombstone; DELETE FROM leftover; DELETE FROM request",
    ],
)
def test_what_somebody_would_change_is_seen(file, statements):
    change(file, statements)
    assert_seen(file)


def test_a_row_of_an_older_copy_of_the_ledger_is_seen(file, tmp_path):
    """Its seal was right once; what the head says of all rows is newer."""
    old = shutil.copy(file, tmp_path / "old.db")
    with Ledger(file, KEY) as ledger:
        request = next(request for request in ledger.requests() if request.identity == "anna")
        ledger.move(request.id, RequestState.UNLEARNING, "a job took it up", job="job-2")
        ledger.verify()
    change(
        file,
        f"ATTACH '{old}' AS old; DELETE FROM request WHERE identity = 'anna';"
        "INSERT INTO request SELECT * FROM old.request WHERE identity = 'anna'",
    )
    assert_seen(file)


def test_a_changed_row_is_not_used_and_never_sealed_anew(file):
    change(file, "UPDATE request SET deadline = '2099-01-01T00:00:00+00:00' WHERE identity = 'cleo'")
    with Ledger(file, KEY) as ledger:
        with pytest.raises(LedgerError, match="tampered with: the request"):
            ledger.requests()
        (cleo,) = {event.request for event in ledger.history() if event.state is RequestState.UNLEARNING} - {
            event.request for event in ledger.history() if event.state is RequestState.EVALUATING
        }
        with pytest.raises(LedgerError, match="tampered with: the request"):
            ledger.move(cleo, RequestState.EVALUATING, "the update was sent")
        ledger.request("emil", "digest of emil", DEADLINE)
    assert_seen(file)


def test_a_missing_row_is_still_seen_after_honest_changes(file):
    change(file, "DELETE FROM tombstone WHERE content_digest = (SELECT max(content_digest) FROM tombstone)")
    with Ledger(file, KEY) as ledger:
        request = ledger.request("emil", "digest of emil", DEADLINE)
        ledger.purged(request.id, ["ef" * 32])
    assert_seen(file)


def test_the_digest_of_a_purged_image_is_not_in_the_file(file):
    with Ledger(file, KEY) as ledger:
        ledger.note_leftovers(ledger.requests(RequestState.PURGING)[0].id, [])
        assert "ab" * 32 in ledger.tombstones()
    assert b"abababab" not in file.read_bytes()


def test_a_ledger_of_the_format_before_is_opened_and_still_whole(tmp_path):
    """It was written by the release of that format, and kept as text."""
    file = tmp_path / "ledger.db"
    change(file, Path(__file__).with_name("ledger-of-format-7.sql").read_text())
    with Ledger(file, KEY) as ledger:
        ledger.verify()
        before = ledger.requests(), ledger.history()
        assert [request.state for request in before[0]] == [
            RequestState.REFUSED,
            RequestState.WITHDRAWN,
            RequestState.ACCEPTED,
            RequestState.ROLLING_OUT,
        ]
        assert (ledger.epoch(), len(ledger.tombstones()), ledger.exports()) == (1, 1, [])
    with Ledger(file, KEY) as ledger:
        assert (ledger.requests(), ledger.history()) == before
        for _ in range(2):  # once was refused by the index of that format
            ledger.request("emil", "digest of emil", DEADLINE, no_data=True)
        ledger.request("emil", "digest of emil", DEADLINE)
        ledger.note_export(date(2026, 10, 1), date(2026, 10, 31), "download", with_names=False, done_by="ode")
        ledger.verify()
    change(file, "DELETE FROM export")
    assert_seen(file)


def test_a_ledger_of_the_format_before_that_was_changed_is_not_sealed_anew(tmp_path):
    file = tmp_path / "ledger.db"
    old = Path(__file__).with_name("ledger-of-format-7.sql").read_text()
    change(file, old + "UPDATE request SET state = 'WITHDRAWN' WHERE identity = 'cleo'")
    assert_seen(file)
    assert_seen(file)


def test_another_key_does_not_open_it(file):
    with pytest.raises(
        LedgerError, match=r"not sealed with this site's key: restore the ledger and site\.key together"
    ):
        Ledger(file, KEY[::-1])


def test_what_two_heads_say_does_not_tell_the_rows_between_them(file):
    """Nothing changed, and yet every column that hides the set is another one."""
    with Ledger(file, KEY) as ledger:
        ledger.raise_epoch(0)
    with closing(sqlite3.connect(file)) as connection:
        first = connection.execute("SELECT nonce, members FROM ledger").fetchone()
    with Ledger(file, KEY) as ledger:
        ledger.raise_epoch(0)
        ledger.verify()
    with closing(sqlite3.connect(file)) as connection:
        second = connection.execute("SELECT nonce, members FROM ledger").fetchone()
    assert not set(first) & set(second)


def test_asking_and_withdrawing_again_and_again_costs_the_same_each_time(tmp_path):
    """Counted in steps of SQLite's machine, not in seconds."""
    steps = 0

    def count():
        nonlocal steps
        steps += 1

    with Ledger(tmp_path / "ledger.db", KEY, create=True) as ledger:
        with ledger._engine.connect() as connection:
            connection.connection.dbapi_connection.set_progress_handler(count, 10)
        costs = []
        for _ in range(60):
            steps = 0
            request = ledger.request("anna", "digest of anna", DEADLINE)
            ledger.move(request.id, RequestState.WITHDRAWN, "withdrawn by the person")
            assert len(ledger.history(request.id)) == 2
            assert ledger.person_digests() == frozenset()
            assert ledger.requests(RequestState.ACCEPTED) == []
            costs.append(steps)
        ledger.verify()
    assert costs[-1] < 1.5 * costs[5]


def test_a_ledger_that_another_process_keeps_locked_is_one_sentence(file, monkeypatch):
    monkeypatch.setattr("dlfd_fleet.database.BUSY_SECONDS", 0.05)
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(LedgerError) as caught:
            Ledger(file, KEY)
        assert str(caught.value) == (
            f"The ledger {file} cannot be used: another process has kept it locked for 0.05 seconds; wait until it "
            "ends, or end it."
        )
        other.execute("ROLLBACK")
    with Ledger(file, KEY) as ledger:
        ledger.verify()
