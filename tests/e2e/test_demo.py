"""The main job as a newcomer runs it, on Flower's Simulation Runtime, with MLflow, the ledgers and the device agent."""

from __future__ import annotations

import json
import subprocess
import sys

import onnx
import pytest

from dlfd_fleet.audit import SCORE_NAMES
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.ledger import RequestState, Site, site_folders
from tests.mlflow_client import client_of

UNSENT: list[str] = []


@pytest.fixture(scope="module")
def finished(fleet):
    return fleet.demo("erasure.compare_retrain=true")


@pytest.fixture(scope="module")
def record(fleet, finished):
    assert finished.returncode == 0, finished.stderr
    return next(record for record in Store(fleet.state).jobs() if record.kind == "erase")


@pytest.fixture(scope="module")
def client(fleet, record):
    return client_of(f"sqlite:///{fleet.state / 'mlflow.db'}")


def test_the_table_shows_every_score_of_every_model(finished, record):
    assert record.released
    assert list(record.models) == ["original", "unlearned", "relearned", "retrained"]
    for row in (
        "test accuracy",
        "balanced accuracy",
        "MIA AUC",
        "MIA AUC after further training",
        "NoMUS",
        "majority-class accuracy",
        "seconds",
    ):
        assert row in finished.stdout
    assert record.verdict is not None
    assert record.verdict.outcome.value in finished.stdout
    assert "mlflow ui --backend-store-uri" in finished.stdout
    assert "Traceback" not in finished.stdout + finished.stderr


def test_the_forgotten_are_purged_and_their_names_gone(fleet, record):
    complete = []
    for folder in site_folders(fleet.state):
        with Site(folder) as site:
            site.ledger.verify()
            for request in site.ledger.requests():
                assert request.state is RequestState.COMPLETE
                assert (request.identity, request.epoch, request.job) == (None, 1, record.job)
                complete.append(request)
            assert len(site.ledger.tombstones()) == 4 * len(site.ledger.requests())
            on_disk = {file.parent.name for file in (folder / "images").rglob("*.png")}
            assert on_disk == set(site.manifest().identities)
    assert len(complete) == 4


def test_mlflow_holds_the_job_its_sites_and_the_champion(client, record):
    (experiment,) = client.search_experiments(filter_string="name = 'dlfd-fleet'")
    runs = client.search_runs([experiment.experiment_id])
    parent = next(run for run in runs if run.data.tags.get("mlflow.runName") == record.job)
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert sorted(("dlfd.site" in run.data.tags, "dlfd.attempt" in run.data.tags) for run in children) == [
        (False, True),
        (True, False),
        (True, False),
    ]
    assert parent.data.tags["dlfd.verdict"] == record.verdict.outcome.value
    assert parent.data.tags["dlfd.parent_version"].startswith("0-")
    assert {"retained_loss", "mia_auc_low"} <= parent.data.metrics.keys()
    assert parent.inputs.dataset_inputs[0].dataset.name == "fleet"
    assert all(run.info.status == "FINISHED" for run in runs)
    assert parent.data.params["unlearning.ball"] == "0.03"
    assert len(parent.data.params) > 50
    for name in SCORE_NAMES:
        assert f"unlearned.{name}" in parent.data.metrics
    assert {"unlearned.mia_auc_low", "unlearned.mia_auc_high", "onnx_max_abs_difference"} <= parent.data.metrics.keys()
    assert parent.data.metrics["retrained.gap_to_retrain"] == 0.0
    assert parent.data.metrics["unlearned.gap_to_retrain"] >= 0.0
    figures = {file.path for file in client.list_artifacts(parent.info.run_id, "figures")}
    assert figures == {f"figures/{name}.png" for name in ("scores", "losses", "people", "time")}
    files = {file.path for file in client.list_artifacts(parent.info.run_id, "erasure")}
    assert files == {"erasure/report.html", "erasure/report.json", "erasure/certificate.json"}

    champion = client.get_model_version_by_alias("dlfd-fleet", "champion")
    # Who opens the run or the version reads what was forgotten, with what evidence, and where the report is.
    for said in (parent.data.tags["mlflow.note.content"], champion.description):
        for words in ("4 requests forgotten", record.verdict.outcome.value, "MIA AUC", "erasure/report.html"):
            assert words in said, (words, said)
    assert champion.tags["dlfd.job"] == record.job
    assert champion.tags["dlfd.epoch"] == "1"
    assert {version.version for version in client.search_model_versions("name = 'dlfd-fleet'")} == {champion.version}
    assert "dlfd.purged.1" in client.get_registered_model("dlfd-fleet").tags


def test_no_name_and_no_path_of_a_person_reaches_the_coordinator_or_mlflow(fleet, record):
    for folder in ("coordinator", "mlartifacts"):
        for file in (fleet.state / folder).rglob("*"):
            if file.is_file():
                assert b"person-0" not in file.read_bytes(), file
    assert b"person-0" not in (fleet.state / "mlflow.db").read_bytes()


def test_the_report_is_made_again_and_the_certificate_verified_by_command(fleet, record, tmp_path):
    job, key = Store(fleet.state).folders.made(record.job), fleet.state / "coordinator" / "keys" / "certificate.pub.pem"
    made = fleet.run("report", "--config", str(fleet.config), "--output", str(tmp_path / "officer.html"))
    assert made.returncode == 0, made.stderr
    assert "4 requests to be forgotten: a new model was released" in (tmp_path / "officer.html").read_text()
    arguments = [str(job / "certificate.json"), "--key", str(key), "--report", str(tmp_path / "officer.json")]
    verified = fleet.run("certificate", "verify", *arguments, "--model", str(job / "model" / "model.onnx"))
    assert verified.returncode == 0, verified.stderr
    assert "model.onnx, byte for byte" in verified.stdout
    assert "does not prove" in verified.stdout
    assert "Not verified" in fleet.run("certificate", "show", arguments[0]).stdout


def test_the_device_runs_the_file_without_torch(fleet, record):
    file = Store(fleet.state).folders.model(record.job) / "model.onnx"
    metadata = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    assert any(value.startswith("1-") for value in metadata.values())
    with Site(site_folders(fleet.state)[0]) as site:
        image = next(site.image_root / row.image for row in site.manifest().rows if row.split == "test")
    command = [sys.executable, "-m", "dlfd_fleet.device", "predict", "--json", str(file), str(image)]
    answer = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert answer["epoch"] == 1
    assert sum(answer["predictions"][0]["probabilities"].values()) == pytest.approx(1.0, abs=1e-5)


def test_a_verdict_short_of_pass_can_ask_for_retraining_and_a_dead_mlflow_stops_nothing(fleet, record):
    finished = fleet.demo_here(
        "release.on_inconclusive=retrain", "erasure.fallback_retrain=true", "tracking.uri=http://127.0.0.1:9", "seed=2"
    )
    assert finished.returncode == 0, finished.stderr
    job = next(each for each in Store(fleet.state).jobs() if each.kind == "erase")
    assert job.unsent > 0
    # Under a table sentences are wrapped.
    assert f"MLflow does not answer: {job.unsent} records are kept" in " ".join(finished.stdout.split())
    assert "retrained" in job.models
    assert job.released
    UNSENT.append(job.job)
    card = json.loads((Store(fleet.state).folders.model(job.job) / "card.json").read_text())
    assert (card["kind"], card["epoch"]) == ("retrained", 1)


def test_a_failed_verdict_moves_nothing_and_the_demo_can_be_run_again_at_once(fleet, record, client):
    """No model can beat the majority answer by 1, so this erasure must fail."""
    finished = fleet.demo_here("audit.min_gain_over_majority=1.0", "seed=1")
    assert finished.returncode == 1, finished.stderr  # as after every FAIL
    assert "FAIL" in finished.stdout
    assert "Not released" in finished.stdout
    (experiment,) = client.search_experiments(filter_string="name = 'dlfd-fleet'")
    names = {run.info.run_name for run in client.search_runs([experiment.experiment_id])}
    assert set(UNSENT) <= names, "what the dead MLflow missed was sent to the one that answers"
    second = next(each for each in Store(fleet.state).jobs() if each.kind == "erase")
    assert not second.released
    folder = Store(fleet.state).folders.made(second.job)
    assert "no model was released" in (folder / "report.html").read_text()
    assert not (folder / "certificate.json").exists()
    champion = client.get_model_version_by_alias("dlfd-fleet", "champion")
    assert champion.tags["dlfd.job"] != second.job
    for folder in site_folders(fleet.state):
        with Site(folder) as site:
            site.ledger.verify()
            assert {request.state for request in site.ledger.requests()} <= {RequestState.ACCEPTED}
            assert len(site.ledger.tombstones()) == 0
