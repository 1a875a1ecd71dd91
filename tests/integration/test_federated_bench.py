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

METHODS = {"dlfd", "DLFD int8", "DLFD int8 one round", "DLFD averaged with all"}
METHODS |= {"continued FedAvg", "gradient ascent", "NoT", "FedEraser", "dlfd+references"}


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
        references={"models": 2},
        audit={"resamples": 200},
        bench={"relearning_rounds": 1},
        # Nobody listens there: what the bench tells MLflow is tested beside the other bench.
        tracking={"uri": "http://127.0.0.1:9"},
    )


@pytest.fixture(scope="module")
def folder(settings):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dlfd_fleet.bench.fleets.seeds.simulate", answer_here)
        fleets_command(settings, 1, "10m", Console(file=io.StringIO(), width=200), ",".join(sorted(METHODS)))
    return settings.state_folder / "bench-federated"


def test_every_method_is_weighed_beside_retraining(folder):
    with (folder / "table.csv").open() as stream:
        table = {row["method"]: row for row in csv.DictReader(stream)}
    assert table.keys() == METHODS | {"original", "retrained"}
    for name in METHODS:
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
    assert {float(table[name]["stored_megabytes"]) for name in METHODS - {"FedEraser"}} == {0.0}


def test_what_is_sent_and_worked_is_counted_by_direction_and_phase(folder):
    with (folder / "table.csv").open() as stream:
        table = {row["method"]: row for row in csv.DictReader(stream)}
    with (folder / "costs.csv").open() as stream:
        costs = {(row["method"], row["phase"]): row for row in csv.DictReader(stream)}
    with_references = table["dlfd+references"]
    # Two sites unlearn; audits and what further training brings back are counted, too, and by themselves.
    assert {"distancing", "audit-unlearned", "relearn", "audit-relearned", "audit-file", "in all"} <= {
        phase for method, phase in costs if method == "dlfd+references"
    }
    for what in ("bytes", "computation"):
        shares = [
            float(with_references[f"share_{of}_{what}"]) for of in ("of_retraining", "with_audits", "with_references")
        ]
        assert 0.0 < shares[0] < shares[1] < shares[2]
        assert table["dlfd"][f"share_with_references_{what}"] == ""
    for name in METHODS:
        sent, received = float(table[name]["megabytes_to_sites"]), float(table[name]["megabytes_from_sites"])
        assert sent + received == pytest.approx(3 * float(table[name]["megabytes_a_site"]))
        assert 0.0 < float(table[name]["most_megabytes_of_a_site"]) < sent + received
        assert float(table[name]["site_seconds"]) > float(table[name]["longest_site_seconds"]) > 0.0
    # Sites hold the original, so that a reference model goes to them as a difference in float16.
    whole, half = (
        float(costs[of]["MB to sites"]) / float(costs[of]["rounds or steps"])
        for of in (("retrained", "in all"), ("references", "reference"))
    )
    assert half < 0.6 * whole
    # A retraining is no longer than the original's training.
    assert 1.0 <= float(costs["retrained", "in all"]["rounds or steps"]) <= 2.0


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
    models = {file: file.stat().st_mtime_ns for file in folder.rglob("models/*")}
    assert models
    fleets_command(settings, 1, "10m", Console(file=io.StringIO(), width=200), ",".join(METHODS))
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("models/*")} == models
    # Another way to ask goes on from the same original, and has tables of its own.
    bench = settings.bench.model_copy(update={"requests": ("1@1", "4@2")})
    out = io.StringIO()
    fleets_command(settings.model_copy(update={"bench": bench}), 1, "0.000001s", Console(file=out, width=200), "dlfd")
    assert "1 person asks at 1 site, 1 seeds: nothing is measured yet" in out.getvalue()
    assert (folder / "4-at-2" / "table.csv").exists()
    assert not (folder / "1-at-1").exists()


def test_nothing_is_begun_after_the_budget(settings, tmp_path, monkeypatch):
    other = settings.model_copy(update={"state_folder": tmp_path})
    clock = iter(range(0, 10**6, 3600))  # an hour passes between two looks at it
    monkeypatch.setattr("dlfd_fleet.bench.fleets.command.time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr("dlfd_fleet.bench.fleets.seeds.time", SimpleNamespace(monotonic=lambda: next(clock)))
    with pytest.raises(JobError, match="The budget ended before anything was measured"):
        fleets_command(other, 2, "30m", Console(file=io.StringIO()))
    assert not (tmp_path / "bench-federated").exists()
