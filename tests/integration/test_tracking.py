"""The tracker against a real MLflow: a local store, and a server that is killed and comes back."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from dlfd_fleet.exceptions import TrackingError
from dlfd_fleet.settings import TrackingSettings
from dlfd_fleet.tracking import open_tracker
from dlfd_fleet.tracking.figures import score_table
from dlfd_fleet.tracking.outbox import Outbox
from dlfd_fleet.tracking.sender import Sender
from tests.integration.mlflow_server import Server
from tests.mlflow_client import client_of

PATIENCE = 120.0


@pytest.fixture
def onnx_file(tmp_path):
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 8, 8, 3])
    answer = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 8, 8, 3])
    graph = helper.make_graph([helper.make_node("Cast", ["images"], ["probabilities"], to=1)], "g", [images], [answer])
    file = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), file)
    return file


@pytest.fixture
def example():
    return np.zeros((2, 8, 8, 3), np.uint8)


def runs_of(client, experiment="dlfd-fleet"):
    return client.search_runs([client.get_experiment_by_name(experiment).experiment_id])


def test_a_job_is_one_run_with_a_run_below_it_for_each_site(tmp_path, onnx_file, example):
    with open_tracker(TrackingSettings(), tmp_path) as tracker:
        tracker.start_job("job-1", kind="erase", parameters={"seed": 3, "data.root": None}, tags={"dlfd.epoch": "1"})
        for step in (1, 2):
            tracker.log_metrics("job-1", {"mia_auc": 0.5 + step / 10, "broken": float("nan")}, step=step)
            tracker.log_metrics("job-1", {"seconds": step}, step=step, site="site-0a")
        tracker.log_image("job-1", "scores", score_table("t", ("a",), [("1",)], "f"))
        tracker.finish_job("job-1", "FINISHED")
        assert tracker.flush(PATIENCE) == 0
        uri = tracker.uri
    client = client_of(uri)
    parent = next(run for run in runs_of(client) if "dlfd.site" not in run.data.tags)
    child = next(run for run in runs_of(client) if "dlfd.site" in run.data.tags)
    assert parent.info.status == child.info.status == "FINISHED"
    assert parent.data.params == {"seed": "3", "data.root": "null"}
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    history = client.get_metric_history(parent.info.run_id, "mia_auc")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.6), (2, 0.7)]
    assert "broken" not in parent.data.metrics
    assert child.data.metrics == {"seconds": 2.0}
    assert [file.path for file in client.list_artifacts(parent.info.run_id, "figures")] == ["figures/scores.png"]


def test_a_model_is_registered_once_and_older_epochs_are_revoked(tmp_path, onnx_file, example):
    with open_tracker(TrackingSettings(), tmp_path) as tracker:
        assert tracker.champion() is None
        for job, epoch in (("job-1", 0), ("job-2", 1), ("job-2", 1)):
            tags = {"dlfd.job": job, "dlfd.epoch": str(epoch)}
            tracker.log_model(job, onnx_file, input_example=example, outputs=2, tags=tags, alias="champion")
            tracker.revoke_older_versions(job, epoch)
        assert tracker.flush(PATIENCE) == 0
        assert tracker.refused == 0
        champion = tracker.champion()
        uri = tracker.uri
    assert champion is not None
    assert champion.tags["dlfd.job"] == "job-2"
    versions = {version.version: version for version in client_of(uri).search_model_versions("name = 'dlfd-fleet'")}
    assert len(versions) == 2
    assert ["dlfd.revoked" in versions[number].tags for number in sorted(versions)] == [True, False]
    import mlflow

    mlflow.set_tracking_uri(uri)
    model = mlflow.pyfunc.load_model("models:/dlfd-fleet@champion")
    assert model.metadata.signature is not None
    assert model.input_example is not None
    assert model.predict(example)["probabilities"].shape == (2, 8, 8, 3)


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "server"
    folder.mkdir()
    server = Server(folder)
    yield server
    server.kill()


def test_what_a_dead_server_missed_is_sent_when_it_is_back(tmp_path, server, onnx_file, example):
    state, settings = tmp_path / "state", TrackingSettings(uri=server.uri)
    with open_tracker(settings, state) as tracker:  # nobody listens yet
        tracker.start_job("job-1", kind="erase", parameters={"seed": 0}, tags={})
        tracker.log_metrics("job-1", {"mia_auc": 0.7}, step=1)
        assert tracker.flush(60.0) == 2
        with pytest.raises(TrackingError, match="does not answer"):
            tracker.champion()
    server.start()
    with open_tracker(settings, state) as tracker:  # another process, later
        assert tracker.flush(PATIENCE) == 0
        server.kill()
        tracker.log_metrics("job-1", {"mia_auc": 0.5}, step=2)
        tracker.log_model("job-1", onnx_file, input_example=example, outputs=2, tags={}, alias="champion")
        tracker.finish_job("job-1", "FINISHED")
        assert tracker.flush(60.0) == 3
        server.start()
        assert tracker.flush(PATIENCE) == 0
        assert tracker.refused == 0
        assert tracker.champion() is not None
    (run,) = runs_of(client_of(server.uri))
    assert run.info.status == "FINISHED"
    history = client_of(server.uri).get_metric_history(run.info.run_id, "mia_auc")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.7), (2, 0.5)]


def test_a_server_killed_in_the_middle_has_each_entry_once_and_in_order(tmp_path, server):
    """Killed while entries are on their way; what it had taken and what it had not come to one history."""
    state, settings = tmp_path / "state", TrackingSettings(uri=server.uri)
    server.start()
    with open_tracker(settings, state) as tracker:
        tracker.start_job("job-1", kind="erase", parameters={"seed": 0}, tags={})
        while tracker.flush(PATIENCE):
            pass
        for step in range(60):
            tracker.log_metrics("job-1", {"mia_auc": step / 100, "loss": 1.0}, step=step)
            tracker.log_metrics("job-1", {"seconds": 1.0}, step=step, site=f"site-{step % 2}")
            tracker.log_metrics("job-1", {"mia_auc": step / 100}, step=step, attempt=1)
            tracker.log_metrics(
                "job-1", {"mia_auc": step / 100}, step=step, attempt=1
            )  # a step that is gone over again
            if step == 30:
                server.kill()  # whatever is on its way then
        assert tracker.waiting
        server.start()
        while tracker.flush(PATIENCE):
            pass
        # Entries that a dying process had told, but not yet crossed out, are told again: it comes to the same.
        again = Outbox(tmp_path / "again.db")
        for step in (3, 4):
            said = next(metric for metric in history_of(server, "mia_auc") if metric.step == step)
            fields = {"metrics": {"mia_auc": said.value}, "step": step, "site": "", "at": said.timestamp}
            again.put_metrics("job-1", fields)
        Sender(settings, server.uri, tmp_path, again).send(again.next())
        tracker.finish_job("job-1", "FINISHED")
        while tracker.flush(PATIENCE):
            pass
        assert tracker.refused == 0
    client = client_of(server.uri)
    runs = {run.info.run_name: run for run in runs_of(client)}
    assert set(runs) == {"job-1", "site-0", "site-1", "attempt-1"}
    assert {run.data.tags.get("mlflow.parentRunId") for run in runs.values()} == {None, runs["job-1"].info.run_id}
    for name in ("job-1", "attempt-1"):
        history = client.get_metric_history(runs[name].info.run_id, "mia_auc")
        assert [(metric.step, metric.value) for metric in history] == [(step, step / 100) for step in range(60)]
        assert [metric.timestamp for metric in history] == sorted(metric.timestamp for metric in history)
    seen = client.get_metric_history(runs["site-1"].info.run_id, "seconds")
    assert [metric.step for metric in seen] == list(range(1, 60, 2))


def history_of(server, name):
    client = client_of(server.uri)
    (run,) = [run for run in runs_of(client) if run.info.run_name == "job-1"]
    return client.get_metric_history(run.info.run_id, name)


def test_metrics_of_a_job_that_wait_go_together(tmp_path):
    outbox = Outbox(tmp_path / "outbox.db")
    outbox.put("job-1", "start", {})
    for step in range(130):
        fields = {"metrics": {f"metric_{name}": 0.5 for name in range(10)}, "step": step, "site": "", "at": 0}
        outbox.put_metrics("job-1" if step < 110 else "job-2", fields)
    sizes = []
    while entries := outbox.next():
        sizes.append((entries[0].kind, len(entries)))
        outbox.sent(entry.sequence for entry in entries)
    assert sizes == [("start", 1), ("metrics", 100), ("metrics", 10), ("metrics", 20)]


def test_an_entry_that_is_refused_is_set_aside_and_the_next_ones_go_on(tmp_path):
    with open_tracker(TrackingSettings(), tmp_path) as tracker:
        tracker.start_job("job-1", kind="train", parameters={"seed": 0}, tags={})
        tracker.log_metrics("job-1", {"a name with a \n line break": 1.0}, step=1)
        tracker.log_metrics("job-1", {"mia_auc": 0.5}, step=1)
        assert tracker.flush(PATIENCE) == 0
        tracker.log_dataset("job-1", "fleet", {"sites": 2, "retain_images": {"none": 7}}, "training")
        tracker.set_tags("job-1", {"dlfd.verdict": "PASS", "dlfd.refused.site-0a": "a long reason " * 1000})
        assert tracker.flush(PATIENCE) == 0
        assert tracker.refused == 1
        uri = tracker.uri
    client = client_of(uri)
    (run,) = client.search_runs(["1"], "tags.`dlfd.verdict` = 'PASS' and tags.`dlfd.kind` = 'train'")
    assert run.data.metrics == {"mia_auc": 0.5}
    assert run.data.tags["dlfd.refused.site-0a"].startswith("a long reason a long")
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, data.tags[0].value) == ("fleet", "training")
    assert "7" in data.dataset.profile
