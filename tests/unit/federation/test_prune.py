"""What a coordinator deletes after a job, so that its state folder does not grow; and what it keeps."""

from __future__ import annotations

from unittest import mock

import pytest

from dlfd_fleet.audit import Outcome, Verdict
from dlfd_fleet.exceptions import JobError
from dlfd_fleet.federation.records.job_folders import ONNX_FILE
from dlfd_fleet.federation.records.job_record import Champion
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.federation.release.prune import prune, prune_state
from dlfd_fleet.settings import Settings


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def job(store):
    def made(kind, step="settled", *, released=True, champion=False, **changes):
        record = store.new_job(kind, Settings()).model_copy(update={"step": step, "released": released, **changes})
        store.save(record)
        for name, file in (("model", ONNX_FILE), ("model", "model.safetensors"), ("steps", "x.safetensors")):
            (store.folders.made(record.job) / name).mkdir(exist_ok=True)
            (store.folders.made(record.job) / name / file).write_bytes(b"weights")
        for file in ("report.json", "report.html", "certificate.json"):
            (store.folders.made(record.job) / file).write_bytes(b"evidence")
        if champion:
            store.champions.move(Champion(job=record.job, epoch=record.epoch))
        return record.job

    return made


def with_models(store):
    return {file.parent.parent.name for file in store.folder.rglob("*.safetensors")}


def test_the_models_of_the_latest_jobs_are_kept_and_all_records_reports_and_certificates(store, job):
    old, older_failed, *kept = [job("train"), job("erase", "failed", released=False), job("train"), job("train")]
    champion = job("train", champion=True)
    pruned = prune(store, keep=2)
    assert pruned.jobs == (old, older_failed)
    assert pruned.bytes == 2 * 3 * len(b"weights")
    assert with_models(store) == {*kept, champion}
    assert len(store.jobs()) == 5
    assert len(list(store.folder.rglob("certificate.json"))) == len(list(store.folder.rglob("report.html"))) == 5
    assert prune(store, keep=2).jobs == ()


def test_a_version_that_waits_for_a_decision_is_kept_and_one_that_was_passed_over_is_not(store, job):
    passed_over = job("erase", released=False)
    champion = job("train", champion=True)
    held = job("erase", released=False, epoch=1)
    failed = job(
        "erase", released=False, verdict=Verdict(outcome=Outcome.FAIL, reasons=("it remembers",), margin=0.1, power=1.0)
    )
    last = job("train")
    assert prune(store, keep=1).jobs == (passed_over, failed)
    assert with_models(store) == {champion, held, last}


def test_pictures_are_kept_of_the_latest_jobs_and_those_without_any_do_not_count(store, job):
    drawn = [job("erase", champion=True) for _ in range(3)]
    for name in drawn:
        (store.folders.made(name) / "scores.png").write_bytes(b"drawn")
    job("train")
    assert [file.parent.name for file in prune(store, keep=2).files] == drawn[:1]
    assert {file.parent.name for file in store.folder.rglob("*.png")} == set(drawn[1:])


def test_while_a_job_is_unfinished_nothing_is_deleted(store, job, tmp_path):
    for _ in range(3):
        job("train")
    running = job("erase", "judged", released=False)
    assert prune(store, keep=1).jobs == ()
    with pytest.raises(JobError, match=f"{running} is not finished, and may need any model"):
        prune_state(Settings(state_folder=tmp_path))


def test_a_dry_run_says_the_same_and_deletes_nothing(store, job, tmp_path):
    old, _ = job("train"), job("train")
    (store.folders.made(old) / ".report.html.new").write_bytes(b"half of a page")
    settings = Settings(state_folder=tmp_path, storage={"models": 1})
    (said,) = prune_state(settings, dry_run=True)
    assert said == f"Would delete the models of 1 job ({old}) and 1 picture or unfinished file, 0.0 MiB."
    assert old in with_models(store)
    (said,) = prune_state(settings)
    assert said.startswith(f"Deleted the models of 1 job ({old}) and 1 picture or unfinished file, 0.0 MiB.")
    assert not list(store.folder.rglob(".*.new"))
    assert prune_state(settings) == ["There is nothing to delete."]


def test_a_process_that_is_killed_leaves_no_half_of_a_model_and_the_next_one_ends_it(store, job):
    old, _ = job("train"), job("train")

    def killed(folder, *_):
        (folder / ONNX_FILE).unlink()
        raise KeyboardInterrupt

    with mock.patch("shutil.rmtree", killed), pytest.raises(KeyboardInterrupt):
        prune(store, keep=1)
    assert not store.folders.model(old).exists()
    assert list(store.folder.rglob("model.safetensors"))
    assert prune(store, keep=1).jobs == (old,)
    assert not store.folders.being_deleted(old)
    assert not store.folders.steps(old).exists()
