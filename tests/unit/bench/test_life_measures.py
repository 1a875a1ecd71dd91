"""What a fleet's life is measured by."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dlfd_fleet.bench.life.fleet import SITES, Life
from dlfd_fleet.bench.life.measures import Utility, append_row, attack_auc, read_rows, size_of, slope
from dlfd_fleet.bench.life.people import NUMBERS, ROWS, network, rows_of


def test_a_slope_has_its_error_and_too_few_values_have_none():
    found = slope([1.0, 2.0, 3.0, 4.0])
    assert (found.value, found.error) == (pytest.approx(1.0), pytest.approx(0.0, abs=1e-12))
    noisy = slope([0.0, 1.0, 0.0, 1.0, 0.0, 1.0])
    assert abs(noisy.value) < 2 * noisy.error
    assert slope([1.0, 2.0]) is None


def test_what_a_new_process_has_more_than_the_one_before_is_no_growth():
    found = slope([1.0, 2.0, 3.0, 101.0, 102.0, 103.0], [7, 7, 7, 8, 8, 8])
    assert found.value == pytest.approx(1.0)


def test_the_attack_ranks_small_losses_first():
    assert attack_auc(np.array([0.1, 0.2]), np.array([1.0, 2.0, 3.0])) == 1.0
    assert attack_auc(np.array([1.0, 2.0]), np.array([0.1])) == 0.0


def test_a_person_has_the_same_rows_whenever_they_are_drawn():
    one, both = rows_of(["ada"], seed=3), rows_of(["ben", "ada"], seed=3)
    np.testing.assert_array_equal(one["inputs"], both["inputs"][ROWS:])
    assert one["inputs"].shape == (ROWS, NUMBERS)
    assert network()(torch.from_numpy(one["inputs"])).shape == (ROWS, 3)


def test_every_site_leaves_in_its_turn_for_ten_erasures():
    away = [Life._away(number) for number in range(1, 8 * 25 + 1)]
    assert {len(each) for each in away} == {0, 1}
    for site in range(1, SITES + 1):
        assert sum(site in each for each in away) == 10


def test_rows_are_kept_and_other_columns_are_no_rows(tmp_path):
    file, row = tmp_path / "utility.csv", Utility(25, 0.9, 0.91, 0.52, 0.5)
    assert read_rows(file, Utility) == []
    append_row(file, row)
    append_row(file, row)
    assert [each["champion"] for each in read_rows(file, Utility)] == ["0.9", "0.9"]
    file.write_text("number,other\n1,2\n")
    assert read_rows(file, Utility) == []
    assert size_of(file, tmp_path / "nowhere") == file.stat().st_size / 2**20
