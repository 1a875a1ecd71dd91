from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import pytest
import torch

from dlfd_fleet.exceptions import JobError
from dlfd_fleet.federation.jobs.command import reopen
from dlfd_fleet.federation.records.costs import Cost, SiteCost
from dlfd_fleet.federation.records.job_record import Champion, FinishedStep
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.federation.release.purge import purge_remembering
from dlfd_fleet.settings import Settings


def test_jobs_are_kept_and_unfinished_ones_found(tmp_path):
    store = Store(tmp_path)
    first, second = store.new_job("train", Settings(seed=3)), store.new_job("erase", Settings())
    store.save(first.model_copy(update={"step": "settled", "note": "trained"}))
    assert [record.job for record in Store(tmp_path).jobs()] == [first.job, second.job]
    assert store.load(first.job).note == "trained"
    assert store.settings_of(first.job).seed == 3
    assert [record.job for record in store.unfinished()] == [second.job]
    with pytest.raises(JobError, match="There is no job 'erase-1'"):
        store.load("erase-1")


def test_a_step_is_kept_with_its_arrays(tmp_path):
    store = Store(tmp_path)
    job = store.new_job("train", Settings()).job
    arrays = {"w": torch.arange(6.0).reshape(2, 3).t(), "n": torch.tensor(4)}
    store.steps.finish(job, FinishedStep("train-1", "[1]", arrays, Cost(2.5, 17)))
    found = Store(tmp_path).steps.find(job, "train-1")
    assert (found.result, found.cost.seconds, found.cost.sent_bytes) == ("[1]", 2.5, 17)
    assert all(torch.equal(found.arrays[name], arrays[name]) for name in arrays)
    assert store.steps.find(job, "train-2") is None
    store.steps.finish(job, FinishedStep("settle", "3", {}, Cost(0.0, 0)))
    assert store.steps.names(job) == ["train-1", "settle"]
    store.steps.forget(job)
    assert store.steps.find(job, "train-1") is None
    assert not list(store.folders.made(job).rglob("*.safetensors"))


def test_steps_of_a_kind_say_together_what_they_took_of_each_site(tmp_path):
    store = Store(tmp_path)
    job = store.new_job("train", Settings()).job
    for number, (one, other) in enumerate((((10, 1, 2.0), (5, 0, 3.0)), ((10, 1, 2.0), (0, 0, 0.5))), 1):
        sites = {"site-a": SiteCost(*one), "site-b": SiteCost(*other)}
        sent = one[0] + one[1] + other[0] + other[1]
        store.steps.finish(job, FinishedStep(f"train-{number}", "[]", {}, Cost(4.0, sent, 0.25, sites)))
    phase = Store(tmp_path).steps.phases(job)["train"]
    assert (phase.steps, phase.seconds, phase.coordinator_seconds) == (2, 8.0, 0.5)
    assert (phase.bytes_to_sites, phase.received_bytes, phase.most_bytes_of_a_site) == (25, 2, 22)
    assert (phase.site_seconds, phase.longest_site_seconds) == (7.5, 4.0)


def test_steps_of_an_earlier_release_do_not_say_what_sites_took(tmp_path):
    store = Store(tmp_path)
    job = store.new_job("train", Settings()).job
    store.steps.finish(job, FinishedStep("train-1", "[]", {}, Cost(4.0, 10)))
    store.close()
    with sqlite3.connect(store.file) as connection:
        connection.execute("DROP TABLE cost")
    phase = Store(tmp_path).steps.phases(job)["train"]
    assert (phase.sent_bytes, phase.received_bytes, phase.site_seconds) == (10, 0, 0.0)


def test_a_job_that_failed_can_be_reopened(tmp_path):
    store = Store(tmp_path)
    record = store.new_job("erase", Settings())
    store.ask_to_cancel(record.job)
    assert store.is_cancelled(record.job)
    store.save(record.model_copy(update={"step": "failed", "note": "no site"}))
    assert store.reopen(record.job) == record
    assert not store.is_cancelled(record.job)
    assert store.unfinished() == [record]


def test_what_sites_do_is_the_last_that_was_noted(tmp_path):
    store = Store(tmp_path)
    job = store.new_job("erase", Settings()).job
    store.activities.note(job, {"site-b": "train.fit", "site-a": "train.fit"})
    store.activities.note(job, {"site-b": "waiting"})
    store.activities.note(job, {})
    assert [(one.site, one.doing) for one in store.activities.of(job)] == [
        ("site-a", "train.fit"),
        ("site-b", "waiting"),
    ]


def test_the_epoch_of_the_champion_never_falls(tmp_path):
    store = Store(tmp_path)
    assert store.champions.current() is None
    store.champions.move(Champion(job="erase-2", epoch=2))
    with pytest.raises(JobError, match="epoch 1, under the fleet's 2"):
        store.champions.move(Champion(job="train-1", epoch=1))
    store.champions.move(Champion(job="erase-3", epoch=2))
    assert Store(tmp_path).champions.current() == Champion(job="erase-3", epoch=2)


def test_the_history_of_promotions_says_who_and_why_and_cannot_be_changed(tmp_path):
    store = Store(tmp_path)
    store.champions.move(Champion(job="train-1", epoch=0), "job train-1", "a training job")
    store.champions.move(Champion(job="train-1", epoch=0))  # again, by a job that was resumed
    store.champions.move(Champion(job="erase-2", epoch=1), "ada", "looked at it")
    moves = [(move.job, move.epoch, move.who, move.why) for move in Store(tmp_path).champions.history()]
    assert moves == [("train-1", 0, "job train-1", "a training job"), ("erase-2", 1, "ada", "looked at it")]
    store.decisions.note("cancel", "erase-2", "ada", "the wrong people")
    changes = ("UPDATE promotion SET who = 'eve'", "DELETE FROM promotion", "DELETE FROM decision")
    for change in changes:
        with sqlite3.connect(store.file) as connection, pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute(change)


def test_models_of_jobs_that_began_before_an_erasure_are_deleted(tmp_path):
    store = Store(tmp_path)

    def job(kind, step="settled"):
        record = store.new_job(kind, Settings()).model_copy(update={"step": step})
        store.save(record)
        for name in ("model", "steps"):
            (store.folders.made(record.job) / name).mkdir()
            (store.folders.made(record.job) / name / "x.safetensors").write_bytes(b"weights")
        (store.folders.made(record.job) / "scores.png").write_bytes(b"a figure")
        return record.job

    original, held, failed = job("train"), job("erase"), job("erase", "failed")
    store.champions.move(Champion(job=original, epoch=0))
    assert purge_remembering(store) == []
    erasure = job("erase")
    store.champions.move(Champion(job=erasure, epoch=1))
    later = job("train")
    store.champions.move(Champion(job=later, epoch=1))
    resumable = job("erase", "failed")
    running = store.load(job("erase", "judged"))
    assert purge_remembering(store) == []  # it may have begun with any of them
    store.save(running.model_copy(update={"step": "failed"}))
    assert purge_remembering(store) == [original, held, failed]
    assert purge_remembering(store) == []
    left = {file.parent.parent.name for file in store.folder.rglob("*.safetensors")}
    assert left == {erasure, later, resumable, running.job}
    assert (store.folders.made(original) / "scores.png").exists()


def test_a_clock_that_was_a_day_ahead_changes_no_order(tmp_path, monkeypatch):
    """A model that remembers is still deleted, and a failed job still goes on, once the clock is right again."""

    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + timedelta(days=1)

    store = Store(tmp_path)
    monkeypatch.setattr("dlfd_fleet.federation.records.order.datetime", Tomorrow)
    original = store.new_job("train", Settings())
    store.steps.finish(original.job, FinishedStep("train-1", "{}", {"w": torch.zeros(2)}, Cost(1.0, 0)))
    store.save(original.model_copy(update={"step": "settled", "released": True}))
    store.champions.move(Champion(job=original.job, epoch=0))
    monkeypatch.undo()

    erasure = store.new_job("erase", Settings())
    assert [record.job for record in store.jobs()] == [original.job, erasure.job]
    store.save(erasure.model_copy(update={"step": "failed"}))
    assert reopen(store, erasure.job).job == erasure.job
    store.champions.move(Champion(job=erasure.job, epoch=1))
    store.save(erasure.model_copy(update={"step": "settled", "released": True}))
    assert purge_remembering(store) == [original.job]


def test_one_coordinator_works_on_a_state_folder(tmp_path):
    store = Store(tmp_path)
    assert not store.is_locked()
    with store.lock():
        assert Store(tmp_path).is_locked()
        with pytest.raises(JobError, match="Another coordinator works on"), Store(tmp_path).lock(0.0):
            pass
    assert not store.is_locked()


def test_who_finds_a_coordinator_at_work_is_told_its_job(tmp_path):
    store = Store(tmp_path)
    with store.lock():
        job = store.new_job("train", Settings()).job
        with (
            pytest.raises(JobError, match=rf"\(its job is {job}\); wait until it has ended"),
            Store(tmp_path).lock(0.0),
        ):
            pass


def test_jobs_that_start_at_once_on_a_new_state_folder_find_it_whole(tmp_path):
    with ThreadPoolExecutor(6) as pool:
        stores = list(pool.map(lambda _: Store(tmp_path), range(6)))
    assert [store.jobs() for store in stores] == [[]] * 6
    for store in stores:
        store.close()


def test_a_damaged_state_folder_is_one_sentence(tmp_path):
    store = Store(tmp_path)
    store.close()
    store.file.write_bytes(b"no database" * 400)
    with pytest.raises(JobError, match=r"jobs\.db is damaged"):
        Store(tmp_path)


def test_a_store_of_another_release_is_refused(tmp_path):
    store = Store(tmp_path)
    store.close()
    with sqlite3.connect(store.file) as connection:
        connection.execute("UPDATE store SET version = 9")
    with pytest.raises(JobError, match="has the format 9, and this release reads 1"):
        Store(tmp_path)


def test_a_damaged_step_is_one_sentence(tmp_path):
    store = Store(tmp_path)
    job = store.new_job("train", Settings()).job
    store.steps.finish(job, FinishedStep("train-1", "[]", {"w": torch.zeros(2)}, Cost(0.0, 0)))
    next(store.folders.made(job).rglob("*.safetensors")).write_bytes(b"torn")
    with pytest.raises(JobError, match=r"Cannot read .*train-1\.safetensors"):
        store.steps.find(job, "train-1")


def test_a_state_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "state").write_text("a file")
    with pytest.raises(JobError, match="cannot be used"):
        Store(tmp_path / "state")
