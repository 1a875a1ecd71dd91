"""Exact bounds of a share: scipy's own are the oracle, and they hold as often as they say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from dlfd_fleet.audit import Rate


@given(st.integers(1, 300), st.data(), st.floats(0.5, 0.999))
def test_bounds_are_those_of_scipy(tries, data, confidence):
    happened = data.draw(st.integers(0, tries))
    rate = Rate(happened=happened, tries=tries, confidence=confidence)
    expected = binomtest(happened, tries).proportion_ci(confidence, method="exact")
    assert (rate.low, rate.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert rate.low <= rate.value <= rate.high


@pytest.mark.parametrize("true", [0.02, 0.3, 0.9])
def test_bounds_miss_what_is_true_no_more_often_than_they_say(true):
    tries = 25
    rates = [Rate(happened=number, tries=tries, confidence=0.9) for number in range(tries + 1)]
    held = sum(binom.pmf(rate.happened, tries, true) for rate in rates if rate.low <= true <= rate.high)
    assert held >= 0.9


def test_of_no_tries_nothing_is_known_and_a_rate_survives_its_json():
    nothing = Rate(happened=0, tries=0, confidence=0.95)
    assert (nothing.value, nothing.low, nothing.high, str(nothing)) == (None, 0.0, 1.0, "not known")
    some = Rate(happened=19, tries=20, confidence=0.95)
    assert str(some) == "95% [75%, 100%] (19 of 20)"
    assert Rate.model_validate_json(some.model_dump_json()) == some
