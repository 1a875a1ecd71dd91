"""Equivalence with retraining: paired, two-sided, honest about how little few people can say."""

import numpy as np
import pytest
from test_attacks import model, world

from dlfd_fleet.audit import (
    AttackComparison,
    Difference,
    Outcome,
    Role,
    accuracy_difference,
    auc_difference,
    evaluate,
    judge_beside_retrained,
    loss_attack,
)
from dlfd_fleet.exceptions import DataError
from dlfd_fleet.settings import AuditSettings

SETTINGS = AuditSettings(margin=0.10, max_accuracy_drop=0.02)


def differences(memory, seed=0, people=10, references=3, difficulty=1.5):
    shared = world(seed, people=people, difficulty=difficulty)
    retrained = [loss_attack(model(shared, 100 * seed + number)) for number in range(1, 1 + references)]
    return auc_difference([loss_attack(model(shared, 100 * seed + 50, memory))], retrained, resamples=300, seed=seed)


def test_the_value_is_a_difference_of_plain_aucs():
    shared = world(1)
    first, second, third = (loss_attack(model(shared, seed)) for seed in range(3))
    found = auc_difference([first], [second, third], resamples=200)
    assert found.value == pytest.approx(first.auc() - (second.auc() + third.auc()) / 2)
    assert found.low < found.value < found.high


def test_pairing_removes_what_makes_people_easy():
    """The same images in both models: the error is far below that of the AUC itself."""
    from dlfd_fleet.audit import evaluate

    alone = evaluate(loss_attack(model(world(2), 50)), resamples=300).auc.standard_error
    assert differences(0.0, seed=2).standard_error < alone / 3


def test_a_model_that_forgot_is_equivalent_and_one_that_remembers_differs():
    forgot = [differences(0.0, seed) for seed in range(10)]
    remembers = [differences(2.5, seed) for seed in range(10)]
    assert sum(one.equivalent(0.1) for one in forgot) >= 9
    assert sum(one.differs(0.1) for one in remembers) >= 9
    assert not any(one.equivalent(0.1) for one in remembers)


def test_a_model_that_overdoes_it_differs_too():
    assert sum(differences(-2.5, seed, people=15).differs(0.1) for seed in range(10)) >= 9


def test_intervals_hold_no_difference_about_as_often_as_they_say():
    held = sum(one.low <= 0.0 <= one.high for one in (differences(0.0, seed) for seed in range(60)))
    assert held >= 51  # the model's own training is one more draw, which the interval does not promise to cover


@pytest.mark.parametrize("people", [3, 5, 10])
def test_bounds_over_few_people_hold_the_truth_as_often_as_they_say(people):
    """A bootstrap by itself held it 87 times in a hundred with five people a side."""
    found = [
        evaluate(loss_attack(model(world(seed, people=people, difficulty=1.5), seed)), resamples=300).auc
        for seed in range(100)
    ]
    assert sum(one.low <= 0.5 <= one.high for one in found) >= 91


def test_the_fewer_the_reference_models_the_less_they_say():
    errors = [
        np.mean([differences(0.0, seed, references=number).standard_error for seed in range(10)])
        for number in (2, 3, 6)
    ]
    assert errors == sorted(errors, reverse=True)


def test_the_accuracy_on_one_person_has_bounds_too():
    good = model(world(0, people=1), 0).of(Role.TEST)
    wrong = good.prediction.copy()
    wrong[:3] = 1
    bad = type(good)(good.role, good.person, good.label, wrong, good.loss)
    assert not accuracy_difference(bad, [good], resamples=300).differs(0.1)
    assert accuracy_difference(bad, [good], resamples=300).standard_error > 0.1


def test_one_person_with_few_images_is_never_equivalent():
    assert not any(differences(0.0, seed, people=1, difficulty=0.0).equivalent(0.05) for seed in range(5))


def test_models_must_have_seen_the_same_images():
    with pytest.raises(DataError, match="different images"):
        auc_difference([loss_attack(model(world(0), 0))], [loss_attack(model(world(0, people=9), 0))])
    with pytest.raises(DataError, match="no retrained model"):
        auc_difference([loss_attack(model(world(0), 0))], [])


def test_accuracy_differences_are_exact():
    shared = world(0)
    good, bad = (model(shared, seed).of(Role.TEST) for seed in (0, 1))
    wrong = bad.prediction.copy()
    wrong[:8] = 1
    found = accuracy_difference(type(bad)(bad.role, bad.person, bad.label, wrong, bad.loss), [good], resamples=300)
    assert found.value == pytest.approx(-0.1)
    assert found.standard_error > 0


def difference(value, error=0.02):
    return Difference(model=0.5 + value, reference=0.5, standard_error=error, references=3)


def comparison(candidate, original=0.3, control=0.0, error=0.02):
    return AttackComparison(
        name="loss", original=difference(original), candidate=difference(candidate, error), control=difference(control)
    )


def scores(balanced=0.8):
    from test_verdict import scores as make

    return make(balanced=balanced)


@pytest.mark.parametrize(
    ("attack", "test", "retain", "outcome", "words"),
    [
        (comparison(0.01), 0.0, 0.0, Outcome.PASS, "no difference from retrained"),
        (comparison(0.2), 0.0, 0.0, Outcome.FAIL, "tells it from retrained"),
        (comparison(-0.2), 0.0, 0.0, Outcome.FAIL, "tells it from retrained"),
        (comparison(0.01), -0.08, 0.0, Outcome.FAIL, "test accuracy is 0.080 under that of retrained models"),
        (comparison(0.01), -0.05, 0.0, Outcome.INCONCLUSIVE, "more than 0.020, which may be chance"),
        (comparison(0.01), 0.0, -0.09, Outcome.FAIL, "accuracy on retained people is 0.090 under that of retrained"),
        (comparison(0.01), 0.0, -0.06, Outcome.INCONCLUSIVE, "more than 0.050, which may be chance"),
        (comparison(0.01, original=0.0), 0.0, 0.0, Outcome.INCONCLUSIVE, "no attack finds anybody"),
        (comparison(0.01, control=0.3), 0.0, 0.0, Outcome.INCONCLUSIVE, "from each other"),
        (comparison(0.05, error=0.06), 0.0, 0.0, Outcome.INCONCLUSIVE, "too few"),
        (
            comparison(0.5, error=0.3),
            0.0,
            0.0,
            Outcome.INCONCLUSIVE,
            "too few images to tell by the loss",
        ),
    ],
)
def test_each_outcome_has_its_reason(attack, test, retain, outcome, words):
    verdict = judge_beside_retrained(scores(), difference(test), difference(retain), [attack], SETTINGS)
    assert verdict.outcome is outcome
    assert words in verdict.sentence()


def test_of_an_original_in_which_an_attack_seems_to_find_somebody_it_is_not_said_that_none_does():
    unsure = comparison(0.01).model_copy(update={"original": difference(0.5, 0.3)})
    verdict = judge_beside_retrained(scores(), difference(0.0), difference(0.0), [unsure], SETTINGS)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "there are too few people to tell whether an attack finds anybody in the original" in verdict.sentence()


def test_a_collapse_fails_however_little_leaks():
    same = difference(0.0)
    verdict = judge_beside_retrained(scores(balanced=0.55), same, same, [comparison(0.0)], SETTINGS)
    assert verdict.outcome is Outcome.FAIL
    assert "collapsed" in verdict.sentence()


def test_without_attacks_there_is_no_verdict():
    with pytest.raises(DataError, match="No attack"):
        judge_beside_retrained(scores(), difference(0.0), difference(0.0), [], SETTINGS)


def test_power_grows_as_the_error_shrinks():
    powers = [difference(0.0, error).power(0.1) for error in (0.2, 0.05, 0.02)]
    assert powers == sorted(powers)
    assert powers[0] == 0.0
    assert powers[-1] > 0.95
    assert np.isfinite(powers).all()
