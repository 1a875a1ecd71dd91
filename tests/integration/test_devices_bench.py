"""The device bench on drawn faces: a trained model in each format, timed and attacked in processes of their own."""

from __future__ import annotations

import csv
import io
import json

import pytest
from rich.console import Console

from dlfd_fleet.bench.devices.command import devices_command
from dlfd_fleet.bench.devices.files import ways_to_run
from dlfd_fleet.bench.devices.report import DeviceRow, console_table
from dlfd_fleet.data import synthesize
from dlfd_fleet.plain_text import PlainConsole
from dlfd_fleet.progress import ConsoleProgress
from dlfd_fleet.settings import ExportSettings, Settings
from tests.mlflow_client import client_of


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("devices")
    silent = ConsoleProgress(Console(quiet=True))
    faces = synthesize(
        folder / "faces", people=14, images_per_person=4, image_size=32, classes=2, seed=0, progress=silent
    )
    settings = Settings(
        state_folder=folder,
        data={"source": "manifest", "manifest": faces, "image_size": 32, "validation_people": 3, "test_people": 3},
        model={"architecture": "mobilenet_v3_small"},
        bench={"epochs": 1, "batch_size": 8, "device_rounds": 2, "device_predictions": 2},
        audit={"resamples": 200},
        unlearning={"distancing_steps": 2, "repair_epochs": 0.3, "max_rounds": 1},
        # A network that hardly learned anything answers differently to the smallest change; fp16 is to be refused.
        export={"parity_tolerance": 0.05, "int8_agreement": 0.0, "int8_accuracy_drop": 1.0, "fp16_tolerance": 1e-9},
    )
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", "/nowhere/c++")  # without a compiler, torch.compile gives its reason at once
        devices_command(settings, Console(file=out, width=100))
    return folder, out.getvalue()


def rows_of(state):
    return {(row["way"], row["threads"]): row for row in json.loads((state / "bench-devices/rows.json").read_text())}


def test_every_way_is_timed_weighed_and_attacked_with_one_and_two_threads(measured):
    state, out = measured
    rows = rows_of(state)
    assert rows.keys() == {
        (way, threads)
        for way in ("torch", "torch_channels_last", "torch_compile", "fp32", "fp16", "int8", "ort")
        for threads in (1, 2)
    }
    for way in ("torch", "torch_channels_last", "fp32", "int8", "ort"):
        figures = rows[way, 2]["metrics"]
        for name in ("latency_p50_ms", "latency_p95_ms", "images_a_second", "load_seconds", "resident_bytes"):
            assert figures[name] > 0.0
        for name in ("test_accuracy", "mia_auc", "forgetting_score", "speed_beside_torch"):
            assert name in figures
        assert ("original_mia_auc" in figures) is (way != "torch_channels_last")
        assert rows[way, 1]["verdict"] in ("PASS", "FAIL", "INCONCLUSIVE")
    fp32, int8, torch = (rows[way, 1]["metrics"] for way in ("fp32", "int8", "torch"))
    # The same model, whoever runs it; and no torch where a file is run.
    assert fp32["agreement"] > 0.9
    assert fp32["mia_auc"] == pytest.approx(torch["mia_auc"], abs=0.05)
    assert int8["size_bytes"] < 0.4 * fp32["size_bytes"]
    assert fp32["resident_bytes"] < 0.6 * torch["resident_bytes"]
    assert fp32["speed_beside_fp32"] == torch["speed_beside_torch"] == 1.0
    assert "int8 is at least twice as fast as fp32, 2 threads" in out


def test_what_does_not_work_here_is_named_with_its_reason(measured):
    state, out = measured
    rows = rows_of(state)
    assert rows["torch_compile", 1]["metrics"] == {}
    assert "No working C++ compiler" in rows["torch_compile", 1]["note"]
    assert "export.fp16_tolerance" in rows["fp16", 2]["note"]
    assert "No torch.compile: " in out


def test_table_page_plot_and_mlflow_say_the_same(measured):
    state, _ = measured
    folder, rows = state / "bench-devices", rows_of(state)
    with (folder / "table.csv").open() as stream:
        table = {(line["way"], int(line["threads"])): line for line in csv.DictReader(stream)}
    assert table.keys() == rows.keys()
    assert float(table["int8", 1]["latency_p50_ms"]) == rows["int8", 1]["metrics"]["latency_p50_ms"]
    page = (folder / "report.html").read_text()
    assert "data:image/png;base64," in page
    assert f"{rows['int8', 1]['metrics']['latency_p50_ms']:.2f}" in page
    client = client_of(f"sqlite:///{state / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("dlfd-fleet")
    values = [
        point.value
        for run in client.search_runs([experiment.experiment_id])
        if "size_beside_fp32" in run.data.metrics
        for point in client.get_metric_history(run.info.run_id, "latency_p50_ms")
    ]
    assert sorted(values) == sorted(row["metrics"]["latency_p50_ms"] for row in rows.values() if row["metrics"])


def test_the_formats_that_somebody_has_set_are_run_and_all_of_them_otherwise():
    torch = ("torch", "torch_channels_last", "torch_compile")
    assert ways_to_run(ExportSettings(formats=("fp32", "int8"))) == (*torch, "fp32", "int8")
    assert ways_to_run(ExportSettings()) == (*torch, "fp32", "fp16", "int8", "ort")


def test_each_reason_under_the_table_has_a_line_of_its_own():
    shown = PlainConsole(file=io.StringIO(), width=160)
    shown.print(console_table([DeviceRow(way=way, threads=1, note="why") for way in ("fp16", "ort")], "heading"))
    lines = [line.strip() for line in shown.file.getvalue().splitlines()]
    assert lines[-2:] == ["No fp16: why", "No ort: why"]
