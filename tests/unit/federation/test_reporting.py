"""A report of any job that is on disk: settled, failed, or none at all."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, date, datetime, timedelta
from types import SimpleNamespace

import pytest

from dlfd_fleet.audit import Evidence, Outcome, Verdict
from dlfd_fleet.cli import app
from dlfd_fleet.exceptions import EvidenceError, JobError
from dlfd_fleet.federation.jobs import reporting
from dlfd_fleet.federation.jobs.reporting import latest_erasure, report_of, write_report
from dlfd_fleet.federation.records.costs import Cost
from dlfd_fleet.federation.records.job_record import FinishedStep
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.report import DeliveryProgress
from dlfd_fleet.report.contents import AskedRequest, Proceedings
from dlfd_fleet.settings import Settings

ASKED = AskedRequest(request="r1", site="site-a", asked_at=date(2026, 11, 3), deadline=date(2026, 12, 3))


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path)
    yield opened
    opened.close()


def settings_of(store):
    return Settings(state_folder=store.folder.parent)


def job(store, kind="erase", **changes):
    settings = Settings(state_folder=store.folder.parent, tracking={"uri": "https://secret.host"})
    noted = Proceedings(asked=(ASKED,) * changes.get("requests", 0))
    record = store.new_job(kind, settings).model_copy(update={"proceedings": noted} | changes)
    store.save(record)
    return record


def test_a_job_that_failed_says_why_and_what_its_steps_took(store, tmp_path):
    record = job(store, step="failed", requests=2, note="Only 1 of 3 sites trained")
    for number in (1, 2):
        store.steps.finish(record.job, FinishedStep(f"repair-{number}", "[]", {}, Cost(2.5, 10)))
    report = report_of(store, record)
    phase = report.phases["repair"]
    assert (phase.steps, phase.seconds, phase.sent_bytes) == (2, 5.0, 20)
    page, _ = write_report(store, record.job, None, settings_of(store))
    assert page == store.folders.made(record.job) / "report.html"
    assert "The job failed: Only 1 of 3 sites trained." in page.read_text()
    assert "no model was released" in page.read_text()


def test_a_report_holds_no_path_and_no_address_of_the_coordinator(store):
    content = report_of(store, job(store, requests=1)).to_json()
    for text in ("secret", str(store.folder.parent), "state_folder", "tracking", "certificate_key"):
        assert text.encode() not in content
    assert b'"audit.margin": 0.1' in content


def test_what_a_release_revokes_is_every_earlier_model_under_its_epoch(store):
    job(store, "train", released=True, epoch=0)
    first = job(store, released=True, epoch=1, requests=1)
    job(store, requests=1)  # released nothing
    second = job(store, released=True, epoch=2, requests=1)
    assert [one.epoch for one in report_of(store, first).revoked] == [0]
    assert [one.epoch for one in report_of(store, second).revoked] == [0, 1]


def test_the_json_of_a_settled_job_never_changes_and_the_page_learns_what_came_since(store, tmp_path):
    now = datetime.now(UTC)
    away = {"site-b": "did not answer query.settle within 3600 s"}
    record = job(store, step="settled", released=True, epoch=1, requests=1, absent=away, acknowledged={"site-a": 1})
    kept = report_of(store, record).to_json()
    (store.folders.made(record.job) / "report.json").write_bytes(kept)
    before, _ = write_report(store, record.job, tmp_path / "before.html", settings_of(store))
    assert "not acknowledged; told by the next job" in before.read_text()
    later = job(store, step="settled", started_at=now + timedelta(days=1), acknowledged={"site-b": 1})
    after, data = write_report(store, record.job, tmp_path / "after.html", settings_of(store))
    assert f"acknowledged later, in {later.job}" in after.read_text()
    assert data.read_bytes() == kept


def test_what_has_no_report_is_told_so(store, tmp_path):
    with pytest.raises(JobError, match="no erasure"):
        latest_erasure(store)
    with pytest.raises(JobError, match="is no erasure, and a report is of one"):
        write_report(store, job(store, "train").job, None, settings_of(store))
    with pytest.raises(JobError, match="nobody asked"):
        write_report(store, job(store).job, None, settings_of(store))
    record = job(store, step="settled", requests=1)
    with pytest.raises(JobError, match=r"name it with \.html"):
        write_report(store, record.job, tmp_path / "report.json", settings_of(store))
    with pytest.raises(JobError, match="Cannot write"):
        write_report(
            store, record.job, tmp_path / "nowhere" / "report.html", Settings(state_folder=store.folder.parent)
        )
    (store.folders.made(record.job) / "report.json").write_text("{}")
    with pytest.raises(EvidenceError, match=r"report\.json"):
        write_report(store, record.job, tmp_path / "page.html", settings_of(store))


def test_a_settled_job_with_verdict_fail_is_told_as_ended_by_page_and_command(store, tmp_path, capsys):
    verdict = Verdict(outcome=Outcome.FAIL, reasons=("it has collapsed",), margin=0.1, power=0.9)
    name = job(store, step="settled", requests=1, verdict=verdict).job
    file = tmp_path / "page.html"
    app(["report", name, "--output", str(file), "--set", f"state_folder={store.folder.parent}"], standalone_mode=False)
    sentence = "FAIL: it has collapsed (margin 0.10, power 0.90)."
    assert f"The job has ended with the verdict {sentence}" in file.read_text()
    assert f"{name} is settled: nothing was released. {sentence}" in capsys.readouterr().out


def by_references(e_value, outcome=Outcome.PASS):
    return Verdict(
        outcome=outcome, reasons=("r",), margin=0.1, power=0.5, evidence=Evidence.REFERENCES, e_value=e_value
    )


def test_the_evidence_of_all_erasures_adds_up_and_that_of_the_same_people_counts_once(store):
    start = datetime(2026, 1, 1, tzinfo=UTC)
    ends = [  # e-value, whether a model was released, product so far
        (8.0, True, 8.0),
        (3.0, False, 24.0),  # held: its people are in the next job
        (0.25, False, 2.0),
        (5.0, True, 2.0),
        (None, True, None),
        (10.0, True, 20.0),
    ]
    jobs = [
        job(
            store,
            kind="erase",
            requests=1,
            verdict=by_references(value) if value else None,
            released=released,
            started_at=start + timedelta(days=day),
        )
        for day, (value, released, _) in enumerate(ends)
    ]
    assert [report_of(store, each).e_product for each in jobs] == [product for *_, product in ends]


def test_a_later_release_draws_no_page_of_an_earlier_one_for_the_floor_alone(store, monkeypatch):
    """Else a job of a fleet that lives for years takes a second longer with each release."""
    settings, drawn, asked = settings_of(store), [], Counter()
    for number in range(3):
        record = job(store, step="settled", released=True, epoch=number + 1, requests=1)
        for name in ("report.html", "report.json"):
            (store.folders.made(record.job) / name).write_bytes(report_of(store, record).to_json())
    counts = {"minimum_epoch": 3, "devices": 1, "purged": 1, "retired": 0}
    stand = DeliveryProgress(as_of=datetime.now(UTC), published_at=None, excepted={}, waiting={}, **counts)
    monkeypatch.setattr(reporting, "render", lambda content, *_: drawn.append(content) or "page")
    read = Store.jobs
    monkeypatch.setattr(Store, "jobs", lambda self: asked.update(["jobs"]) or read(self))
    tracker = SimpleNamespace(log_file=lambda *_: None)

    def redraw(**changes):
        drawn.clear()
        asked.clear()
        monkeypatch.setattr(reporting, "delivery_progress", lambda *_: stand.model_copy(update=changes))
        reporting.redraw_reports(store, tracker, settings, SimpleNamespace(say=pytest.fail), after="")
        return len(drawn)

    assert redraw() == 3
    assert redraw(minimum_epoch=4) == 0
    assert asked["jobs"] == 1  # however many pages there are
    assert redraw(minimum_epoch=4, purged=0, waiting={"camera": "holds epoch 2"}) == 3
