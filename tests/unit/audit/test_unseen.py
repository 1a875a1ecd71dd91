"""Reference models are too poor only where several people show it: of few people, one must not decide."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlfd_fleet.audit import least_drop

MOST = 0.1


def drop_of(images):
    """Of each person, pairs of what the model and what the reference models say right of an image."""
    person = np.repeat(range(len(images)), [len(each) for each in images])
    model, references = np.array([pair for each in images for pair in each], dtype=float).reshape(-1, 2).T
    return least_drop(model, references, person)


def person(model, references, images=10):
    """A person of so many images, of which each is right about so many."""
    return [(number < model, number < references) for number in range(images)]


@pytest.mark.parametrize("people", [2, 3, 5, 20])
@pytest.mark.parametrize("images", [1, 2, 10])
def test_a_single_image_decides_nothing(people, images):
    alike = [person(images, images, images) for _ in range(people)]
    assert drop_of([person(images, images - 1, images), *alike[1:]]) <= MOST


@pytest.mark.parametrize("people", [1, 2, 3, 5, 20])
def test_a_single_person_decides_nothing(people):
    assert drop_of([person(10, 0), *([person(10, 10)] * (people - 1))]) <= MOST


def test_two_people_must_be_nothing_but_wrong():
    assert drop_of([person(10, 3), person(10, 2)]) <= MOST
    assert drop_of([person(10, 0), person(10, 0)]) > MOST


def test_five_people_show_what_is_plainly_worse():
    assert drop_of([person(9, 6), person(8, 5), person(10, 6), person(9, 7), person(8, 4)]) > MOST
    assert drop_of([person(9, 8), person(8, 8), person(10, 9), person(9, 9), person(8, 7)]) <= MOST


def test_good_references_of_twenty_people_are_never_too_poor():
    """As measured on 200 faces: 0.90 beside 0.85, on eight images of each of 20 people."""
    generator = np.random.default_rng(0)
    for _ in range(200):
        right = generator.random((20, 8)) < generator.beta(9, 1, (20, 1))
        worse = right & (generator.random((20, 8)) < 0.95)
        who = np.repeat(range(20), 8)
        assert least_drop(right.ravel().astype(float), worse.ravel().astype(float), who) <= MOST


def test_nobody_is_no_evidence():
    assert least_drop(np.zeros(0), np.zeros(0), np.zeros(0, dtype=np.int64)) == 0.0


@given(st.lists(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=6), min_size=1, max_size=12))
def test_it_is_never_more_than_what_was_counted(images):
    drops = [np.mean([float(model) - float(references) for model, references in each]) for each in images]
    assert drop_of(images) <= max(0.0, np.mean(drops)) + 1e-9
