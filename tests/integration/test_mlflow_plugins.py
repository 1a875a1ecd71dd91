"""What MLflow finds in us by entry points, through MLflow's own command and API."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import mlflow
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from mlflow.deployments import get_deploy_client
from mlflow.deployments.cli import commands
from mlflow.exceptions import MlflowException
from mlflow.models.cli import commands as model_commands

from dlfd_fleet.delivery import releases
from dlfd_fleet.delivery.delivery import KEYS, opened
from dlfd_fleet.federation.release.promotion import promote
from dlfd_fleet.model_input import ModelInput
from dlfd_fleet.settings import Settings
from dlfd_fleet.tracking import dlfd_answers, open_tracker
from tests.integration.registered_fleet import SIZE, registered_fleet
from tests.mlflow_client import client_of

TARGET = ("-t", "dlfd-fleet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    state = tmp_path_factory.mktemp("fleet") / "state"
    registered_fleet(Settings(state_folder=state))
    return state


@pytest.fixture
def fleet(folder, monkeypatch):
    monkeypatch.setenv("DLFD_FLEET_STATE_FOLDER", str(folder))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Settings(state_folder=folder)


@pytest.fixture(scope="module")
def offline_keys(folder, tmp_path_factory):
    """The keys that releases are signed with, on media of their own beside the repository."""
    media = tmp_path_factory.mktemp("media")
    with opened(Settings(state_folder=folder), create=True) as delivery:
        keys = delivery.repository.folder / KEYS
        delivery.repository.create(keys)
    for key in [*keys.glob("root-*"), *keys.glob("targets-*")]:
        key.rename(media / key.name)
    return media


@pytest.fixture
def store(folder):
    """The client of the fleet's own store, which is MLflow's default as well, and its experiment."""
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    client = client_of(mlflow.get_tracking_uri())
    return client, client.get_experiment_by_name("dlfd-fleet").experiment_id


def deployments(*arguments):
    return CliRunner().invoke(commands, arguments)


def test_a_version_is_not_deployed_without_a_repository_for_devices(fleet):
    refused = deployments("create", *TARGET, "--name", "early", "-m", "models:/dlfd-fleet@champion")
    assert (refused.exit_code, "make one with `dlfd-fleet delivery init`" in refused.output) == (2, True)
    assert get_deploy_client("dlfd-fleet").list_deployments() == []


def test_a_version_is_deployed_asked_updated_and_deleted_and_the_floor_stays(fleet, offline_keys, tmp_path):
    publishing, keys = (
        ("create", *TARGET, "--name", "cameras", "-m", "models:/dlfd-fleet@champion"),
        f"keys={offline_keys}",
    )
    keyless = deployments(*publishing)
    assert (keyless.exit_code, "To sign 'targets'" in keyless.output) == (2, True)
    wrong = deployments(*publishing, "-C", keys, "-C", "speed=high")
    assert (wrong.exit_code, "rings=true or rings=false, and keys=FOLDER" in wrong.output) == (2, True)
    created = deployments(*publishing, "-C", keys)
    assert created.exit_code == 0, created.output
    assert "onnx deployment cameras is created" in created.output
    twice = deployments("create", *TARGET, "--name", "cameras", "-m", "models:/dlfd-fleet/1")
    assert (twice.exit_code, "already; update it" in twice.output) == (2, True)
    assert "version: 1" in deployments("get", *TARGET, "--name", "cameras").output
    images = np.random.default_rng(1).integers(0, 256, (3, SIZE, SIZE, 3))
    (tmp_path / "in.json").write_text(json.dumps({"images": images.tolist()}))
    asked = deployments("predict", *TARGET, "--name", "cameras", "-I", str(tmp_path / "in.json"))
    answers = json.loads(asked.output)["predictions"]
    assert len(answers) == 3
    assert all(sum(answer.values()) == pytest.approx(1.0) for answer in answers)

    held = deployments("update", *TARGET, "--name", "cameras", "-m", "models:/dlfd-fleet/2")
    assert (held.exit_code, "was never promoted" in held.output) == (2, True)
    failed = deployments("create", *TARGET, "--name", "doors", "-m", "models:/dlfd-fleet/3")
    assert "The verdict on version 3 is FAIL" in failed.output
    promote(fleet, "2", "ada", "looked at the bounds")
    stale = deployments("predict", *TARGET, "--name", "cameras", "-I", str(tmp_path / "in.json"))
    assert "under the fleet's 1" in stale.output
    updated = deployments("update", *TARGET, "--name", "cameras", "-m", "models:/dlfd-fleet/2", "-C", keys)
    assert updated.exit_code == 0, updated.output
    assert "'epoch': 1" in deployments("list", *TARGET).output
    assert deployments("delete", *TARGET, "--name", "cameras").exit_code == 0
    assert deployments("delete", *TARGET, "--name", "cameras").exit_code == 0  # as MLflow asks

    client = get_deploy_client("dlfd-fleet")
    assert client.list_deployments() == []
    with opened(fleet) as delivery:
        assert delivery.devices.floor() == 1
        offers = releases.listed(delivery.repository.read())
        assert [(release.epoch, release.minimum_epoch) for release in offers.values()] == [(1, 1)]
    with pytest.raises(MlflowException, match="no deployment 'cameras'"):
        client.get_deployment("cameras")
    with pytest.raises(MlflowException, match="has no version 1"):  # it is purged
        client.create_deployment("cameras", "models:/dlfd-fleet/1")
    for uri in ("runs:/1/model", "models:/other/2", "models:/dlfd-fleet@nobody"):
        with pytest.raises(MlflowException, match=r"is no version|has the alias"):
            client.create_deployment("cameras", uri)
    with pytest.raises(MlflowException, match="is no name for a deployment"):
        client.create_deployment("../../cameras", "models:/dlfd-fleet/2")
    assert "MLFLOW_TRACKING_URI" in deployments("help", *TARGET).output
    local = deployments("run-local", *TARGET, "--name", "here", "-m", "models:/dlfd-fleet/2")
    assert "epoch 1, answers" in local.output


def test_a_fleet_of_another_user_is_one_sentence(closed_folder, monkeypatch):
    monkeypatch.setenv("DLFD_FLEET_STATE_FOLDER", str(closed_folder))
    refused = deployments("list", *TARGET)
    assert (refused.exit_code, f"You may not read or write {closed_folder}" in refused.output) == (2, True)


def frame_of(forget_leak):
    """Forgotten people whom the model knows better than unseen ones, by so much; ten people of ten images a role."""
    rng, rows = np.random.default_rng(0), []
    for role, shift in (("retain", 2.0), ("forget", forget_leak), ("validation", 0.0), ("test", 0.0)):
        for person in range(10):
            for _ in range(10):
                label = int(rng.integers(2))
                logit = (rng.normal(1.5, 1.0) + shift) * (1 if label else -1)
                probability = 1.0 / (1.0 + np.exp(-logit))
                rows.append((role, f"{role}-{person}", label, [1.0 - probability, probability]))
    return pd.DataFrame(rows, columns=["role", "person", "label", "probabilities"])


def test_evaluate_attacks_probabilities_and_judges_them_beside_the_original(store, folder):
    client, experiment = store
    frame = frame_of(0.0)
    frame["before"] = frame_of(3.0)["probabilities"]
    with mlflow.start_run(experiment_id=experiment) as run:
        result = mlflow.models.evaluate(
            data=frame,
            targets="label",
            predictions="probabilities",
            model_type="classifier",
            evaluators="dlfd",
            evaluator_config={"original": "before", "margin": 0.2, "resamples": 400},
        )
    assert abs(result.metrics["mia_auc"] - 0.5) < 0.1
    assert result.metrics["mia_auc_low"] < result.metrics["mia_auc"] < result.metrics["mia_auc_high"]
    assert result.metrics["original.mia_auc"] > 0.8
    assert result.artifacts["dlfd_verdict"].content["outcome"] == "PASS"
    logged = client.get_run(run.info.run_id)
    assert logged.data.tags["dlfd.verdict"] == "PASS"
    assert logged.data.metrics["mia_auc"] == pytest.approx(result.metrics["mia_auc"])
    files = [file.path for file in client.list_artifacts(run.info.run_id)]
    assert {"dlfd_losses.png", "dlfd_verdict.json"} <= set(files)
    for file in folder.rglob("*"):
        assert b"forget-3" not in (file.read_bytes() if file.is_file() else b"")
    with pytest.raises(MlflowException, match="no column 'person'"):
        mlflow.models.evaluate(
            data=frame.drop(columns="person"),
            targets="label",
            predictions="probabilities",
            model_type="classifier",
            evaluators="dlfd",
        )


def test_evaluate_asks_a_model_about_images(store):
    frame = frame_of(0.0).drop(columns="probabilities")
    frame["image"] = [np.full((SIZE, SIZE, 3), 255 * label, np.uint8) for label in frame["label"]]

    def bright(images):
        light = images.mean(axis=(1, 2, 3)) / 255.0
        return np.stack([1.0 - light, light], axis=1) * 0.8 + 0.1

    class Bright:
        def predict(self, images):
            return {"probabilities": bright(images)}

    from dlfd_fleet.plugins.evaluator import ForgettingEvaluator

    with mlflow.start_run(experiment_id=store[1]) as run:
        dataset = mlflow.data.from_pandas(frame, targets="label").to_evaluation_dataset()
        result = ForgettingEvaluator().evaluate(
            dataset=dataset, run_id=run.info.run_id, evaluator_config={"resamples": 200}, model=Bright()
        )
    assert result.metrics["test_accuracy"] == 1.0
    assert result.metrics["mia_auc"] == 0.5


def test_a_run_that_somebody_starts_beside_a_job_says_which(fleet, store, folder):
    client, experiment = store
    with open_tracker(fleet.tracking, folder) as tracker:
        tracker.start_job("erase-7", kind="erase", parameters={}, tags={"dlfd.epoch": "3"})
        with mlflow.start_run(experiment_id=experiment) as beside:
            pass
        tracker.finish_job("erase-7", "FINISHED")
        with mlflow.start_run(experiment_id=experiment) as after:
            pass
    tags = {name: client.get_run(run.info.run_id).data.tags for name, run in (("beside", beside), ("after", after))}
    ours = {name: value for name, value in tags["beside"].items() if name.startswith("dlfd.")}
    assert ours == {"dlfd.beside": "erase-7", "dlfd.kind": "erase", "dlfd.epoch": "3"}
    assert not any(name.startswith("dlfd.") for name in tags["after"])


def test_evaluate_audits_a_model_of_labels(store):
    frame, random = frame_of(0.0), np.random.default_rng(1)
    truth = random.integers(0, 2, (len(frame), 3))
    frame["labels"] = truth.tolist()
    frame["probabilities"] = np.where(truth == 1, 0.8, 0.3).tolist()
    with mlflow.start_run(experiment_id=store[1]):
        result = mlflow.models.evaluate(
            data=frame.drop(columns="label"),
            targets="labels",
            predictions="probabilities",
            model_type="classifier",
            evaluators="dlfd",
            evaluator_config={"resamples": 200},
        )
        assert (result.metrics["balanced_accuracy"], result.metrics["unseen_classes"]) == (1.0, 2.0)
        frame["labels"] = [[0, 1, 2]] * len(frame)
        with pytest.raises(MlflowException, match="lists of 3 numbers, each 0 or 1"):
            mlflow.models.evaluate(
                data=frame.drop(columns="label"),
                targets="labels",
                predictions="probabilities",
                model_type="classifier",
                evaluators="dlfd",
            )


def test_what_mlflow_loads_names_every_answer(store, fleet):
    """Also in a process without dlfd-fleet: what loads it lies beside the model."""
    model = mlflow.pyfunc.load_model("models:/dlfd-fleet@champion")
    assert model.metadata.metadata == {"classes": ["none", "glasses"], "multi_label": False}
    outputs = {spec.name: (spec.type.kind, spec.shape) for spec in model.metadata.get_output_schema()}
    assert outputs == {"probabilities": ("f", (-1, 2)), "answer": ("U", (-1,))}
    images = np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE, 3), dtype=np.uint8)
    said = model.predict(images)
    assert said["answer"].tolist() == [("none", "glasses")[number] for number in said["probabilities"].argmax(axis=1)]
    loader = sys.modules[model.metadata.flavors["python_function"]["loader_module"]]
    assert Path(loader.__file__).parent.name == "code"  # a copy, which MLflow may have deleted again once it was loaded
    assert "import dlfd_fleet" not in Path(dlfd_answers.__file__).read_text(encoding="utf-8")


NUMBERS = ModelInput(shape=(3,), low=-4.0, high=4.0)


@pytest.fixture(scope="module")
def clinic(tmp_path_factory):
    """The state folder of a fleet whose champion takes three numbers."""
    state = tmp_path_factory.mktemp("clinic") / "state"
    registered_fleet(Settings(state_folder=state), ("train-1",), NUMBERS)
    return state


@pytest.fixture
def of_numbers(clinic, monkeypatch):
    """The URI of its champion."""
    monkeypatch.setenv("DLFD_FLEET_STATE_FOLDER", str(clinic))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    mlflow.set_tracking_uri(f"sqlite:///{clinic / 'mlflow.db'}")
    return "models:/dlfd-fleet@champion"


def test_mlflow_predicts_rows_of_numbers_in_the_models_range(of_numbers, tmp_path):
    rows = NUMBERS.random(4)
    expected = mlflow.pyfunc.load_model(of_numbers).predict(rows)
    assert expected["answer"].tolist() == [("none", "glasses")[row.argmax()] for row in expected["probabilities"]]
    (tmp_path / "in.json").write_text(json.dumps({"inputs": rows.tolist()}))
    files = ("-i", str(tmp_path / "in.json"), "-o", str(tmp_path / "out.json"))
    asked = CliRunner().invoke(model_commands, ["predict", "-m", of_numbers, *files, "--env-manager", "local"])
    assert asked.exit_code == 0, asked.output
    said = json.loads((tmp_path / "out.json").read_text())["predictions"]
    assert said["answer"] == expected["answer"].tolist()
    for outside in (5.0, float("nan")):
        rows[2, 1] = outside
        with pytest.raises(MlflowException, match=r"The inputs go from .*, and the model takes -4 to 4"):
            mlflow.pyfunc.load_model(of_numbers).predict(rows)


def test_a_deployment_of_a_model_of_numbers_answers_rows(of_numbers, clinic, tmp_path):
    with opened(Settings(state_folder=clinic), create=True) as delivery:
        delivery.repository.create(delivery.repository.folder / KEYS)
    created = deployments("create", *TARGET, "--name", "clinic", "-m", of_numbers)
    assert created.exit_code == 0, created.output
    rows, asking = NUMBERS.random(4), ("predict", *TARGET, "--name", "clinic", "-I", str(tmp_path / "in.json"))
    (tmp_path / "in.json").write_text(json.dumps({"inputs": rows.tolist()}))
    asked = deployments(*asking)
    answers = json.loads(asked.output)["predictions"]
    expected = mlflow.pyfunc.load_model(of_numbers).predict(rows)["probabilities"]
    np.testing.assert_allclose([[row["none"], row["glasses"]] for row in answers], expected, atol=1e-6)
    for given, why in (
        ({"inputs": [[1, 2, 3], [1, 2, 9]]}, "row 2: the value 9 is outside the range from -4 to 4"),
        ({"inputs": [[1, 2]]}, "row 1 has the shape (2,), and the model takes (3,)"),
        ({"images": [[1, 2, 3]]}, 'The model takes 3 numbers from -4 to 4, a list of each under "inputs"'),
    ):
        (tmp_path / "in.json").write_text(json.dumps(given))
        refused = deployments(*asking)
        assert (refused.exit_code, why in refused.output) == (2, True), refused.output
    assert "answers '" in deployments("run-local", *TARGET, "--name", "here", "-m", of_numbers).output


def test_evaluate_asks_a_model_of_numbers_about_rows(of_numbers, clinic):
    frame = frame_of(0.0).drop(columns="probabilities")
    rows = NUMBERS.random(len(frame))
    frame["input"] = list(rows)
    frame["label"] = mlflow.pyfunc.load_model(of_numbers).predict(rows)["probabilities"].argmax(axis=1)
    asking = {"targets": "label", "model_type": "classifier", "evaluators": "dlfd"}
    with mlflow.start_run():
        found = mlflow.models.evaluate(of_numbers, frame, evaluator_config={"resamples": 200}, **asking)
        assert found.metrics["test_accuracy"] == 1.0
        with pytest.raises(MlflowException, match="no column 'input'"):
            mlflow.models.evaluate(of_numbers, frame.rename(columns={"input": "image"}), **asking)
        frame.at[3, "input"] = rows[3] + 9.0
        with pytest.raises(MlflowException, match=r"The column 'input' cannot be used: row 4: the value .* is outside"):
            mlflow.models.evaluate(of_numbers, frame, **asking)


def test_metadata_that_cannot_be_read_is_one_sentence(of_numbers, monkeypatch):
    """It was written by a program of another kind."""
    frame = frame_of(0.0).drop(columns="probabilities")
    frame["input"] = list(NUMBERS.random(len(frame)))
    frame["label"] = 0
    loaded = mlflow.pyfunc.load_model(of_numbers)
    meta = SimpleNamespace(custom_metadata_map={"dlfd.input": "what is this"})
    session = SimpleNamespace(get_modelmeta=lambda: meta)
    monkeypatch.setattr(type(loaded), "get_raw_model", lambda _: session)
    asking = {"targets": "label", "model_type": "classifier", "evaluators": "dlfd"}
    with (
        mlflow.start_run(),
        pytest.raises(MlflowException, match=r"'dlfd.input' what it takes, and that cannot be read"),
    ):
        mlflow.models.evaluate(of_numbers, frame, **asking)
