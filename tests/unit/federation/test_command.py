"""What a person at the coordinator sees of its jobs, and may do with them."""

from __future__ import annotations

import io
import threading
from datetime import UTC, date, datetime, timedelta

import pytest
from rich.console import Console

from dlfd_fleet.exceptions import JobError
from dlfd_fleet.federation.jobs import command, run
from dlfd_fleet.federation.records.costs import Cost
from dlfd_fleet.federation.records.due import SiteWaiting, Waiting
from dlfd_fleet.federation.records.job_record import FinishedStep
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.progress import ConsoleProgress
from dlfd_fleet.settings import DueSettings, Settings


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path)
    yield opened
    opened.close()


def shown(renderable):
    out = io.StringIO()
    Console(file=out, width=200).print(renderable)
    return out.getvalue()


def change(store, record, **changes):
    changed = record.model_copy(update=changes)
    store.save(changed)
    return changed


def test_a_state_folder_without_jobs_is_told_so(tmp_path):
    with pytest.raises(JobError, match="holds no jobs"), command.opened(tmp_path):
        pass
    assert not (tmp_path / "coordinator").exists()


def test_status_says_how_far_a_job_is_and_what_each_site_does(store):
    record = change(store, store.new_job("erase", Settings()), requests=3, absent={"site-2": "did not answer"})
    store.steps.finish(record.job, FinishedStep("asked", "[]", {}, Cost(1.0, 0)))
    store.activities.note(record.job, {"site-1": "train.unlearn"})
    text = shown(command.job_status(store, record.job))
    assert "started, interrupted" in text
    assert "Finished steps: 1, the last one asked." in text
    assert "site-2 did not answer" in text
    assert "site-1" not in text  # whatever it did then, nobody waits for it now
    with store.lock():
        text = shown(command.job_status(store, record.job))
        assert "started, running" in text
        assert "unlearning" in text
        assert "started, running" in shown(command.job_table(store))


def test_the_list_counts_the_minutes_of_a_job_whose_record_is_still_to_be_written(store):
    record = store.new_job("train", Settings())
    for number in (1, 2):
        store.steps.finish(record.job, FinishedStep(f"train-{number}", "[]", {}, Cost(90.0, 0)))
    assert store.load(record.job).seconds == 0.0
    assert "3.0" in shown(command.job_table(store))


def test_watching_in_a_log_prints_each_change_once_and_ends_with_the_job(store):
    record, out = store.new_job("train", Settings()), io.StringIO()
    store.activities.note(record.job, {"site-1": "train.fit"})
    with store.lock():
        watching = threading.Thread(target=command.watch, args=(store, record.job, Console(file=out, width=200)))
        watching.start()
        while "site-1: training" not in out.getvalue():
            assert watching.is_alive()
        change(store, record, step="settled", note="trained")
        watching.join(30)
    assert not watching.is_alive()
    assert out.getvalue().count("site-1: training") == 1
    assert "settled" in out.getvalue()


def test_cancelling_is_asked_for_once_and_only_of_a_job_that_goes_on(store):
    record = store.new_job("erase", Settings())
    assert "not running" in command.cancel(store, record.job)
    assert store.is_cancelled(record.job)
    change(store, record, step="released", released=True)
    assert "has released its model, and ends when the next job starts" in command.cancel(store, record.job)
    change(store, record, step="settled")
    with pytest.raises(JobError, match="settled already"):
        command.cancel(store, record.job)


def test_a_failed_job_is_reopened_and_a_settled_one_is_not(store):
    with pytest.raises(JobError, match="Every job is settled or cancelled"):
        command.reopen(store, None)
    record = change(store, store.new_job("erase", Settings()), step="failed", note="no site")
    assert command.reopen(store, None).step == "started"
    later = store.new_job("erase", Settings())
    change(store, later, step="settled", released=True, started_at=record.started_at + timedelta(seconds=1))
    with pytest.raises(JobError, match="has released another model since"):
        command.reopen(store, record.job)
    with pytest.raises(JobError, match="is settled"):
        command.reopen(store, later.job)


@pytest.mark.parametrize("step", ["started", "cancelled"])
def test_a_cancelled_job_is_over_and_nobody_takes_it_up_again(store, step):
    failed = change(store, store.new_job("train", Settings()), step="failed", note="no site")
    record = store.new_job("erase", Settings())
    command.cancel(store, record.job)
    change(store, record, step=step)  # the next job ends it first
    with pytest.raises(JobError, match=rf"{record.job} was cancelled.*start another one: `dlfd-fleet job start erase`"):
        command.reopen(store, record.job)
    assert store.is_cancelled(record.job)
    assert "job resume" not in shown(command.job_status(store, record.job))
    assert "interrupted" not in shown(command.job_table(store))
    assert command.reopen(store, None).job == failed.job


def test_a_job_says_who_started_it_resumed_it_and_cancelled_it(store):
    job = store.new_job("erase", Settings()).job
    assert "by" not in shown(command.job_status(store, job)).split()
    store.decisions.note("start", job, "ode", "the week is over")
    assert command.reopen(store, None, "nia", "the power is back").job == job
    command.cancel(store, job, "mia", "the wrong people.")
    text = shown(command.job_status(store, job))
    assert text.index("Started by ode, 20") < text.index("Resumed by nia, 20") < text.index("Cancelled by mia, 20")
    for why in ("the week is over", "the power is back", "the wrong people"):
        assert f": {why}.\n" in text


@pytest.mark.parametrize(("reason", "said"), [("x" * 2001, "2001 characters"), ("\udcff", "UTF-8"), ("a\0b", "UTF-8")])
def test_a_reason_that_cannot_be_kept_is_refused_before_anything_happens(store, reason, said):
    job = store.new_job("erase", Settings()).job
    with pytest.raises(JobError, match=said):
        command.cancel(store, job, "mia", reason)
    with pytest.raises(JobError, match=said):
        command.reopen(store, job, "mia", reason)
    assert not store.is_cancelled(job)
    assert not store.decisions.all()


@pytest.mark.parametrize("kind", ["train", "erase", "plan", "references"])
def test_a_job_that_a_run_begins_keeps_who_started_it(store, monkeypatch, tmp_path, kind):
    monkeypatch.setattr(run, "carry_out", ended)
    settings = Settings(state_folder=tmp_path, tracking={"uri": "http://127.0.0.1:9"}, references={"models": 2})
    record = run.run_jobs(None, kind, settings, SILENT, by="ode")
    (decision,) = store.decisions.of(record.job)
    assert (decision.act, decision.who) == ("plan" if kind == "plan" else "start", "ode")
    assert run.run_jobs(None, kind, settings, SILENT).job != record.job
    assert len(store.decisions.all()) == 1  # nobody said who started the other one


def test_a_run_that_goes_on_with_a_job_keeps_who_resumed_it(store, monkeypatch, tmp_path):
    monkeypatch.setattr(run, "carry_out", ended)
    settings = Settings(state_folder=tmp_path, tracking={"uri": "http://127.0.0.1:9"})
    job = store.new_job("erase", Settings()).job
    assert run.run_jobs(None, "erase", settings, SILENT, by="nia").job == job
    assert [(each.act, each.about, each.who) for each in store.decisions.all()] == [("resume", job, "nia")]


SILENT = ConsoleProgress(Console(file=io.StringIO()))


def ended(grid, store, tracker, progress, record, given=None):
    """Let a job be over at once."""
    store.save(record.at("settled"))
    return record.at("settled")


def test_what_cancelling_does_is_said_before_and_who_did_it_is_kept(store):
    record = store.new_job("erase", Settings())
    said = command.what_cancelling_does(store, record.job)
    assert not store.is_cancelled(record.job)
    assert not store.decisions.all()
    assert command.cancel(store, record.job, "ode", "the wrong people") == said
    (decision,) = store.decisions.all()
    assert (decision.act, decision.about, decision.who, decision.why) == (
        "cancel",
        record.job,
        "ode",
        "the wrong people",
    )


ASKED_AT = datetime(2026, 12, 10, 2, 30, tzinfo=UTC)
WAITING = Waiting(
    asked_at=ASKED_AT,
    sites={
        "site-1": SiteWaiting(requests=2, first_due=date(2400, 1, 3)),
        "site-2": SiteWaiting(requests=0, first_due=None),
    },
    away={"site-3": "does not answer"},
)


def test_what_the_sites_said_last_is_said_with_its_time_and_what_the_rule_says_now(store):
    assert "asks them" in command.last_answer(store, DueSettings())
    WAITING.write(store.folder)
    said = command.last_answer(store, DueSettings())
    assert said.startswith(
        f"On {ASKED_AT.astimezone():%Y-%m-%d %H:%M} the sites last said what waits. Nothing is due: "
    )
    assert "2 requests wait, the first is due on 2400-01-03" in said
    assert said.endswith("What waits at site-3 is not known: it does not answer.")
    assert "An erasure is due: 2 requests wait" in command.last_answer(store, DueSettings(batch=2))


@pytest.mark.parametrize(("kind", "asks"), [("erase", True), ("plan", True), ("train", False)])
def test_an_answer_is_old_once_a_job_has_asked_again(store, kind, asks):
    WAITING.write(store.folder)
    change(store, store.new_job(kind, Settings()), started_at=ASKED_AT - timedelta(hours=1))
    assert "has asked" not in command.last_answer(store, DueSettings())
    later = change(store, store.new_job(kind, Settings()), started_at=ASKED_AT + timedelta(hours=1))
    said = command.last_answer(store, DueSettings())
    assert (f"{later.job} has asked them since: `dlfd-fleet job status {later.job}` says" in said) is asks
    assert ("2 requests waited then, the first due on 2400-01-03" in said) is asks


def test_an_answer_is_old_once_a_job_that_failed_before_it_has_served_the_requests(store):
    WAITING.write(store.folder)
    record = change(store, store.new_job("erase", Settings()), started_at=ASKED_AT - timedelta(hours=1))
    change(store, record.noted(settled_at=ASKED_AT + timedelta(hours=1)), step="settled")
    assert f"{record.job} has asked them since" in command.last_answer(store, DueSettings())
