from __future__ import annotations

import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlfd_fleet.exceptions import LedgerError
from dlfd_fleet.ledger import Ledger, RequestState, Site, init_site
from dlfd_fleet.ledger.states import FOLLOWERS
from dlfd_fleet.model_input import image_input

WAY = [
    RequestState.UNLEARNING,
    RequestState.EVALUATING,
    RequestState.RELEASED,
    RequestState.PURGING,
    RequestState.ROLLING_OUT,
    RequestState.COMPLETE,
]
KEY = bytes(range(32))


def in_days(days):
    return datetime.now(UTC) + timedelta(days=days)


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path / "ledger.db", KEY, create=True) as opened:
        yield opened


def test_a_request_goes_its_way_and_its_history_tells_it(ledger):
    request = ledger.request("anna", "digest-of-anna", in_days(30))
    assert request.state is RequestState.ACCEPTED
    assert timedelta(days=29) < request.deadline - request.requested_at <= timedelta(days=30)
    for state in WAY:
        ledger.move(request.id, state, f"now {state}", job="job-1", epoch=1)
    assert [event.state for event in ledger.history(request.id)] == [RequestState.ACCEPTED, *WAY]
    done = ledger.get(request.id)
    assert (done.state, done.job, done.epoch) == (RequestState.COMPLETE, "job-1", 1)
    assert not done.overdue(done.deadline + timedelta(days=1))
    ledger.verify()


def test_a_request_is_overdue_after_its_deadline(ledger):
    request = ledger.request("anna", "a", in_days(1))
    assert not request.overdue(request.requested_at)
    assert request.overdue(request.deadline + timedelta(seconds=1))


@given(states=st.lists(st.sampled_from(RequestState), max_size=12))
def test_only_states_that_may_follow_are_taken(tmp_path_factory, states):
    with Ledger(tmp_path_factory.mktemp("ledger") / "ledger.db", KEY, create=True) as ledger:
        request, current = ledger.request("anna", "a", in_days(1)).id, RequestState.ACCEPTED
        for state in states:
            if state in FOLLOWERS[current]:
                ledger.move(request, state, "may follow")
                current = state
            else:
                with pytest.raises(LedgerError, match="cannot become"):
                    ledger.move(request, state, "may not follow")
            assert ledger.get(request).state is current
        ledger.verify()


def test_nothing_leads_back_from_a_release(ledger):
    request = ledger.request("anna", "a", in_days(1)).id
    for state in WAY[:3]:
        ledger.move(request, state, "on its way")
    with pytest.raises(LedgerError, match="is RELEASED; it cannot become ACCEPTED"):
        ledger.move(request, RequestState.ACCEPTED, "withdrawn")


def test_a_person_is_taken_once(ledger):
    ledger.request("anna", "a", in_days(1))
    with pytest.raises(LedgerError, match="'anna' has asked already"):
        ledger.request("anna", "a", in_days(1))
    assert len(ledger.requests()) == 1
    ledger.verify()


@pytest.fixture
def sqlite_that_keeps_what_is_deleted(monkeypatch):
    """SQLite as python.org and others build it."""
    connect = sqlite3.dbapi2.connect

    def connect_without(*arguments, **options):
        connection = connect(*arguments, **options)
        connection.execute("PRAGMA secure_delete=OFF")
        return connection

    monkeypatch.setattr(sqlite3.dbapi2, "connect", connect_without)


@pytest.mark.parametrize("length", [1, 10])  # of a short name hardly anything is left over by the shorter row
def test_a_forgotten_name_is_nowhere_in_the_file(sqlite_that_keeps_what_is_deleted, ledger, tmp_path, length):
    request = ledger.request("rumpelstiltskin " * length, "digest", in_days(1)).id
    ledger.purged(request, ["ab" * 32, "cd" * 32])
    ledger.purged(request, ["ab" * 32])
    ledger.forget_identity(request)
    ledger.close()
    found = ledger.tombstones()
    assert [len(found), "ab" * 32 in found, "cd" * 32 in found, "ef" * 32 in found] == [2, True, True, False]
    assert (found.request_of("ab" * 32), found.request_of("ef" * 32), found.request_of(None)) == (request, None, None)
    assert ledger.get(request).identity is None
    assert ledger.person_digests() == {"digest"}
    ledger.close()
    for file in tmp_path.iterdir():
        assert b"rumpelstiltskin" not in file.read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE history SET reason = 'nothing to see' WHERE sequence = 2",
        "DELETE FROM history WHERE sequence = 2",
        "UPDATE request SET state = 'COMPLETE'",
    ],
)
def test_tampering_with_the_file_is_seen(ledger, tmp_path, change):
    request = ledger.request("anna", "a", in_days(1)).id
    ledger.move(request, RequestState.UNLEARNING, "job started")
    ledger.move(request, RequestState.EVALUATING, "sent")
    ledger.verify()
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        connection.execute(change)
    with pytest.raises(LedgerError, match=r"tampered|history does not say"):
        ledger.verify()


def test_many_writers_keep_one_chain(tmp_path):
    Ledger(tmp_path / "ledger.db", KEY, create=True).close()

    def ask(number):
        with Ledger(tmp_path / "ledger.db", KEY) as own:
            own.request(f"person-{number}", str(number), in_days(1))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(24)))
    with Ledger(tmp_path / "ledger.db", KEY) as ledger:
        assert len(ledger.requests()) == 24
        ledger.verify()


def test_missing_damaged_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(LedgerError, match="There is no ledger"):
        Ledger(tmp_path / "none.db", KEY)
    (tmp_path / "damaged.db").write_bytes(b"not a database " * 100)
    with pytest.raises(LedgerError, match="cannot be used"):
        Ledger(tmp_path / "damaged.db", KEY)
    sqlite3.connect(tmp_path / "foreign.db").execute("CREATE TABLE other (x)").connection.close()
    with pytest.raises(LedgerError, match="no ledger of dlfd-fleet"):
        Ledger(tmp_path / "foreign.db", KEY)


def test_who_has_withdrawn_may_ask_again_and_is_trained_on_until_then(ledger):
    first = ledger.request("anna", "a", in_days(1))
    ledger.move(first.id, RequestState.WITHDRAWN, "withdrawn by the person")
    assert ledger.person_digests() == frozenset()
    assert not ledger.get(first.id).overdue(in_days(2))
    second = ledger.request("anna", "a", in_days(1))
    with pytest.raises(LedgerError, match=f"request {second.id} is ACCEPTED"):
        ledger.request("anna", "a", in_days(1))
    assert ledger.person_digests() == ledger.person_digests(RequestState.ACCEPTED) == {"a"}
    assert ledger.person_digests(RequestState.COMPLETE) == frozenset()
    ledger.verify()


def test_a_ledger_of_another_release_is_left_alone(ledger, tmp_path):
    ledger.request("anna", "a", in_days(1))
    with pytest.raises(LedgerError, match="holds a ledger with requests already"):
        Ledger(tmp_path / "ledger.db", KEY, create=True)
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        connection.execute("UPDATE ledger SET version = 9")
    with pytest.raises(LedgerError, match="has the format 9, and this release reads 8; use the release that wrote it"):
        Ledger(tmp_path / "ledger.db", KEY)
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        connection.execute("DROP TABLE ledger")
    with pytest.raises(LedgerError, match="has the format 1"):
        Ledger(tmp_path / "ledger.db", KEY)


def test_who_was_trained_on_is_noted_once_and_for_ever(ledger, tmp_path):
    assert ledger.trained(()) == ledger.trained({"a"}) == frozenset()
    many = {f"digest-{number}" for number in range(1200)}
    for people in ({"a"}, {"a", "b"}, set(), many):
        ledger.note_trained(people)
    assert ledger.trained({"a", "b", "c", *many}) == {"a", "b", *many}
    ledger.verify()
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        connection.execute("DELETE FROM trained WHERE person_digest = 'a'")
    with pytest.raises(LedgerError, match="was tampered with"):
        ledger.verify()


@pytest.mark.parametrize(
    "url", ["no url at all", "mysql+other://host/name", "sqlite://", "postgresql+nothing://host/x"]
)
def test_a_url_that_is_not_of_postgresql_is_refused(url):
    with pytest.raises(LedgerError, match="The ledger's URL"):
        Ledger(url, KEY)


def test_a_clock_that_is_a_day_off_breaks_no_history(ledger, monkeypatch):
    request = ledger.request("anna", "digest", datetime.now(UTC) + timedelta(days=30))

    class Yesterday(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) - timedelta(days=1)

    monkeypatch.setattr("dlfd_fleet.ledger.ledger.datetime", Yesterday)
    ledger.move(request.id, RequestState.UNLEARNING, "a job took it up", job="job-1")
    monkeypatch.undo()
    ledger.move(request.id, RequestState.EVALUATING, "the update was sent", job="job-1")
    ledger.verify()
    events = list(ledger.history())
    assert [event.state for event in events][-2:] == [RequestState.UNLEARNING, RequestState.EVALUATING]
    assert events[-2].at < events[-3].at < events[-1].at  # in the order in which they happened, whatever the clock said


FULL_DISK = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
from dlfd_fleet.cli import main
sys.argv = ["dlfd-fleet", *sys.argv[2:]]
main()
"""


def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path, synthetic_faces):
    """No file may grow: what a full disk is to a writer."""
    folder = tmp_path / "site"
    with init_site(folder, name="clinic", manifest=synthetic_faces, model_input=image_input(32)) as site:
        person = site.manifest().identities[0]
    command = [sys.executable, "-c", FULL_DISK, "0", "forget", "request", person, "--site", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "cannot be used" in done.stderr
    with Site(folder) as site:
        assert site.ledger.requests() == []
        site.ledger.verify()
