"""How far people are from models that never saw them: what the number means."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm, ttest_ind

from dlfd_fleet.audit import ReferenceLosses, shift_from_out
from dlfd_fleet.audit.shift import confidence
from dlfd_fleet.exceptions import DataError

PEOPLE, IMAGES, UNSEEN = 12, 3, 15


def losses(confidences):
    """Turn confidences back into losses: -log of a logistic."""
    return np.logaddexp(0.0, -np.asarray(confidences))


def world(memory, seed=0, knows=0.0):
    """Four half models and a model that shows this share of what members show; ``knows`` it is surer of everybody."""
    rng = np.random.default_rng(seed)
    person, unseen = np.repeat(np.arange(PEOPLE), IMAGES), np.repeat(np.arange(UNSEEN), IMAGES)
    hard, hard_unseen = rng.normal(1.0, 1.0, len(person)), rng.normal(1.0, 1.0, len(unseen))
    trained = np.stack([person % 2 == half for half in (0, 1, 0, 1)])
    references = ReferenceLosses(losses(hard + 2.0 * trained), trained)
    others = ReferenceLosses(losses(np.tile(hard_unseen, (4, 1))), np.zeros((4, len(unseen)), dtype=bool))
    model, of_unseen = losses(hard + 2.0 * memory + knows), losses(hard_unseen + knows)
    return model, references, person, of_unseen, others, unseen


@pytest.mark.parametrize("memory", [0.0, 0.5, 1.0])
def test_a_member_is_all_of_what_members_have_and_a_stranger_nothing(memory):
    shift = shift_from_out(*world(memory))
    assert shift.left == pytest.approx(memory, abs=1e-6)
    assert shift.of_members == pytest.approx(2.0, abs=1e-6)
    assert shift.people == PEOPLE


@given(st.floats(-2.0, 2.0), st.integers(0, 5))
def test_a_model_that_is_surer_of_everybody_does_not_remember_more(knows, seed):
    alike = shift_from_out(*world(0.3, seed))
    assert shift_from_out(*world(0.3, seed, knows)).value == pytest.approx(alike.value, abs=1e-6)


def test_a_loss_above_that_of_models_that_never_saw_them_is_below_zero():
    assert shift_from_out(*world(-0.5)).left == pytest.approx(-0.5, abs=1e-6)


def test_answers_that_are_not_known_are_left_out():
    model, references, person, *unseen = world(0.5)
    loss = references.loss.copy()
    loss[:, person == 0] = np.nan  # joined later: no model has answered
    loss[0, :] = np.nan  # one that was lost
    shift = shift_from_out(model, ReferenceLosses(loss, references.trained), person, *unseen)
    assert shift.people == PEOPLE - 1
    assert shift.value == pytest.approx(1.0, abs=1e-6)


def test_without_a_model_that_never_saw_them_there_is_nothing_to_compare():
    model, references, person, *unseen = world(0.5)
    everybody = ReferenceLosses(references.loss, np.ones_like(references.trained))
    with pytest.raises(DataError, match="never saw"):
        shift_from_out(model, everybody, person, *unseen)


def test_people_count_alike_however_many_images_they_have():
    model, references, person, *unseen = world(0.0)
    model = model.copy()
    model[person == 0] = losses(confidence(model[person == 0]) + 6.0)
    many = np.concatenate([np.arange(len(person)), *[np.flatnonzero(person == 0)] * 9])
    more = ReferenceLosses(references.loss[:, many], references.trained[:, many])
    assert shift_from_out(model[many], more, person[many], *unseen).value == pytest.approx(
        shift_from_out(model, references, person, *unseen).value
    )


def test_the_standard_error_is_that_of_two_samples_of_people():
    model, references, person, of_unseen, others, unseen = world(0.0)
    drawn = [np.random.default_rng(seed).normal(0.0, 1.0, count) for seed, count in enumerate((PEOPLE, UNSEEN))]
    told = (
        losses(confidence(loss) + each[of])
        for loss, each, of in ((model, drawn[0], person), (of_unseen, drawn[1], unseen))
    )
    shift = shift_from_out(next(told), references, person, next(told), others, unseen)
    bound = ttest_ind(*drawn).confidence_interval(0.95)
    assert 2 * norm.ppf(0.975) * shift.standard_error == pytest.approx(bound.high - bound.low, rel=1e-4)


def test_a_single_person_is_never_seen_or_remembered_only_beyond_what_others_differ_by():
    model, references, person, of_unseen, others, unseen = world(0.0)
    loud = losses(confidence(of_unseen) + np.random.default_rng(1).normal(0.0, 2.0, UNSEEN)[unseen])
    rows = person == 0
    one = ReferenceLosses(references.loss[:, rows], references.trained[:, rows])
    for memory, sure in ((1.0, False), (4.0, True)):
        mine = losses(confidence(model[rows]) + 2.0 * memory)
        shift = shift_from_out(mine, one, person[rows], loud, others, unseen)
        assert shift.left > 0.1
        assert (shift.left_for_sure > 0.1) == sure


def test_of_a_person_and_another_never_trained_on_nothing_is_sure():
    model, references, person, of_unseen, others, unseen = world(2.0)
    mine, other = person == 0, unseen == 0
    shift = shift_from_out(
        model[mine],
        ReferenceLosses(references.loss[:, mine], references.trained[:, mine]),
        person[mine],
        of_unseen[other],
        ReferenceLosses(others.loss[:, other], others.trained[:, other]),
        unseen[other],
    )
    assert shift.left == pytest.approx(2.0, abs=1e-6)
    assert shift.left_for_sure == -np.inf
