from __future__ import annotations

import pytest

from dlfd_fleet.exceptions import JobError
from dlfd_fleet.federation.store import Champion, Store


def test_jobs_are_kept_and_unfinished_ones_found(tmp_path):
    store = Store(tmp_path)
    first, second = store.new_job("train"), store.new_job("erase")
    store.save(first.model_copy(update={"step": "settled", "note": "trained"}))
    assert [record.job for record in Store(tmp_path).jobs()] == [first.job, second.job]
    assert store.load(first.job).note == "trained"
    assert [record.job for record in store.unfinished()] == [second.job]


def test_the_epoch_of_the_champion_never_falls(tmp_path):
    store = Store(tmp_path)
    assert store.champion() is None
    store.set_champion(Champion(job="erase-2", epoch=2))
    with pytest.raises(JobError, match="epoch 1, under the fleet's 2"):
        store.set_champion(Champion(job="train-1", epoch=1))
    store.set_champion(Champion(job="erase-3", epoch=2))
    assert Store(tmp_path).champion() == Champion(job="erase-3", epoch=2)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b'{"job": 3}'])
def test_a_damaged_state_folder_is_one_sentence(tmp_path, content):
    store = Store(tmp_path)
    job = store.new_job("train").job
    (store.job_folder(job) / "job.json").write_bytes(content)
    with pytest.raises(JobError, match=r"job\.json"):
        store.jobs()


def test_a_state_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "state").write_text("a file")
    with pytest.raises(JobError, match="cannot be used"):
        Store(tmp_path / "state")
