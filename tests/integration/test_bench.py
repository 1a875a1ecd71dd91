"""The bench on drawn faces: real training, real methods, a real MLflow store; run twice, it does nothing twice."""

import io
import json
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from rich.console import Console

from dlfd_fleet.bench.methods.command import methods_command
from dlfd_fleet.bench.methods.runner import Results
from dlfd_fleet.bench.results import log_to_mlflow
from dlfd_fleet.bench.rows import Row
from dlfd_fleet.settings import DataSettings, Settings
from tests.command import run_command
from tests.mlflow_client import client_of

TINY = {
    "data.image_size": 32,
    "data.validation_people": 3,
    "data.test_people": 3,
    "model.architecture": "mobilenet_v3_small",
    "bench.epochs": 1,
    "bench.batch_size": 8,
    "bench.relearning_epochs": 1,
    "bench.jobs": 1,
    "audit.resamples": 200,
    "unlearning.distancing_steps": 2,
    "unlearning.repair_epochs": 0.3,
    "unlearning.max_rounds": 1,
}


def bench(folder, *arguments):
    flags = [part for key, value in TINY.items() for part in ("--set", f"{key}={value}")]
    return run_command("bench", "methods", "--set", f"state_folder={folder}", *flags, *arguments)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    from dlfd_fleet.data import synthesize
    from dlfd_fleet.progress import ConsoleProgress

    folder = tmp_path_factory.mktemp("bench")
    silent = ConsoleProgress(Console(quiet=True))
    faces = synthesize(
        folder / "faces", people=14, images_per_person=4, image_size=32, classes=2, seed=0, progress=silent
    )
    arguments = ("--data", faces, "--methods", "dlfd,fine-tune", "--seeds", 1, "--budget", "9m")
    return folder, arguments, bench(folder / "state", *arguments)


def test_it_measures_every_method_beside_original_and_retrained(measured):
    folder, _, done = measured
    assert done.returncode == 0, done.stderr
    for word in ("original", "retrained", "DLFD", "fine-tune"):
        assert word in done.stdout
    rows = json.loads((folder / "state" / "bench" / "rows.json").read_text())
    assert [row["method"] for row in rows] == ["original", *3 * ["retrained"], *3 * ["dlfd"], "fine-tune"]
    assert [row["index"] for row in rows[4:]] == [0, 1, 2, 0]
    dlfd = rows[4]["metrics"]
    for name in (
        "loss_gap",
        "rmia_gap",
        "probe_gap",
        "relearned_gap",
        "neighbour_exposure",
        "times_lower_bound",
        "seconds",
    ):
        assert name in dlfd
    assert dlfd["peak_memory_ratio"] > 0.0
    assert rows[7]["settings"]["learning_rate"] in (0.01, 0.02, 0.05)


def test_a_second_run_goes_on_and_repeats_nothing(measured):
    folder, arguments, _ = measured
    rows = folder / "state" / "bench" / "rows"
    before = {file: file.stat().st_mtime_ns for file in rows.iterdir()}
    again = bench(folder / "state", *arguments)
    assert again.returncode == 0, again.stderr
    assert {file: file.stat().st_mtime_ns for file in rows.iterdir()} == before
    assert "training original" not in again.stdout


def test_faces_that_a_file_names_are_measured_and_the_heading_says_which(measured, tmp_path):
    folder, (_, faces, *options), _ = measured
    rows = folder / "state" / "bench" / "rows"
    before = set(rows.iterdir())
    file = tmp_path / "fleet.toml"
    file.write_text(f'[data]\nsource = "manifest"\nmanifest = "{faces}"\n')
    done = bench(folder / "state", *options, "--config", file)
    assert done.returncode == 0, done.stderr
    assert f"1 seeds, {faces.name}," in done.stdout
    assert set(rows.iterdir()) == before


def test_the_heading_names_no_manifest_that_was_not_measured(measured, tmp_path, monkeypatch):
    folder, (_, faces, *_), _ = measured
    rows = json.loads((folder / "state" / "bench" / "rows.json").read_text())
    results = Results(tuple(Row.model_validate(row) for row in rows), 0, ())
    monkeypatch.setattr("dlfd_fleet.bench.methods.command.run_bench", lambda *_: results)
    shown = Console(file=io.StringIO(), width=200)
    data = DataSettings(source="orl", manifest=faces)
    methods_command(Settings(state_folder=tmp_path, data=data), "all", 1, "1s", shown)
    assert "1 seeds, orl," in shown.file.getvalue()


def test_one_person_is_measured_without_a_probe_and_not_certified(measured):
    folder, (_, faces, *_), _ = measured
    one_person = ("--set", "bench.forget_share=0.05", "--data", faces, "--methods", "dlfd", "--seeds", 1)
    one_person += ("--set", "tracking.uri=http://127.0.0.1:9")  # nobody listens there
    done = bench(folder / "one", *one_person, "--budget", "5m")
    assert done.returncode == 0, done.stderr
    row = json.loads((folder / "one" / "bench" / "rows.json").read_text())[-1]
    assert row["verdict"]["outcome"] != "PASS"
    assert "loss_gap" in row["metrics"]
    assert "probe_gap" not in row["metrics"]
    assert row["settings"]["distancing_steps"] == 2


def test_mlflow_has_a_run_for_the_bench_and_one_for_each_method(measured):

    folder, _, _ = measured
    client = client_of(f"sqlite:///{folder / 'state' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("dlfd-fleet")
    runs = client.search_runs([experiment.experiment_id])
    with_scores = [run for run in runs if "rmia_auc" in run.data.metrics]
    steps = [[one.step for one in client.get_metric_history(run.info.run_id, "rmia_auc")] for run in with_scores]
    assert sorted(steps[:4]) == [[0], [0], [0, 1, 2], [0, 1, 2]]  # original, fine-tune, retrained and DLFD


def test_two_benches_of_one_second_are_two_runs(measured, monkeypatch):
    folder, _, _ = measured
    rows = json.loads((folder / "state" / "bench" / "rows.json").read_text())
    moment = datetime(2026, 11, 28, 12, 0, 0, tzinfo=UTC)
    monkeypatch.setattr("dlfd_fleet.bench.results.datetime", SimpleNamespace(now=lambda _: moment))
    for _ in range(2):
        log_to_mlflow(Settings(state_folder=folder / "state"), (Row.model_validate(rows[0]),))
    client = client_of(f"sqlite:///{folder / 'state' / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("dlfd-fleet").experiment_id])
    named = [run for run in runs if run.info.run_name.startswith("bench-20261128-120000")]
    assert len(named) == 2


def test_other_code_makes_other_rows_and_other_models(monkeypatch, tmp_path):
    from importlib.machinery import ModuleSpec

    from dlfd_fleet.bench.experiment import digest_of_code

    package = tmp_path / "room"
    package.mkdir()
    for name in ("__init__.py", "maths.py"):
        (package / name).write_text("x = 1")
    found = ModuleSpec("room", None, origin=str(package / "__init__.py"))
    monkeypatch.setattr("dlfd_fleet.bench.experiment.find_spec", lambda _: found)
    before = digest_of_code("room")
    digest_of_code.cache_clear()
    (package / "maths.py").write_text("x = 2")
    assert digest_of_code("room") != before
    digest_of_code.cache_clear()


def test_mistakes_end_with_2_before_any_work(measured, tmp_path):
    folder, arguments, _ = measured
    wrong = bench(tmp_path, "--data", folder / "none.csv")
    assert wrong.returncode == 2
    assert "There is no manifest" in wrong.stderr
    assert bench(tmp_path, *arguments[:2], "--methods", "nothing").returncode == 2
    assert bench(tmp_path, *arguments[:2], "--budget", "soon").returncode == 2
    assert not (tmp_path / "bench").exists()
