"""What a whole erasure leaves in writing: with real sites, and a tracking server that does not answer."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from dlfd_fleet.exceptions import EvidenceError
from dlfd_fleet.federation.jobs import reporting
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.ledger import RequestState, Site, request_forgetting, site_folders
from dlfd_fleet.report import DeliveryProgress, ErasureReport, load_public_key, render, verify
from dlfd_fleet.report.page import without_moment
from tests.integration.fleet_in_process import a_person_asks_at_each_site, by_the_fleets_gate, run_job, trained_fleet


@pytest.fixture(scope="module")
def erased(tmp_path_factory):
    """A settled erasure, its store, and the requests as the sites' ledgers had them."""
    settings = by_the_fleets_gate(trained_fleet(tmp_path_factory.mktemp("report")))
    asked = a_person_asks_at_each_site(settings)
    run_job(settings, "erase")
    store = Store(settings.state_folder)
    record, requests = store.jobs()[-1], {}
    for folder, request in zip(site_folders(settings.state_folder), asked, strict=True):
        with Site(folder) as site:
            days = (request.requested_at.date(), request.deadline.date())
            requests[site.job_request_id(request.id, record.job)] = days
    yield store, record, requests, settings
    store.close()


def test_the_report_holds_what_the_ledgers_and_the_job_know(erased):
    store, record, requests, _ = erased
    report = ErasureReport.from_json((store.folders.made(record.job) / "report.json").read_bytes())
    assert {one.request: (one.asked_at, one.deadline) for one in report.asked} == requests
    assert set(report.served) == set(requests)
    assert all(report.deadline_met(one) for one in report.asked)
    assert sum(site.forget_images for site in report.sites) == report.purged_images == 6
    assert report.parent == json.loads((store.folders.model(record.job) / "card.json").read_text())["parent"]
    assert (report.began_with, report.frozen_layers) == ("random weights", {})
    assert report.readings[0].round == 0
    assert {"asked", "distancing", "repair", "gate", "export", "audit-file", "settle"} <= report.phases.keys()
    assert sum(phase.seconds for phase in report.phases.values()) == pytest.approx(report.seconds)
    for name, model in report.models.items():
        assert sum(report.losses[name]["unseen"]) == model.scores.unseen_images
    assert [one.epoch for one in report.revoked] == [0]
    assert {"dlfd-fleet", "torch", "flwr", "onnxruntime", "mlflow"} <= report.software.keys()


def test_the_page_and_the_ledgers_agree_that_a_fleet_without_devices_is_done(erased):
    store, record, _, settings = erased
    page = (store.folders.made(record.job) / "report.html").read_text()
    assert "This coordinator delivers to no devices. A request is complete when its site has purged" in page
    assert "may still run" not in page
    for folder in site_folders(settings.state_folder):
        with Site(folder) as site:
            assert {request.state for request in site.ledger.requests()} == {RequestState.COMPLETE}
    assert '"state": "settled"' in (store.folders.made(record.job) / "report.json").read_text()


def test_the_certificate_is_of_the_released_file_and_of_this_report(erased):
    store, record, _, _ = erased
    folder, key = store.folders.made(record.job), load_public_key(store.folder / "keys" / "certificate.pub.pem")
    models = [store.folders.model(record.job) / "model.onnx"]
    _, found = verify(folder / "certificate.json", key, models, folder / "report.json")
    assert found == ["model.onnx"]


def test_mlflow_is_told_of_all_three_and_never_of_the_key(erased):
    store, record, _, _ = erased
    waiting = (store.folder / "outbox.db").read_bytes()
    secret = (store.folder / "keys" / "certificate.pem").read_text().splitlines()[1]
    for name in ("report.html", "report.json", "certificate.json"):
        assert name.encode() in waiting
    assert secret.encode() not in waiting
    assert all(secret.encode() not in file.read_bytes() for file in store.folders.made(record.job).glob("*.*"))


@pytest.mark.parametrize("has_devices", [False, True])
def test_a_page_that_says_all_that_is_known_is_not_drawn_by_every_later_job(erased, monkeypatch, silent, has_devices):
    store, record, _, settings = erased
    if has_devices:  # asked for at another moment each time, and otherwise as they were

        def progress(*_):
            return DeliveryProgress(
                as_of=datetime.now(UTC),
                published_at=None,
                minimum_epoch=1,
                devices=1,
                purged=0,
                waiting={"cam": "asleep"},
            )

        monkeypatch.setattr(reporting, "delivery_progress", progress)
    page, drawn = store.folders.made(record.job) / "report.html", []
    monkeypatch.setattr(reporting, "render", lambda *known: (drawn.append(known), render(*known))[1])
    tracker = SimpleNamespace(log_file=lambda *_: None)

    def next_job():
        drawn.clear()
        reporting.redraw_reports(store, tracker, settings, silent, after="a later job")
        return len(drawn)

    next_job()
    before = page.read_text(encoding="utf-8")
    assert next_job() == 0
    page.write_text("not what was drawn", encoding="utf-8")
    assert next_job() == 1
    assert without_moment(page.read_text(encoding="utf-8")) == without_moment(before)
    assert next_job() == 0


def test_a_key_that_cannot_sign_ends_an_erasure_before_it_begins(erased, tmp_path):
    store, _, _, settings = erased
    key = tmp_path / "key.pem"
    key.write_text("no key")
    with Site(site_folders(settings.state_folder)[0]) as site:
        person = next(row.identity for row in site.manifest().rows if row.split == "train")
        request_forgetting(site, person, deadline_days=30)
    release = settings.release.model_copy(update={"certificate_key": key})
    with pytest.raises(EvidenceError, match=r"key\.pem cannot be read as an unencrypted private key"):
        run_job(settings.model_copy(update={"release": release}), "erase")
    assert store.jobs()[-1].step == "failed"
    assert store.champions.current().epoch == 1
