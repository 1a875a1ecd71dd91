"""The bench's arithmetic and its files, from rows that are made up."""

import csv
import io
import json
import math

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from dlfd_fleet.audit import Outcome, Verdict
from dlfd_fleet.bench.cost import PassSeconds
from dlfd_fleet.bench.methods.runner import choose_methods
from dlfd_fleet.bench.report import Mean, console_table, distances, summarise, write_report
from dlfd_fleet.bench.results import parse_duration, show_results
from dlfd_fleet.bench.rows import RETRAINED, Row
from dlfd_fleet.exceptions import ConfigurationError, JobError
from dlfd_fleet.settings import Settings
from dlfd_fleet.unlearning import METHODS, Cost


def row(method, seed, index=0, gap=0.0, **metrics):
    shared = dict.fromkeys(distances(), gap) | {"test_accuracy": 0.9, "loss_auc": 0.5}
    outcome = Verdict(outcome=Outcome.INCONCLUSIVE, reasons=("too few",), margin=0.1, power=0.2)
    losses = {role: [0.1, 0.5, 2.0] for role in ("forget", "retain", "test")}
    return Row(method=method, seed=seed, index=index, metrics=shared | metrics, verdict=outcome, losses=losses)


def test_means_have_students_bounds():
    values = [0.1, 0.4, 0.35, 0.2]
    mean = Mean.of(values)
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert mean.value == pytest.approx(np.mean(values))
    assert mean.half_width == pytest.approx((high - low) / 2)
    assert math.isnan(Mean.of([0.3]).half_width)


def test_distances_are_averaged_without_their_signs():
    """Too much in one seed does not make up for too little in another."""
    (summary,) = summarise([row("dlfd", 0, gap=0.2), row("dlfd", 1, gap=-0.2)])
    assert summary.means["loss_gap"].value == pytest.approx(0.0)
    assert summary.means["abs_loss_gap"].value == pytest.approx(0.2)


def test_retrained_models_of_one_seed_count_as_one():
    rows = [row(RETRAINED, 0, index, gap=gap) for index, gap in enumerate((0.1, 0.2, 0.3))]
    (summary,) = summarise([*rows, row(RETRAINED, 1, gap=0.4)])
    assert summary.seeds == 2
    assert summary.means["abs_loss_gap"].value == pytest.approx((0.2 + 0.4) / 2)


def test_the_files_hold_every_row_and_the_page_escapes(tmp_path):
    rows = [row("dlfd", 0), row("fine-tune", 0, gap=0.3), row(RETRAINED, 0), row("original", 0, gap=0.5)]
    page = write_report(rows, summarise(rows), tmp_path, "faces <1>")
    text = page.read_text(encoding="utf-8")
    assert "faces &lt;1&gt;" in text
    assert text.count("data:image/png;base64,") == 3
    assert len(json.loads((tmp_path / "rows.json").read_text())) == 4
    table = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [line["method"] for line in table] == ["original", RETRAINED, "dlfd", "fine-tune"]
    assert float(table[3]["abs_loss_gap"]) == pytest.approx(0.3)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("1.5h", 5400)])
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "m", "-5m", "0s", "1d"])
def test_a_wrong_duration_is_one_sentence(text):
    with pytest.raises(ConfigurationError, match="is no duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("name", "title"),
    [("dlfd", "DLFD"), ("dlfd+own", "DLFD + own answers"), ("not+references", "NoT + references")],
)
def test_a_line_says_what_its_method_aims_at(name, title):
    (summary,) = summarise([row(name, 0, gap=0.2)])
    assert summary.title == title


def test_methods_are_chosen_by_name():
    settings, without = Settings(), Settings(references={"models": 0})
    assert choose_methods("dlfd, fine-tune+references,dlfd", settings) == ("dlfd", "fine-tune+references")
    aiming = {"dlfd", "dlfd-longer", "fine-tune", "cf-k", "eu-k", "unsir", "msg", "not"}
    aims = {name for name in choose_methods("all", settings) if "+" in name}
    assert aims == {f"{one}+{aim}" for one in aiming for aim in ("own", "references")}
    assert set(choose_methods("all", without)) == {*METHODS, *(f"{one}+own" for one in aiming)}
    assert choose_methods("dlfd+own", without) == ("dlfd+own",)
    with pytest.raises(ConfigurationError, match="There is no method 'nothing'"):
        choose_methods("nothing", settings)
    with pytest.raises(ConfigurationError, match="'ssd' does not train on the retain set at its end"):
        choose_methods("ssd+references", settings)
    with pytest.raises(ConfigurationError, match="'ssd' does not train on the retain set at its end"):
        choose_methods("ssd+own", settings)
    with pytest.raises(ConfigurationError, match=r"references\.models is 0"):
        choose_methods("dlfd+references", without)


def test_the_floor_adds_up_the_passes():
    cost = Cost(seconds=9.0, monitor_seconds=0.0, forward_images=100, backward_images=60, noise_images=20)
    least = PassSeconds(train=1.0, noise=0.5, predict=0.1).least_seconds(cost)
    assert least == pytest.approx(40 * 1.0 + 20 * 0.5 + 40 * 0.1)


@pytest.mark.parametrize(("width", "bounds"), [(100, False), (160, True)])
def test_the_table_shows_every_number_in_full_on_a_terminal(width, bounds):
    keys = ("balanced_accuracy", "forget_accuracy", "nomus", "share_of_retraining_time", "test_accuracy")
    rows = [row("dlfd-released", seed, gap=0.1 * seed, **dict.fromkeys(keys, 0.9 + seed / 50)) for seed in (0, 1)]
    console = Console(file=io.StringIO(), width=width)
    console.print(console_table(summarise(rows), "faces", bounds=bounds))
    shown = console.file.getvalue()
    assert "…" not in shown
    assert shown.count("0.910 ±0.127" if bounds else "0.910") == len(keys)
    assert ("±" in shown) is bounds


@pytest.mark.parametrize(
    ("failures", "words"),
    [((), "The budget ended before anything was measured"), (("mine, seed 0: KeyError: 1",), "Everything .* failed")],
)
def test_without_a_row_it_is_said_whether_all_failed_or_the_budget_ended(tmp_path, failures, words):
    shown = Console(file=io.StringIO(), width=200)
    with pytest.raises(JobError, match=words):
        show_results(Settings(), (), 3, tmp_path, "Methods", shown, failures)
    assert shown.file.getvalue() == "".join(f"Failed: {failure}\n" for failure in failures)


def test_an_attack_that_failed_is_named_under_the_table_and_has_no_column(tmp_path, monkeypatch):
    monkeypatch.setattr("dlfd_fleet.bench.results.log_to_mlflow", lambda *_: None)
    rows = [row("dlfd", 0), row("dlfd", 1)]
    lame = {key: value for key, value in rows[0].metrics.items() if not key.startswith("rmia")}
    rows = [one.model_copy(update={"metrics": lame, "failed_attacks": {"rmia": "KeyError: 'f'"}}) for one in rows]
    shown = Console(file=io.StringIO(), width=200)
    show_results(Settings(), tuple(rows), 0, tmp_path, "Methods", shown)
    assert "The attack 'rmia' failed on 2 of 2 rows, which do not have it: KeyError: 'f'" in shown.file.getvalue()
    assert "|ΔRMIA|" not in shown.file.getvalue()
    assert "|Δloss|" in shown.file.getvalue()
