"""The federated comparison on a fleet of drawings: every method leaves a model, is compared, and is not made twice."""

from __future__ import annotations

import csv
import io
import json
from types import SimpleNamespace

import pytest
from rich.console import Console

from dlfd_fleet.bench.fleets.command import fleets_command
from dlfd_fleet.data import synthesize
from dlfd_fleet.exceptions import JobError
from dlfd_fleet.progress import ConsoleProgress
from dlfd_fleet.settings import Settings
from tests.integration.fleet_in_process import answer_here
from tests.small_networks import small_networks


@pytest.fixture(scope="module", autouse=True)
def networks():
    with small_networks():
        yield


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("federated-bench")
    silent = ConsoleProgress(Console(file=io.StringIO()))
    manifest = synthesize(
        folder / "faces", people=20, images_per_person=2, image_size=32, classes=2, seed=0, progress=silent
    )
    return Settings(
        state_folder=folder / "state",
        data={
            "source": "manifest",
            "manifest": manifest,
            "image_size": 32,
            "sites": 3,  # two forget, one does not
            "validation_people": 2,
            "test_people": 2,
        },
        model={"architecture": "mobilenet_v3_small"},
        training={"rounds": 2, "local_epochs": 1, "batch_size": 16},
        erasure={"rounds": 2, "repair_epochs": 1, "largest_forget_share": 1.0},
        audit={"resamples": 200},
        # Nobody listens there: what the bench tells MLflow is tested beside the other bench.
        tracking={"uri": "http://127.0.0.1:9"},
    )


@pytest.fixture(scope="module")
def folder(settings):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dlfd_fleet.bench.fleets.seeds.simulate", answer_here)
        fleets_command(settings, 1, "10m", Console(file=io.StringIO(), width=200))
    return settings.state_folder / "bench-federated"


def test_every_method_is_weighed_beside_retraining(folder):
    with (folder / "table.csv").open() as stream:
        table = {row["method"]: row for row in csv.DictReader(stream)}
    dlfd = {"dlfd", "DLFD int8", "DLFD int8 one round", "DLFD averaged with all"}
    methods = dlfd | {"continued FedAvg", "gradient ascent", "NoT", "FedEraser"}
    assert table.keys() == methods | {"original", "retrained"}
    for name in methods:
        row = table[name]
        for column in ("abs_loss_gap", "abs_rmia_gap", "abs_relearned_gap", "test_accuracy"):
            assert 0.0 <= float(row[column]) <= 1.0, (name, column)
        assert float(row["seconds"]) > 0.0
        assert float(row["rounds"]) >= 1.0
        assert float(row["megabytes_a_site"]) > 0.0
        assert float(row["server_megabytes"]) > 0.0
    assert float(table["retrained"]["share_of_retraining_bytes"]) == pytest.approx(1.0)
    assert float(table["DLFD int8"]["megabytes_a_site"]) < 0.4 * float(table["dlfd"]["megabytes_a_site"])
    # One round of the two is stored; nobody else makes the server keep updates.
    assert float(table["FedEraser"]["stored_megabytes"]) > 0.0
    assert {float(table[name]["stored_megabytes"]) for name in methods - {"FedEraser"}} == {0.0}


def test_methods_leave_different_models(folder):
    rows = json.loads((folder / "rows.json").read_text())
    losses = {row["method"]: tuple(row["losses"]["forget"]) for row in rows if row["method"] != "retrained"}
    assert "FedEraser" in losses
    # Models that were thrown away are sure of everything, all alike: losses of 0, or as large as is written down.
    assert {name for name, each in losses.items() if not 1e-6 < max(each) < 20.0} == set()
    # DLFD ends after its first round where that is enough, which one seed's rounding decides.
    del losses["DLFD int8 one round"]
    assert len(set(losses.values())) == len(losses)


def test_a_second_run_makes_nothing_anew(settings, folder):
    models = {file: file.stat().st_mtime_ns for file in folder.glob("*/models/*")}
    assert models
    fleets_command(settings, 1, "10m", Console(file=io.StringIO(), width=200))
    assert {file: file.stat().st_mtime_ns for file in folder.glob("*/models/*")} == models


def test_nothing_is_begun_after_the_budget(settings, tmp_path, monkeypatch):
    other = settings.model_copy(update={"state_folder": tmp_path})
    clock = iter(range(0, 10**6, 3600))  # an hour passes between two looks at it
    monkeypatch.setattr("dlfd_fleet.bench.fleets.command.time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr("dlfd_fleet.bench.fleets.seeds.time", SimpleNamespace(monotonic=lambda: next(clock)))
    with pytest.raises(JobError, match="The budget ended before anything was measured"):
        fleets_command(other, 2, "30m", Console(file=io.StringIO()))
    assert not (tmp_path / "bench-federated").exists()
