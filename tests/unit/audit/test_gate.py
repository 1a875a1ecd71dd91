"""The gate's reading: utility with an interval over people, and an attack matched by class."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from dlfd_fleet.audit import Role, SampleScores, gate_metrics, read_gate
from dlfd_fleet.audit.samples import ROLES
from dlfd_fleet.exceptions import DataError


def validation(people, images=10, seed=0):
    """Draw people who are right more or less often, beside a forget set of one more person."""
    generator = np.random.default_rng(seed)
    person = np.repeat(np.arange(people), images)
    skill = generator.beta(4, 1, people)[person]
    label = generator.integers(0, 2, len(person))
    prediction = np.where(generator.random(len(person)) < skill, label, 1 - label)
    role = np.full(len(person), ROLES.index(Role.VALIDATION), np.uint8)
    unseen = SampleScores(role, person, label, prediction, np.full(len(person), 0.5))
    forget = SampleScores(
        role[:2] * 0 + ROLES.index(Role.FORGET), person[:2], label[:2], label[:2], np.array([0.1, 0.2])
    )
    return unseen, SampleScores.concatenate([unseen, forget])


def test_utility_is_the_balanced_accuracy():
    unseen, samples = validation(8)
    assert read_gate(samples).utility == pytest.approx(balanced_accuracy_score(unseen.label, unseen.prediction))


def test_those_who_stay_are_read_apart_from_validation_people():
    unseen, samples = validation(8)
    assert read_gate(samples).retain_accuracy == 1.0  # nobody asked them
    role = np.full(len(unseen), ROLES.index(Role.RETAIN), np.uint8)
    stay = SampleScores(role, unseen.person + 100, unseen.label, 1 - unseen.prediction, unseen.loss)
    reading, alone = read_gate(SampleScores.concatenate([samples, stay])), read_gate(samples)
    assert reading.retain_accuracy == pytest.approx(balanced_accuracy_score(stay.label, stay.prediction))
    assert (reading.utility, reading.attack_auc) == (alone.utility, alone.attack_auc)


def test_without_validation_people_only_those_who_stay_are_read_and_nothing_is_made_up():
    unseen, _ = validation(8)
    parts = (unseen.role * 0 + ROLES.index(role) for role in (Role.RETAIN, Role.FORGET))
    stay, forget = (SampleScores(role, unseen.person, unseen.label, unseen.prediction, unseen.loss) for role in parts)
    samples = SampleScores.concatenate([stay, forget])
    reading = read_gate(samples)
    assert (reading.utility, reading.attack_auc) == (None, None)
    assert reading.retain_accuracy == pytest.approx(balanced_accuracy_score(stay.label, stay.prediction))
    assert reading.usefulness == reading.retain_accuracy
    assert not reading.remembered(gate=0.0)
    assert gate_metrics(samples, reading) == {"gate_retain_accuracy": reading.retain_accuracy}
    with pytest.raises(DataError, match="no image for the gate to read but of the forgotten"):
        read_gate(forget)


def test_the_interval_of_those_who_stay_is_that_of_a_bootstrap_over_their_images():
    unseen, samples = validation(12)
    stay = SampleScores(
        np.full(len(unseen), ROLES.index(Role.RETAIN), np.uint8),
        unseen.person + 100,
        unseen.label,
        unseen.prediction,
        unseen.loss,
    )
    generator = np.random.default_rng(1)
    drawn = [generator.integers(0, len(stay), len(stay)) for _ in range(800)]
    values = [balanced_accuracy_score(stay.label[rows], stay.prediction[rows]) for rows in drawn]
    reading = read_gate(SampleScores.concatenate([samples, stay]))
    assert reading.retain_half_width == pytest.approx(2.0 * np.std(values), rel=0.15)
    assert reading.retain_half_width < reading.utility_half_width  # the same answers, of people drawn from others


def test_labels_that_say_the_same_make_the_interval_of_an_image_no_narrower():
    generator = np.random.default_rng(3)
    label = generator.integers(0, 2, (80, 1))
    said = np.where(generator.random((80, 1)) < 0.8, label, 1 - label).astype(np.float64)
    role = np.repeat([ROLES.index(one) for one in (Role.FORGET, Role.VALIDATION, Role.RETAIN)], (10, 20, 50))
    known = np.arange(80) // 5, role.astype(np.uint8)
    widths = set()
    for count in (1, 3):
        labels, probabilities = np.repeat(label, count, axis=1), np.repeat(said, count, axis=1)
        attacked = SampleScores.from_probabilities(probabilities, labels, *known)
        reading = read_gate(attacked, SampleScores.of_each_label(probabilities, labels, *known))
        widths.add(round(reading.retain_half_width, 9))
    assert len(widths) == 1
    assert min(widths) > 0.0


def test_the_interval_is_that_of_a_bootstrap_over_people():
    unseen, samples = validation(60)
    generator = np.random.default_rng(1)
    by_person = [np.flatnonzero(unseen.person == one) for one in range(60)]
    drawn = [np.concatenate([by_person[one] for one in generator.integers(0, 60, 60)]) for _ in range(800)]
    values = [balanced_accuracy_score(unseen.label[rows], unseen.prediction[rows]) for rows in drawn]
    assert read_gate(samples).utility_half_width == pytest.approx(2.0 * np.std(values), rel=0.15)


def test_few_people_make_it_wide_and_one_says_nothing_of_others():
    widths = [read_gate(validation(people)[1]).utility_half_width for people in (4, 16, 64)]
    assert widths == sorted(widths, reverse=True)
    unseen, samples = validation(1, images=20)
    assert 0.0 < read_gate(samples).utility_half_width < 1.0  # of this one's images
    assert len(unseen) == 20
