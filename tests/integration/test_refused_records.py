"""What MLflow did not take: an answer that passes loses nothing, and what was refused is kept, shown and tried again.

On the SQLite store of the state folder, with real files.
"""

from __future__ import annotations

import os
import shutil
import time
from contextlib import closing

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from dlfd_fleet.cli import main
from dlfd_fleet.cli.options import console
from dlfd_fleet.configuration import flatten
from dlfd_fleet.exceptions import TrackingError
from dlfd_fleet.federation.records.job_record import Champion
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.federation.release.promotion import promote
from dlfd_fleet.settings import Settings
from dlfd_fleet.tracking import open_registry, open_tracker
from dlfd_fleet.tracking.local_store import prepare_store
from dlfd_fleet.tracking.outbox import Outbox
from tests.mlflow_client import client_of

PATIENCE = 120.0
EXAMPLE = np.zeros((2, 8, 8, 3), np.uint8)


@pytest.fixture(scope="module")
def store_file(tmp_path_factory):
    """MLflow's store, which takes its time to make."""
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    prepare_store(f"sqlite:///{file}")
    return file


@pytest.fixture
def settings(tmp_path, store_file):
    made = Settings(state_folder=tmp_path / "state")
    made.state_folder.mkdir()
    shutil.copy(store_file, made.state_folder)
    return made


def opened_tracker(settings):
    return open_tracker(settings.tracking, settings.state_folder)


def client(settings):
    return client_of(f"sqlite:///{settings.state_folder / 'mlflow.db'}")


def write_model(file, weight):
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 8, 8, 3])
    answer = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 8, 8, 3])
    nodes = [helper.make_node("Cast", ["images"], ["x"], to=1), helper.make_node("Mul", ["x", "w"], ["probabilities"])]
    constant = helper.make_tensor("w", TensorProto.FLOAT, [1], [weight])
    graph = helper.make_graph(nodes, "g", [images], [answer], [constant])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), file)


def release(tracker, file, job, epoch, kind="unlearned"):
    tags = {"dlfd.job": job, "dlfd.epoch": str(epoch), "dlfd.kind": kind, "dlfd.verdict": "PASS"}
    tracker.log_model(job, file, input_example=EXAMPLE, outputs=2, tags=tags, alias="champion")
    if kind != "original":
        tracker.revoke_older_versions(job, epoch)


def wait_for(tracker, condition):
    """Until the sender has seen a problem, or has none any more: its next try is its own to choose."""
    deadline = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < deadline:
        tracker.flush(PATIENCE)
    assert condition(), tracker.problem


def versions(settings):
    with open_registry(settings.tracking, settings.state_folder) as registry:
        return {version.job: version for version in registry.versions()}


def test_an_experiment_that_was_deleted_and_restored_has_everything_in_order(settings):
    with opened_tracker(settings) as tracker:
        tracker.start_job("job-1", kind="train", parameters={"seed": 0}, tags={})
        tracker.log_metrics("job-1", {"mia_auc": 0.6}, step=1)
        assert tracker.flush(PATIENCE) == 0
        mlflow = client(settings)
        experiment = mlflow.get_experiment_by_name("dlfd-fleet").experiment_id
        mlflow.delete_experiment(experiment)
        tracker.log_metrics("job-1", {"mia_auc": 0.7}, step=2)
        tracker.set_tags("job-1", {"dlfd.verdict": "PASS"})
        tracker.start_job("job-2", kind="erase", parameters={"seed": 1}, tags={})
        wait_for(tracker, lambda: tracker.problem)
        assert (tracker.waiting, tracker.refused) == (3, 0)
        assert (
            f"'dlfd-fleet' is deleted in MLflow: restore it (`mlflow experiments restore --experiment-id {experiment}`"
            in (tracker.problem)
        )
        mlflow.restore_experiment(experiment)
        wait_for(tracker, lambda: not tracker.waiting)
        assert (tracker.refused, tracker.problem) == (0, "")
    runs = {run.info.run_name: run for run in mlflow.search_runs([experiment])}
    assert set(runs) == {"job-1", "job-2"}
    history = mlflow.get_metric_history(runs["job-1"].info.run_id, "mia_auc")
    assert [metric.value for metric in history] == [0.6, 0.7]
    assert runs["job-1"].data.tags["dlfd.verdict"] == "PASS"


def test_a_run_that_is_gone_is_made_anew(settings):
    with opened_tracker(settings) as tracker:
        tracker.start_job("job-1", kind="train", parameters={"seed": 0}, tags={})
        assert tracker.flush(PATIENCE) == 0
        mlflow = client(settings)
        (run,) = mlflow.search_runs(["1"])
        mlflow.delete_run(run.info.run_id)
        tracker.log_metrics("job-1", {"mia_auc": 0.7}, step=2)
        tracker.finish_job("job-1", "FINISHED")
        assert tracker.flush(PATIENCE) == 0
        assert tracker.refused == 0
    (again,) = mlflow.search_runs(["1"])
    assert again.info.run_id != run.info.run_id
    assert (again.info.status, again.data.metrics) == ("FINISHED", {"mia_auc": 0.7})


def test_a_version_that_was_refused_is_registered_later_and_only_then_older_ones_are_revoked(settings, tmp_path):
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    write_model(first, 1.0)
    with opened_tracker(settings) as tracker:
        release(tracker, first, "train-1", 0, "original")
        release(tracker, second, "erase-1", 1)  # its file is not there: a disk that is away, a slip
        tracker.log_metrics("erase-1", {"mia_auc": 0.5}, step=1)
        assert tracker.flush(PATIENCE) == 0
        assert tracker.refused == 2
        assert tracker.owes_model("erase-1")
        assert tracker.champion().job == "train-1"  # not revoked: no other version could run
    write_model(second, 2.0)
    with opened_tracker(settings) as tracker:
        tracker.try_again("erase-1")
        assert tracker.flush(PATIENCE) == 0
        assert (tracker.refused, tracker.owed("erase-1")) == (0, [])
        assert tracker.champion().job == "erase-1"
    assert versions(settings)["train-1"].revoked == "under epoch 1 of job erase-1"


def test_a_version_that_comes_late_never_takes_the_alias_back(settings, tmp_path):
    files = {job: tmp_path / f"{job}.onnx" for job in ("train-1", "train-2", "erase-1", "erase-2")}
    for job in ("train-2", "erase-2"):
        write_model(files[job], 2.0)
    with opened_tracker(settings) as tracker:
        release(tracker, files["train-1"], "train-1", 0, "original")
        release(tracker, files["train-2"], "train-2", 0, "original")
        assert tracker.flush(PATIENCE) == 0
        assert tracker.refused == 1
        write_model(files["train-1"], 1.0)
        tracker.try_again("train-2")
        assert tracker.flush(PATIENCE) == 0
        assert {job: version.aliases for job, version in versions(settings).items()} == {
            "train-1": (),
            "train-2": ("champion",),
        }
        assert "MLFLOW_TRACKING_URI" not in os.environ  # it would be a setting of the next who reads them here
        release(tracker, files["erase-1"], "erase-1", 1)
        release(tracker, files["erase-2"], "erase-2", 2)
        assert tracker.flush(PATIENCE) == 0
        write_model(files["erase-1"], 3.0)
        tracker.try_again("erase-2")
        assert tracker.flush(PATIENCE) == 0
        assert tracker.refused == 0
        assert tracker.champion().job == "erase-2"
    late = versions(settings)["erase-1"]
    assert (late.revoked, late.aliases) == ("under epoch 2 of job erase-2", ())


def run_command(monkeypatch, capsys, settings, *arguments):
    """What the command says, and how it ends."""
    state = f"state_folder={settings.state_folder}"
    monkeypatch.setattr("sys.argv", ["dlfd-fleet", *arguments, "--set", state])
    monkeypatch.setattr(console, "_width", 200)  # undone, it follows COLUMNS again
    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code or 0
    said = capsys.readouterr()
    return code, " ".join((said.out + said.err).split())


def test_the_command_shows_sends_and_drops_what_was_refused(settings, tmp_path, monkeypatch, capsys):
    def command(*arguments):
        return run_command(monkeypatch, capsys, settings, *arguments)

    assert command("outbox", "list") == (0, "Nothing waits for MLflow.")
    for arguments in (("send",), ("drop", "1")):
        code, said = command("outbox", *arguments)
        assert (code, "Nothing waits for MLflow in" in said) == (2, True)
    with closing(Store(settings.state_folder)) as store:
        store.champions.move(Champion(job="erase-1", epoch=1))
    file = tmp_path / "second.onnx"
    with opened_tracker(settings) as tracker:
        release(tracker, file, "erase-1", 1)
        tracker.log_metrics("job [/x]", {"a name with a \n line break": 1.0}, step=1)
        assert tracker.flush(PATIENCE) == 0
    code, said = command("outbox", "list")
    assert code == 0
    for words in ("refused: The model file", "is gone", "waits for the model of its job", "job [/x]", "metrics"):
        assert words in said
    code, said = command("outbox", "send")
    assert (code, "refused 3 of 3 records" in said) == (2, True), said
    with pytest.raises(TrackingError, match="refused what it must know first, the model of erase-1: The model file"):
        promote(settings, "1", "ada", "because")
    assert command("outbox", "drop", "99")[0] == 2
    assert command("outbox", "drop", "3") == (0, "Dropped metrics of job [/x].")
    write_model(file, 2.0)
    code, said = command("outbox", "send")
    assert (code, "has taken 2 records; nothing waits." in said) == (0, True)
    assert command("outbox", "list") == (0, "Nothing waits for MLflow.")
    assert versions(settings)["erase-1"].aliases == ("champion",)


def test_an_address_that_is_wrong_refuses_nothing(settings):
    for uri in ("htp://mlflow.example", "http://[::1", "postgresql+none://host/fleet"):
        tracking = settings.tracking.model_copy(update={"uri": uri})
        with open_tracker(tracking, settings.state_folder) as tracker:
            tracker.set_tags("job-1", {"a": "b"})
            wait_for(tracker, lambda tracker=tracker: tracker.problem)
            assert tracker.refused == 0
    with closing(Outbox(settings.state_folder / "coordinator" / "outbox.db")) as outbox:
        assert outbox.waiting() == 3


def test_no_record_of_a_job_holds_a_password_that_a_variable_has(settings, monkeypatch, capsys):
    secret = "geheim-5e9"
    for name in ("PGPASSWORD", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.setenv(name, secret)
    delivery = settings.delivery.model_copy(update={"database": "postgresql+psycopg://ada@127.0.0.1:1/fleet"})
    settings = settings.model_copy(update={"delivery": delivery})
    with closing(Store(settings.state_folder)) as store, opened_tracker(settings) as tracker:
        job = store.new_job("erase", settings).job
        parameters = flatten(settings.model_dump(mode="json"))
        tracker.start_job(job, kind="erase", parameters=parameters, tags={})
        assert tracker.flush(PATIENCE) == 0
    code, said = run_command(monkeypatch, capsys, settings, "config", "show")
    assert code == 0
    assert "ada@127.0.0.1" in client(settings).search_runs(["1"])[0].data.params["delivery.database"]
    written = [file.read_bytes() for file in settings.state_folder.rglob("*") if file.is_file()]
    assert not any(secret.encode() in content for content in [*written, said.encode()])
