"""Which of the coordinator's models may go to devices."""

from __future__ import annotations

import pytest

from dlfd_fleet.audit import Outcome, Verdict
from dlfd_fleet.exceptions import JobError
from dlfd_fleet.federation.records.job_record import Champion
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.federation.release.publication import as_formats, released_model
from dlfd_fleet.report.contents import FileResult, Proceedings
from dlfd_fleet.settings import Settings
from tests.erasure_report import scores
from tests.unit.delivery.conftest import small_model


def verdict(outcome):
    return Verdict(outcome=outcome, reasons=("as measured",), margin=0.1, power=0.9)


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path)
    yield store
    store.close()


@pytest.fixture
def settings(tmp_path):
    return Settings(state_folder=tmp_path)


def job(store, epoch, *, released=True, formats=("fp32",), champion=True, **fields):
    record = store.new_job("erase" if epoch else "train", Settings())
    record = record.model_copy(
        update={"step": "settled", "released": released, "epoch": epoch, "formats": formats, **fields}
    )
    store.save(record)
    for form in formats:
        name = {"fp32": "model.onnx", "ort": "model.ort"}.get(form, f"model.{form}.onnx")
        small_model(store.folders.model(record.job) / name, version=f"{epoch}-{record.job[-4:]}", epoch=epoch)
    if champion and released:
        store.champions.move(Champion(job=record.job, epoch=epoch))
    return record.job


def test_a_released_model_is_found_by_its_job_its_version_and_as_the_champion(store, settings):
    job(store, 0)
    name = job(store, 1, formats=("fp32", "int8"), verdict=verdict(Outcome.PASS))
    for word in (name, f"1-{name[-4:]}", "champion"):
        model = released_model(store, settings, word)
        assert (model.version, model.epoch) == (f"1-{name[-4:]}", 1)
        assert [file.name for file in model.files.values()] == ["model.onnx", "model.int8.onnx"]
        assert all(file.parent == store.folders.model(name) for file in model.files.values())
    assert list(released_model(store, settings, name, ["int8"]).files) == ["int8"]


@pytest.mark.parametrize("version", ["no-such-job", "3-abc"])
def test_a_version_that_is_none(store, settings, version):
    with pytest.raises(JobError, match="There is no version"):
        released_model(store, settings, version)


def test_before_any_training_there_is_no_champion_to_publish(store, settings):
    with pytest.raises(JobError, match="There is no champion yet; run a training job first"):
        released_model(store, settings, "champion")


def test_a_model_that_was_not_released(store, settings):
    name = job(store, 1, released=False, note="not released: the alias stays", verdict=verdict(Outcome.FAIL))
    with pytest.raises(JobError, match="not released: the alias stays"):
        released_model(store, settings, name)


def test_a_revoked_model(store, settings):
    old = job(store, 1)
    job(store, 2)
    with pytest.raises(JobError, match="it is revoked: it is of epoch 1"):
        released_model(store, settings, old)


def test_a_verdict_that_the_settings_do_not_release_any_more(store, settings, tmp_path):
    name = job(store, 1, verdict=verdict(Outcome.INCONCLUSIVE), champion=False)
    assert released_model(store, settings, name).epoch == 1
    strict = Settings(state_folder=tmp_path, release={"on_inconclusive": "hold"})
    with pytest.raises(JobError, match="its verdict is INCONCLUSIVE"):
        released_model(store, strict, name)


def test_a_model_that_was_held_and_that_a_person_has_promoted(store, settings):
    name = job(store, 1, released=False, verdict=verdict(Outcome.INCONCLUSIVE))
    store.champions.move(Champion(job=name, epoch=1), "ada", "looked at the bounds")
    assert released_model(store, settings, name).epoch == 1


def test_a_file_that_leaks_again(store, settings):
    verdicts = {"int8": verdict(Outcome.FAIL)}
    name = job(store, 1, formats=("fp32", "int8"), verdict=verdict(Outcome.PASS), file_verdicts=verdicts)
    with pytest.raises(JobError, match="the verdict of its int8 file is FAIL"):
        released_model(store, settings, name)
    assert list(released_model(store, settings, name, ["fp32"]).files) == ["fp32"]


def test_a_file_that_was_not_made(store, settings):
    name = job(store, 1)
    with pytest.raises(JobError, match="it has no ort file; it has fp32"):
        released_model(store, settings, name, ["ort"])


def test_formats_of_a_command_line():
    assert as_formats(None) is None
    assert as_formats("fp32, int8") == ("fp32", "int8")
    with pytest.raises(JobError, match="There is no format 'bf16'"):
        as_formats("fp32,bf16")


def test_the_files_that_were_attacked_are_known_by_their_digests(store, settings):
    result = FileResult(
        name="model.onnx",
        sha256="c" * 64,
        size_bytes=10,
        max_abs_difference=0.0,
        compared_images=1,
        agreement=1.0,
        scores=scores(0.5),
        verdict=None,
    )
    name = job(store, 1, proceedings=Proceedings(files={"fp32": result}))
    assert released_model(store, settings, name).digests == {"fp32": "c" * 64}
