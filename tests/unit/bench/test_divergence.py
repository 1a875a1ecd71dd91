"""How far margins of unlearned models are from those of retrained ones: properties, and scipy as the oracle."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import entropy, norm

from dlfd_fleet.bench.margins.divergence import BINS, klom, told_apart
from dlfd_fleet.exceptions import DataError

MARGINS = arrays(np.float64, st.tuples(st.integers(2, 9), st.just(4)), elements=st.floats(-13.0, 13.0, width=16))


@given(MARGINS, MARGINS)
def test_the_divergence_is_that_of_histograms_over_the_range_of_both(model, retrained):
    for image, found in enumerate(klom(model, retrained)):
        both = np.concatenate([model[:, image], retrained[:, image]])
        if both.min() == both.max():
            assert found == pytest.approx(0.0)
            continue
        shares = []
        for side in (model, retrained):
            scaled = (side[:, image] - both.min()) / (both.max() - both.min())
            counts, _ = np.histogram(scaled * BINS, np.arange(BINS + 1.0))
            shares.append(np.maximum(counts / len(side), 1e-5))
        assert found == pytest.approx(entropy(*shares), abs=1e-9)


@given(MARGINS)
def test_a_distribution_does_not_diverge_from_itself(margins):
    assert klom(margins, margins[::-1]) == pytest.approx(np.zeros(4), abs=1e-12)


@given(MARGINS, st.integers(0, 2**16))
def test_the_order_of_models_does_not_matter(margins, seed):
    other = np.random.default_rng(seed).normal(size=(5, 4))
    assert klom(margins, other) == pytest.approx(klom(margins[::-1], other[::-1]))


def test_models_that_are_made_alike_are_told_apart_by_chance_alone():
    draw = np.random.default_rng(0).normal(size=(40, 500))
    assert told_apart(draw[:20], draw[20:]).mean() == pytest.approx(0.5, abs=0.02)


def test_models_that_differ_are_told_apart_as_often_as_the_best_rule_can():
    random, lead = np.random.default_rng(1), 1.5
    told = told_apart(random.normal(size=(60, 400)) + lead, random.normal(size=(60, 400)))
    assert told.mean() == pytest.approx(norm.cdf(lead / 2.0), abs=0.02)


def test_the_images_of_a_person_together_tell_more_than_each_by_itself():
    random = np.random.default_rng(2)
    one, other = random.normal(size=(20, 60)) + 0.8, random.normal(size=(20, 60))
    people = np.repeat(np.arange(6), 10)
    told = told_apart(one, other, people)
    assert told.shape == (6,)
    assert told.mean() > told_apart(one, other).mean() + 0.1


@pytest.mark.parametrize("compare", [klom, told_apart])
def test_margins_of_other_images_or_of_too_few_models_are_refused(compare):
    with pytest.raises(DataError, match="different images"):
        compare(np.zeros((3, 4)), np.zeros((3, 5)))
    with pytest.raises(DataError, match="models of each kind or more"):
        compare(np.zeros((3, 4)), np.zeros((0, 4)))
