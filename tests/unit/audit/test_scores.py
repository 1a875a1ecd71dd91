"""Scores: right against scikit-learn, bounded by people, and two-sided."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss, roc_auc_score

from dlfd_fleet.audit import (
    Role,
    SampleScores,
    agreed,
    forgetting_score,
    gap_to_retrain,
    loss_attack,
    measure,
    nomus,
    read_gate,
)
from dlfd_fleet.audit.samples import ROLES
from dlfd_fleet.exceptions import DataError


def samples(seed=0, forget_shift=0.0, people=8, images=10, person_effect=0.0):
    """Draw losses whose forget set lies ``forget_shift`` below the others."""
    generator = np.random.default_rng(seed)
    parts = []
    for index, _role in enumerate(ROLES):
        person = np.repeat(np.arange(people), images)
        effect = generator.normal(0.0, person_effect, people)[person] if person_effect else 0.0
        loss = np.exp(generator.normal(0.0, 0.5, people * images) + effect - (forget_shift if index == 1 else 0.0))
        label = generator.integers(0, 2, people * images)
        prediction = np.where(generator.random(people * images) < 0.8, label, 1 - label)
        parts.append(SampleScores(np.full(len(person), index, np.uint8), person, label, prediction, loss))
    return SampleScores.concatenate(parts)


def reorder(data, order):
    return SampleScores(*(column[order] for column in vars(data).values()))


@pytest.mark.parametrize("seed", range(5))
def test_point_values_agree_with_scikit_learn(seed):
    data = samples(seed, forget_shift=0.5)
    scores = measure(data, resamples=200)
    test, forget = data.of(Role.TEST), data.of(Role.FORGET)
    assert scores.test_accuracy.value == pytest.approx(accuracy_score(test.label, test.prediction))
    assert scores.balanced_accuracy.value == pytest.approx(balanced_accuracy_score(test.label, test.prediction))
    truth = np.r_[np.ones(len(forget)), np.zeros(len(test))]
    assert scores.mia_auc.value == pytest.approx(roc_auc_score(truth, -np.r_[forget.loss, test.loss]))


def test_a_model_that_remembers_is_found_and_one_that_does_not_is_not():
    remembers = measure(samples(1, forget_shift=2.0))
    forgot = measure(samples(1))
    assert remembers.mia_auc.low > 0.8
    assert remembers.mia_accuracy.value > 0.8
    assert forgot.mia_auc.low < 0.5 < forgot.mia_auc.high
    assert forgot.forgetting_score < 0.1


def test_losses_far_above_the_unseen_ones_are_a_leak_too():
    scores = measure(samples(2, forget_shift=-2.0))
    assert scores.mia_auc.high < 0.2
    assert scores.forgetting_score > 0.3


def test_one_persons_accuracy_is_bounded_by_their_images_and_one_images_by_nothing():
    few, one = measure(samples(3, people=1, images=20)), measure(samples(3, people=1, images=1))
    assert few.test_accuracy.low < few.test_accuracy.value < few.test_accuracy.high
    assert (one.test_accuracy.low, one.test_accuracy.high) == (0.0, 1.0)


def test_images_of_one_person_do_not_count_as_many_witnesses():
    """Bounds by person must be wider than bounds that take each image for a person of its own."""
    data = samples(3, people=6, images=30, person_effect=1.0)
    by_person = measure(data, resamples=1000)
    alone = SampleScores(data.role, np.arange(len(data)), data.label, data.prediction, data.loss)
    by_image = measure(alone, resamples=1000)
    width = [score.mia_auc.high - score.mia_auc.low for score in (by_person, by_image)]
    assert width[0] > 1.5 * width[1]


def test_the_bootstrap_interval_covers_chance_about_as_often_as_it_says():
    covered = 0
    for seed in range(60):
        auc = measure(samples(seed, people=20, person_effect=0.5), resamples=400).mia_auc
        covered += auc.low <= 0.5 <= auc.high
    assert covered >= 51  # 85% of 60; a percentile bootstrap of 20 people is a little too narrow


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_scores_depend_neither_on_arrival_order_nor_on_peoples_numbers(seed):
    data = samples(4, forget_shift=0.3)
    generator = np.random.default_rng(seed)
    renumbered = generator.permutation(data.person.max() + 1)[data.person]
    shuffled = SampleScores(data.role, renumbered, data.label, data.prediction, data.loss)
    assert measure(reorder(shuffled, generator.permutation(len(data))), resamples=200) == measure(data, resamples=200)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-3, 3))
def test_bounds_hold_their_value_and_stay_fractions(seed, shift):
    scores = measure(samples(seed, forget_shift=shift, people=3, images=3), resamples=200)
    for name, value in scores.metrics().items():
        if f"{name}_low" in scores.metrics():
            assert 0.0 <= scores.metrics()[f"{name}_low"] <= value <= scores.metrics()[f"{name}_high"] <= 1.0


def test_nomus_is_the_papers_formula_and_rewards_collapse():
    assert nomus(0.62, 0.528) == pytest.approx(0.782)
    assert nomus(0.70, 0.50) == pytest.approx(0.85)  # a constant answer: never read it alone


@settings(max_examples=100, deadline=None)
@given(st.floats(0, 1), st.floats(0, 1))
def test_forgetting_is_symmetric_and_nomus_a_fraction(accuracy, attack):
    assert forgetting_score(attack) == pytest.approx(forgetting_score(1.0 - attack))
    assert 0.0 <= forgetting_score(attack) <= 0.5
    assert 0.0 <= nomus(accuracy, attack) <= 1.0


def test_without_forgotten_people_utility_is_still_measured():
    scores = measure(samples(5).of(Role.RETAIN, Role.TEST))
    assert scores.mia_auc is None
    assert "mia_auc" not in scores.metrics()
    assert scores.test_accuracy.value > 0.6


def test_where_everybody_was_trained_on_only_that_is_measured_which_needs_nobody_unseen():
    data = samples(6)
    scores, whole = measure(data.of(Role.RETAIN, Role.FORGET, Role.VALIDATION)), measure(data)
    assert (scores.unseen_images, scores.unseen_classes, scores.forget_images) == (0, 0, 80)
    for name in ("retain_accuracy", "forget_accuracy"):
        assert getattr(scores, name).value == getattr(whole, name).value
    retain = data.of(Role.RETAIN)
    expected = balanced_accuracy_score(retain.label, retain.prediction)
    assert scores.retain_balanced_accuracy.value == pytest.approx(expected)
    assert whole.retain_balanced_accuracy is None
    names = {name.removesuffix("_low").removesuffix("_high") for name in scores.metrics()}
    counts = {"unseen_classes", "forget_images", "unseen_images"}
    assert names == {"retain_accuracy", "forget_accuracy", "retain_balanced_accuracy", "retain_auc", *counts}
    assert gap_to_retrain(scores, scores) == 0.0


def test_without_retained_people_nothing_is_measured_and_one_sentence_says_why():
    with pytest.raises(DataError, match=r"No retain images were audited.* people of the split 'train' who have not"):
        measure(samples(6).of(Role.TEST, Role.FORGET))


def test_where_nobody_is_unseen_forgotten_people_are_measured_against_retained_ones():
    known, unknown = (measure(samples(6, shift).of(Role.RETAIN, Role.FORGET)) for shift in (0.0, -2.0))
    assert known.retain_auc.low < 0.5 < known.retain_auc.high
    assert unknown.retain_auc.high < 0.2
    data = samples(6, -2.0)
    parts = data.of(Role.FORGET), data.of(Role.RETAIN)
    truth = np.repeat([1, 0], [len(part) for part in parts])
    assert unknown.retain_auc.value == pytest.approx(
        roc_auc_score(truth, -np.concatenate([part.loss for part in parts]))
    )


def test_how_sure_a_model_is_of_everybody_changes_nothing_about_who_stands_out():
    data = samples(6, -0.5).of(Role.RETAIN, Role.FORGET)
    surer = replace(data, loss=data.loss**3 / 100.0)
    assert measure(surer).retain_auc.value == measure(data).retain_auc.value


def test_a_sample_of_many_retained_images_tells_as_much():
    data = samples(6, -0.5, people=200, images=30).of(Role.RETAIN, Role.FORGET)
    forget, retain = data.of(Role.FORGET), data.of(Role.RETAIN)
    forget = forget.rows(forget.person < np.unique(forget.person)[6])
    truth = np.repeat([1, 0], [len(forget), len(retain)])
    whole = roc_auc_score(truth, -np.concatenate([forget.loss, retain.loss]))
    measured = measure(SampleScores.concatenate([retain, forget]), resamples=200).retain_auc.value
    assert measured == pytest.approx(whole, abs=0.01)


def test_a_loss_that_is_not_finite_is_refused():
    data = samples(7)
    with pytest.raises(DataError, match="not finite"):
        SampleScores(data.role, data.person, data.label, data.prediction, np.where(data.loss > 1, np.nan, data.loss))


def test_people_of_two_sites_are_never_merged():
    first, second = samples(8, people=2), samples(9, people=3)
    joined = SampleScores.concatenate([first, second])
    count = len(np.unique(first.person)) + len(np.unique(second.person))
    assert len(np.unique(joined.person)) == count


def test_probabilities_of_any_predictor_become_losses():
    probabilities = np.array([[0.9, 0.1], [0.0, 1.0]], dtype=np.float32)
    zeros = np.zeros(2, dtype=np.int64)
    scores = SampleScores.from_probabilities(probabilities, zeros, zeros, zeros.astype(np.uint8))
    assert scores.loss == pytest.approx([-np.log(0.9), -np.log(1e-12)], rel=1e-5)
    assert scores.prediction.tolist() == [0, 1]


def test_the_gap_to_a_retrained_model_is_zero_for_itself_and_grows_with_what_is_remembered():
    retrained = measure(samples(3), resamples=200)
    assert gap_to_retrain(retrained, retrained) == 0.0
    gaps = [gap_to_retrain(measure(samples(3, forget_shift=shift), resamples=200), retrained) for shift in (0.5, 3.0)]
    assert 0.0 < gaps[0] < gaps[1]
    assert gap_to_retrain(retrained, measure(samples(9), resamples=200)) > 0.0


def test_an_image_of_several_labels_has_the_loss_of_all_of_them():
    truth, probabilities = np.array([[1, 0], [0, 1]]), np.array([[0.9, 0.2], [0.6, 0.5]])
    people, roles = np.arange(2), np.zeros(2, dtype=np.uint8)
    whole = SampleScores.from_probabilities(probabilities, truth, people, roles)
    each = SampleScores.of_each_label(probabilities, truth, people, roles)
    expected = [log_loss([y], [p], labels=[0, 1]) for y, p in zip(truth.ravel(), probabilities.ravel(), strict=True)]
    assert each.loss == pytest.approx(expected)
    assert whole.loss == pytest.approx(np.reshape(expected, (2, 2)).sum(axis=1))
    assert (whole.label == whole.prediction).tolist() == [True, False]
    assert (each.label == each.prediction).tolist() == [True, True, False, True]


def of_labels(labels, people=12, images=4, seed=0):
    """What a model says of people of every role, and the truth and its probabilities ``(N, L)``."""
    random = np.random.default_rng(seed)
    count = len(ROLES) * people * images
    truth = random.integers(0, 2, (count, labels))
    probabilities = np.clip(0.5 + (truth - 0.5) * 0.6 + random.normal(0.0, 0.3, truth.shape), 0.01, 0.99)
    person = np.repeat(np.arange(len(ROLES) * people), images)
    role = np.repeat(np.arange(len(ROLES)), people * images).astype(np.uint8)
    return (probabilities, truth, person, role), SampleScores.from_probabilities(probabilities, truth, person, role)


@pytest.mark.parametrize("labels", [1, 3, 62, 63, 124, 130])
def test_any_number_of_labels_travels_in_one_row_an_image(labels):
    said, whole = of_labels(labels)
    each, expected = whole.each_label(labels), SampleScores.of_each_label(*said)
    for column in ("role", "person", "label", "prediction"):
        assert np.array_equal(getattr(each, column), getattr(expected, column))
    assert whole.right.tolist() == ((said[0] >= 0.5) == said[1]).all(axis=1).tolist()
    both = SampleScores.concatenate([whole, whole.rows(slice(0, 7))])
    order = np.random.default_rng(1).permutation(len(both))
    assert np.array_equal(both.canonical().label, reorder(both, order).canonical().label)
    assert np.isclose(both.coarse().loss.sum(), both.loss.sum())
    assert agreed({"a": whole, "b": whole})[1] == frozenset()
    assert read_gate(whole, each).utility == pytest.approx(read_gate(whole, expected).utility)


def test_scores_of_several_labels_are_means_of_each_labels_own():
    (probabilities, truth, person, role), _ = of_labels(70)
    truth[:, 5] = 1  # a label of which nobody shows both values says nothing of its balanced accuracy
    scores = measure(SampleScores.from_probabilities(probabilities, truth, person, role), resamples=100, labels=70)
    test = role == ROLES.index(Role.TEST)
    said, true = (probabilities >= 0.5)[test], truth[test].astype(bool)
    assert scores.test_accuracy.value == pytest.approx((said == true).mean())
    own = [balanced_accuracy_score(true[:, label], said[:, label]) for label in range(70) if label != 5]
    assert scores.balanced_accuracy.value == pytest.approx(np.mean(own))
    assert scores.majority_baseline == pytest.approx(np.maximum(true.mean(axis=0), 1.0 - true.mean(axis=0)).mean())
    assert scores.unseen_classes == 2


def test_labels_that_nobody_shows_both_values_of_cannot_show_a_collapse():
    (probabilities, truth, person, role), _ = of_labels(2)
    truth[:] = [0, 1]
    scores = measure(SampleScores.from_probabilities(probabilities, truth, person, role), resamples=50, labels=2)
    assert (scores.unseen_classes, scores.majority_baseline) == (1, 1.0)


def test_a_thousand_classes_and_a_hundred_thousand_images_are_measured_in_little_memory():
    random, count = np.random.default_rng(0), 100_000
    label = random.integers(0, 1000, count)
    prediction = np.where(random.random(count) < 0.7, label, 0)
    role = np.repeat([ROLES.index(Role.RETAIN), ROLES.index(Role.TEST)], count // 2).astype(np.uint8)
    samples = SampleScores(role, np.arange(count) // 200, label, prediction, random.random(count))
    tracemalloc.start()
    scores = measure(samples, resamples=100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert scores.unseen_classes == 1000
    assert peak < 200 * 2**20  # a column a class for every image would be 800 MB


def drawn(random, count, roles):
    """Losses as those of a trained model: most are small, few are large."""
    loss = np.log1p(np.exp(-random.normal(3.0, 3.0, count)))
    zero = np.zeros(count, np.int64)
    return SampleScores(random.choice(roles, count).astype(np.uint8), np.arange(count), zero, zero, loss)


def test_a_photograph_that_two_people_have_is_not_told_by_its_loss():
    """An attacker who pairs rows of one loss is right by chance, one in two at best, and was always right before."""
    random, tried, right = np.random.default_rng(0), 0, 0.0
    for _ in range(20):
        samples = drawn(random, 120, (0, 1, 3))
        copies = samples.loss.copy()
        copies[:10] = copies[10:20]  # image n is image n + 10
        fine = replace(samples, loss=copies)
        for row in range(10):
            assert set(np.flatnonzero(fine.loss == fine.loss[row])) == {row, row + 10}
            alike = set(np.flatnonzero(fine.coarse().loss == fine.coarse().loss[row])) - {row}
            right += (row + 10 in alike) / len(alike)
            tried += 1
    assert right / tried <= 0.5


def test_coarse_losses_change_no_attack_by_more_than_chance_does():
    random, changes = np.random.default_rng(0), []
    for _ in range(20):
        samples = drawn(random, 400, (0, 1, 3))
        changes.append(loss_attack(samples.coarse()).auc() - loss_attack(samples).auc())
    assert np.abs(changes).max() < 0.005


@pytest.mark.parametrize("count", range(8))
def test_every_coarse_loss_is_shared_by_three_where_there_are_three(count):
    samples = drawn(np.random.default_rng(count), count, (0, 1))
    _, shared = np.unique(samples.coarse().loss, return_counts=True)
    assert all(number >= min(3, count) for number in shared)
    assert samples.coarse().loss.sum() == pytest.approx(samples.loss.sum())


def test_scores_do_not_hang_on_the_order_of_rows_nor_on_the_numbers_of_people():
    random = np.random.default_rng(0)
    samples = replace(drawn(random, 90, (0, 1, 3)), person=np.repeat(np.arange(30), 3)).coarse()
    samples = replace(samples, role=np.repeat(samples.role[::3], 3))
    order, numbers = random.permutation(90), random.permutation(30)
    shuffled = replace(samples.rows(order), person=numbers[samples.person[order]])
    assert measure(samples, resamples=50) == measure(shuffled, resamples=50)
