"""Attacks: equal to scikit-learn where it computes the same, blind where there is nothing, and able to see a leak."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu
from sklearn.metrics import roc_auc_score

from dlfd_fleet.audit import MembershipScores, Role, SampleScores, evaluate, linear_probe, loss_attack, rmia
from dlfd_fleet.audit.attacks import auc_estimate
from dlfd_fleet.audit.samples import ROLES
from dlfd_fleet.exceptions import DataError

PARTS = (Role.FORGET, Role.VALIDATION, Role.TEST)


def world(seed, people=10, images=8, difficulty=1.5):
    """Draw how hard each image is, by person, with its role: what every model of one experiment shares."""
    generator = np.random.default_rng(seed)
    role = np.repeat([ROLES.index(part) for part in PARTS], people * images).astype(np.uint8)
    person = np.repeat(np.arange(3 * people), images)
    hard = generator.normal(0.0, difficulty, 3 * people)[person] + generator.normal(0.0, 0.3, len(person))
    return role, person, hard


def model(shared, seed, memory=0.0):
    """Draw a model's losses in that world; ``memory`` lowers those of forgotten people."""
    role, person, hard = shared
    generator = np.random.default_rng(1000 + seed)
    loss = np.exp(hard + generator.normal(0.0, 0.3, len(hard)) - memory * (role == ROLES.index(Role.FORGET)) - 1.0)
    label = np.zeros(len(role), dtype=np.int64)
    return SampleScores(role, person, label, label, loss)


@pytest.mark.parametrize("seed", range(3))
def test_auc_is_that_of_scikit_learn_and_scipy(seed):
    attack = loss_attack(model(world(seed), seed, memory=0.5))
    result = evaluate(attack, resamples=200)
    inside, outside = attack.score[attack.member], attack.score[~attack.member]
    assert result.auc.value == pytest.approx(roc_auc_score(attack.member, attack.score))
    statistic = mannwhitneyu(inside, outside).statistic
    assert result.auc.value == pytest.approx(statistic / (len(inside) * len(outside)))


def test_reference_models_see_a_leak_that_losses_hide_behind_who_is_easy():
    """A person's difficulty is larger than the leak, so losses alone cannot tell; a reference model can."""
    found = {"loss": [], "rmia": []}
    for seed in range(12):
        shared = world(seed)
        attacked, others = model(shared, seed, memory=1.0), [model(shared, 50 + seed), model(shared, 90 + seed)]
        found["loss"].append(loss_attack(attacked).auc())
        found["rmia"].append(rmia(attacked, others).auc())
    assert np.mean(found["rmia"]) > np.mean(found["loss"]) + 0.05
    assert np.std(found["rmia"]) < np.std(found["loss"])


def test_reference_models_find_nothing_in_a_model_of_their_own_kind():
    aucs = []
    for seed in range(100, 400):
        shared = world(seed)
        aucs.append(rmia(model(shared, 3 * seed), [model(shared, 3 * seed + 1), model(shared, 3 * seed + 2)]).auc())
    assert np.mean(aucs) == pytest.approx(0.5, abs=3 * np.std(aucs) / 300**0.5)


def test_the_population_only_sets_the_scale():
    """RMIA's comparison with population images is one step function for all, so it never turns the order round."""
    shared = world(3)
    attacked, others = model(shared, 3, memory=1.0), [model(shared, 53)]
    outside = np.exp(-others[0].loss)
    ratio = np.exp(-attacked.loss) / ((1.3 * outside + 0.7) / 2)
    rows = attacked.of_role(Role.FORGET) | attacked.of_role(Role.TEST)
    order = np.argsort(ratio[rows])
    assert (np.diff(rmia(attacked, others).score[order]) >= 0).all()


def test_no_more_false_alarms_than_promised_between_two_halves_of_one_population():
    """200 draws; a 95% interval that leaves chance outside is a false alarm. Ten people a side: 12% at most."""
    alarms = 0
    for seed in range(200):
        auc = auc_estimate(loss_attack(model(world(seed), seed)), 300, np.random.default_rng(seed))
        alarms += not auc.low <= 0.5 <= auc.high
    assert alarms <= 24


def test_a_planted_leak_is_found():
    """Power at this size and memory: found in at least 18 of 20 draws."""
    found = 0
    for seed in range(20):
        auc = evaluate(loss_attack(model(world(seed, difficulty=0.5), seed, memory=1.5)), resamples=300).auc
        found += auc.low > 0.5
    assert found >= 18


def test_person_scores_are_means_and_beat_noise_of_single_images():
    attack = loss_attack(model(world(5, difficulty=0.1), 5, memory=0.4))
    people = attack.by_person()
    assert len(people.score) == 20
    assert people.score[0] == pytest.approx(attack.score[attack.person == people.person[0]].mean())
    assert evaluate(attack, resamples=200).person_auc.value > attack.auc()


def test_few_non_members_give_no_rate_at_one_percent():
    assert evaluate(loss_attack(model(world(1), 1)), resamples=200).tpr_at_1_fpr is None
    many = evaluate(loss_attack(model(world(1, people=40, difficulty=0.1), 1, memory=3.0)), resamples=200)
    assert many.tpr_at_1_fpr.value > 0.9


def test_the_probe_finds_a_shared_trace_in_features_and_no_identity():
    generator = np.random.default_rng(0)
    person = np.repeat(np.arange(20), 10)
    member = person < 10
    identity = generator.normal(0.0, 3.0, (20, 6))[person]
    blind = linear_probe(np.hstack([identity, generator.normal(size=(200, 3))]), member, person)
    marked = linear_probe(np.hstack([identity, member[:, None] + generator.normal(0.0, 0.3, (200, 1))]), member, person)
    assert evaluate(marked, resamples=200).auc.value > 0.75
    assert evaluate(blind, resamples=200).auc.low < 0.5


def drawn(generator, people, images, effect, leak=0.0):
    """Scores of people who differ by ``effect``, members higher by ``leak``, and who is who."""
    person = np.repeat(np.arange(people), images)
    return generator.normal(leak + generator.normal(0.0, effect, people)[person], 1.0), person


@pytest.mark.parametrize(
    ("people", "images", "effect"), [(1, 5, 0.0), (1, 5, 1.0), (1, 20, 0.5), (2, 5, 1.0), (4, 10, 0.5)]
)
def test_few_people_are_bounded_by_how_much_people_differ(people, images, effect):
    """Without a leak the bounds hold 0.5 in most draws, and never show equivalence, whoever it is that is forgotten."""
    generator, covered, shown = np.random.default_rng(0), 0, 0
    for _ in range(60):
        (inside, members), (outside, unseen) = (drawn(generator, count, images, effect) for count in (people, 40))
        truth = np.repeat([True, False], [len(inside), len(outside)])
        attack = MembershipScores(np.concatenate([inside, outside]), truth, np.concatenate([members, 100 + unseen]))
        auc = auc_estimate(attack, 200, generator)
        covered += auc.low <= 0.5 <= auc.high
        shown += auc.value - 1.645 * auc.standard_error > 0.4 and auc.value + 1.645 * auc.standard_error < 0.6
    assert covered >= 51
    assert shown <= 1


def test_one_person_against_one_tells_nothing():
    attack = MembershipScores(np.array([3.0, 4.0, 1.0, 2.0]), np.array([True, True, False, False]), np.arange(4) // 2)
    auc = auc_estimate(attack, 500, np.random.default_rng(0))
    assert auc.value == 1.0
    assert auc.low < 0.5


@settings(max_examples=25)
@given(st.integers(0, 1000), st.floats(0.01, 100.0))
def test_an_attack_depends_on_order_only(seed, scale):
    attack = loss_attack(model(world(seed % 7), seed))
    scaled = MembershipScores(attack.score * scale + 1.0, attack.member, attack.person)
    assert scaled.auc() == pytest.approx(attack.auc())


def test_mistakes_are_one_clear_sentence():
    shared = world(0)
    attacked = model(shared, 0)
    with pytest.raises(DataError, match="at least one reference"):
        rmia(attacked, [])
    with pytest.raises(DataError, match="other images"):
        rmia(attacked, [model(world(0, people=9), 0)])
    few = attacked.of(Role.FORGET, Role.TEST)
    with pytest.raises(DataError, match="population"):
        rmia(few, [few])
    with pytest.raises(DataError, match="needs images of forgotten"):
        loss_attack(attacked.of(Role.TEST))
    with pytest.raises(DataError, match="two forgotten people"):
        linear_probe(np.zeros((4, 2)), np.array([True, True, False, False]), np.array([0, 0, 1, 2]))
    with pytest.raises(DataError, match="not finite"):
        MembershipScores(np.array([np.nan, 0.0]), np.array([True, False]), np.array([0, 1]))
