"""How long and how often each method of the bench runs: one limit, or three of it, and three draws a seed."""

from importlib import invalidate_caches

import numpy as np
import pytest

from dlfd_fleet.audit import ATTACKS, Attack, MembershipScores, Role
from dlfd_fleet.bench.cost import PassSeconds
from dlfd_fleet.bench.entry_code import code_of_module
from dlfd_fleet.bench.experiment import deal_experiment
from dlfd_fleet.bench.methods.comparison import measure_method, row_key
from dlfd_fleet.bench.models import ExperimentModels
from dlfd_fleet.data.manifest import read_manifest
from dlfd_fleet.settings import Settings
from dlfd_fleet.unlearning import METHODS, Candidate, Method, dlfd
from tests.small_networks import small_networks


@pytest.fixture(autouse=True)
def fresh_registry():
    code_of_module.cache_clear()
    METHODS.reload()
    ATTACKS.reload()
    yield
    METHODS.reload()
    ATTACKS.reload()


@pytest.fixture
def models(synthetic_faces, tmp_path):
    settings = Settings(
        data={"image_size": 32, "validation_people": 3, "test_people": 3},
        model={"architecture": "mobilenet_v3_small"},
        bench={"epochs": 1, "batch_size": 8, "relearning_epochs": 1, "time_limit": 0.5},
        unlearning={"distancing_steps": 1, "repair_epochs": 0.1, "max_rounds": 1},
        audit={"resamples": 200},
    )
    with small_networks():
        yield ExperimentModels(deal_experiment(read_manifest(synthetic_faces), settings, 0), tmp_path / "models")


def test_a_candidate_has_the_limit_of_all_or_some_times_of_it(models, monkeypatch):
    monkeypatch.setattr(ExperimentModels, "measure_seconds", lambda _: PassSeconds(1.0, 0.5, 0.2))
    limits = []

    def watched(problem):
        limits.append(problem.settings.max_seconds)
        return dlfd(problem)

    for time in (1.0, 3.0):
        METHODS.reload()
        METHODS.register(Method("watched", "watched", "none", (Candidate(watched, time=time),)))
        row = measure_method(models, "watched")
        assert row.settings.get("time", 1.0) == time
    assert limits[0] == pytest.approx(0.5 * models.retraining_seconds(models.measure_seconds()))
    assert limits[1] == pytest.approx(3.0 * limits[0])


def test_dlfd_is_there_with_the_time_of_one_setting_and_of_a_peers_three():
    times = {name: [candidate.time for candidate in method.candidates] for name, method in METHODS.items()}
    assert times["dlfd"] == [1.0]
    assert times["dlfd-longer"] == [sum(times["fine-tune"])]


def test_each_run_has_random_numbers_of_its_own_and_says_which_it_is(models):
    seeds = []

    def watched(problem):
        seeds.append(problem.seed)
        return dlfd(problem)

    METHODS.register(Method("watched", "watched", "none", (Candidate(watched),)))
    rows = [measure_method(models, "watched", index) for index in (0, 1)]
    assert [row.index for row in rows] == [0, 1]
    assert seeds[0] == models.experiment.seed != seeds[1]


def test_all_methods_have_three_draws_a_seed():
    assert {method.runs * len(method.candidates) for method in METHODS.values()} == {3}


@pytest.mark.parametrize(("page", "module"), [("method.md", "forget_head"), ("attack.md", "confidence_attack")])
def test_a_row_of_an_entry_whose_code_was_edited_is_measured_anew(install_how_to, tmp_path, page, module):
    install_how_to(page)
    before = row_key(Settings(), "fresh-head", "faces")
    code_of_module.cache_clear()
    assert row_key(Settings(), "fresh-head", "faces") == before
    code_of_module.cache_clear()
    with (tmp_path / f"{module}.py").open("a") as code:
        code.write("# edited\n")
    assert row_key(Settings(), "fresh-head", "faces") != before


def test_the_code_of_an_entry_is_that_of_its_whole_package(tmp_path, monkeypatch):
    package = tmp_path / "unlearners"
    package.mkdir()
    for name in ("__init__.py", "noise.py", "maths.py"):
        (package / name).write_text("x = 1")
    monkeypatch.syspath_prepend(tmp_path)
    invalidate_caches()
    before = code_of_module("unlearners.noise")
    code_of_module.cache_clear()
    (package / "maths.py").write_text("x = 2")
    assert code_of_module("unlearners.noise") != before
    assert code_of_module("dlfd_fleet.unlearning") == ""


def test_a_faulty_attack_is_named_and_left_out_and_the_row_stays(models):
    def no_number(model, references):
        rows = model.samples.of(Role.FORGET, Role.TEST)
        return MembershipScores(rows.loss * np.nan, rows.of_role(Role.FORGET), rows.person)

    ATTACKS.register(Attack("faulty", "faulty", "none", no_number))
    METHODS.register(Method("watched", "watched", "none", (Candidate(dlfd),)))
    row = measure_method(models, "watched")
    assert row.failed_attacks == {"faulty": "DataError: An attack gave a score that is not finite."}
    assert "loss_gap" in row.metrics
    assert not [name for name in row.metrics if name.startswith("faulty")]
