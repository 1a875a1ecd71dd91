"""A fleet lives through a few erasures, is killed in between, and goes on: nobody is lost and nobody comes back."""

from __future__ import annotations

import io
from unittest import mock

import pytest
from rich.console import Console

from dlfd_fleet.bench.life import fleet as of_life
from dlfd_fleet.bench.life.command import life_command
from dlfd_fleet.bench.life.fleet import Life
from dlfd_fleet.bench.life.measures import Erasure, Utility, read_rows
from dlfd_fleet.exceptions import JobError
from dlfd_fleet.settings import Settings


@pytest.fixture
def settings(tmp_path, monkeypatch):
    small = {"SITES": 2, "_PEOPLE": 24, "_UNSEEN": 4, "_STRANGERS": 50, "_MOST_ASK": 1, "_BETWEEN_TRAININGS": 1}
    for name, value in (small | {"_JOIN": 2, "_COPY_COMES_BACK": 2}).items():
        monkeypatch.setattr(of_life, name, value)
    return Settings(
        state_folder=tmp_path,
        training={"rounds": 1, "local_epochs": 2},
        erasure={"rounds": 1, "relearning_rounds": 0, "largest_forget_share": 1.0},
        audit={"resamples": 200, "min_gain_over_majority": -1.0, "max_accuracy_drop": 1.0, "max_retain_drop": 1.0},
    )


def test_a_life_that_was_killed_goes_on_and_nobody_is_lost_or_comes_back(settings, tmp_path):
    # After the erasure, and after its release was published; both before its row.
    for place, name in ((Life, "_measured"), (of_life, "append_row")):
        with mock.patch.object(place, name, side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
            life_command(settings, 2, "1h", Console(file=io.StringIO()))
    out = io.StringIO()
    life_command(settings, 2, "1h", Console(file=out, width=120))
    assert "people who were lost" in out.getvalue()
    (folder,) = (tmp_path / "bench-life").iterdir()
    rows = read_rows(folder / "erasures.csv", Erasure)
    assert [row["number"] for row in rows] == ["1", "2"]
    assert {(row["lost"], row["returned"], row["wrong_devices"]) for row in rows} == {("0", "0", "0")}
    assert rows[-1]["forgotten"] == rows[-1]["asked"] == "2"
    assert len(read_rows(folder / "utility.csv", Utility)) == 1


def test_a_budget_that_is_over_at_once_says_so(settings):
    with mock.patch.object(Life, "go_on"), pytest.raises(JobError, match="ended before the first erasure"):
        life_command(settings, 2, "1s", Console(file=io.StringIO()))
