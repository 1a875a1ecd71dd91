"""How much is left of what members show: what sites send, and what is made of it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.stats import linregress, norm

from dlfd_fleet.audit import Left, MemberSums, ReferenceLosses, ReferenceSums, UnseenSums, member_share, reference_sums
from tests.unit.audit.reference_world import World, losses


def left(world, share, **kwargs):
    original = member_share(world.sums(world.model(1.0)))
    return Left.of(original, member_share(world.sums(world.model(share, **kwargs))))


@pytest.mark.parametrize("share", [-1.0, 0.0, 0.5, 1.0])
def test_what_is_left_is_measured(share):
    found = np.array([left(World(seed), share).value for seed in range(12)])
    assert found.mean() == pytest.approx(share, abs=3.0 * found.std() / 12**0.5 + 0.05)


def test_the_standard_error_is_what_it_varies_by():
    found = [left(World(seed), 0.0) for seed in range(60)]
    spread = np.std([each.value for each in found])
    error = np.mean([each.standard_error for each in found])
    assert 0.75 * spread < error < 1.6 * spread


@settings(max_examples=15)
@given(st.floats(-3.0, 3.0), st.floats(0.6, 1.6))
def test_a_model_that_is_surer_of_everybody_does_not_remember_more(knows, slope):
    usual, surer = (left(World(3), 0.4, knows=each[0], slope=each[1]) for each in ((0.0, 1.0), (knows, slope)))
    assert surer.value == pytest.approx(usual.value, abs=0.1)


def test_more_people_and_more_images_tell_more():
    few, people, images = (
        member_share(world.sums(world.model(0.0))).standard_error
        for world in (World(asked=4), World(asked=16), World(asked=4, images=32))
    )
    assert people < 0.65 * few
    assert images < 0.65 * few


def test_without_the_forgotten_of_other_sites_the_rest_is_the_same():
    world = World(1)
    sums = world.sums(world.model(0.0))
    alone = [each.model_copy(update={"forget": MemberSums()}) for each in sums[1:]]
    share = member_share([sums[0], *alone])
    assert share.people == sums[0].forget.people == 2
    assert share.retained == member_share(sums).retained


def test_one_site_that_makes_its_retained_people_up_moves_neither_what_members_show_nor_the_noise():
    world = World(2)
    sums = world.sums(world.model(0.0))
    retain = sums[4].retain
    lie = retain.model_copy(update={"excess": 20.0 * retain.weight})
    told = member_share([*sums[:4], sums[4].model_copy(update={"retain": lie, "noise": 1e-6})])
    usual = sorted(member_share([each, *sums[:4]]).retained for each in sums)
    assert usual[0] <= told.retained <= usual[-1]
    assert told.noise > 0.3 * member_share(sums).noise


def test_people_whom_all_sites_hold_count_once_and_as_most_sites_say():
    world = World(4)
    said = world.model(0.0)
    own, shared = member_share(world.sums(said)), world.sums(said, shared=True)
    assert member_share(shared).value == pytest.approx(own.value, abs=1e-3)
    assert member_share(shared).level_error == pytest.approx(own.level_error, rel=1e-3)
    lie = UnseenSums(**shared[0].shared.model_dump() | {"line": (320.0, 500.0, 4000.0, 3000.0, 9000.0)})
    told = [shared[0].model_copy(update={"shared": lie}), *shared[1:]]
    assert member_share(told).value == pytest.approx(member_share(shared).value)


def test_sums_over_people_are_all_that_a_site_sends():
    """Two pairs of people whose images are exchanged make the same message: there is no row of anybody in it."""
    world = World(5, sites=1)
    said = world.model(0.0)
    (one,) = world.sums(said)
    order = np.random.default_rng(0).permutation(len(said))
    numbers = np.random.default_rng(1).permutation(world.person.max() + 1)
    for name in ("site", "member", "forget"):
        setattr(world, name, getattr(world, name)[order])
    world.person, world.said, world.trained = (
        numbers[world.person[order]],
        world.said[:, order],
        world.trained[:, order],
    )
    (other,) = world.sums(said[order])
    assert other.forget == one.forget
    assert other.retain == one.retain
    assert other.unseen.products == pytest.approx(one.unseen.products)


def test_the_line_through_unseen_people_is_that_of_least_squares():
    world = World(6, sites=1, models=4)
    said = world.model(0.0)
    (sums,) = world.sums(said)
    rows = ~world.member
    pairs = [world.said[first : first + 2, rows].mean(axis=0) for first in (0, 2)]
    oracle = linregress(np.concatenate(pairs), np.tile(said[rows], 2))
    count, x, z, xx, xz = sums.unseen.line
    slope = (count * xz - x * z) / (count * xx - x * x)
    assert slope == pytest.approx(oracle.slope)
    assert (z - slope * x) / count == pytest.approx(oracle.intercept)
    assert count == rows.sum()


@pytest.mark.parametrize("models", [4, 6, 8])
def test_any_number_of_pairs_will_do(models):
    found = left(World(7, models=models), 0.0)
    assert found.value == pytest.approx(0.0, abs=3.0 * found.standard_error)


def test_of_one_pair_nothing_can_be_fitted():
    world = World(8)
    rows = world.site == 0
    one = ReferenceLosses(losses(world.said[:2, rows]), world.trained[:2, rows])
    masks = {
        "forget": world.forget[rows],
        "retain": (world.member & ~world.forget)[rows],
        "unseen": ~world.member[rows],
        "shared": np.zeros(rows.sum(), bool),
    }
    assert reference_sums(losses(world.model(0.0)[rows]), one, world.person[rows], **masks) is None


def test_who_joined_after_the_references_is_not_counted():
    world = World(9, sites=1)
    world.said[:, world.person == 0] = np.nan
    (sums,) = world.sums(world.model(0.0))
    assert sums.forget.people == world.asked - 1
    assert sums.forget.images == (world.asked - 1) * world.images


def test_a_site_with_too_few_people_sends_what_it_knows_of_the_unseen():
    world = World(10, people=3, asked=1)
    sums = world.sums(world.model(0.0))
    assert all(each.noise is None and each.unseen.people for each in sums)
    assert member_share(sums) is None


def test_without_people_never_trained_on_there_is_no_share():
    world = World(11, unseen=0)
    assert member_share(world.sums(world.model(0.0))) is None
    assert member_share([]) is None
    assert member_share([ReferenceSums()]) is None


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"people": 9}, "of people without images"),
        ({"weight": 999.0}, "of larger gaps"),
        ({"gap": 1.0}, "of a gap that is not that of its images"),
        ({"excess": 400.0}, "of surer answers than there are"),
        ({"predicted": -400.0}, "of surer answers than there are"),
    ],
)
def test_sums_that_no_images_have_are_refused(changed, words):
    honest = {"people": 2, "images": 8, "weight": 12.0, "gap": 20.0, "predicted": 30.0, "excess": 5.0}
    MemberSums(**honest)
    with pytest.raises(ValidationError, match=words):
        MemberSums(**honest | changed)


@pytest.mark.parametrize(
    "changed",
    [
        {"line": (24.0, 1e20, 1.0, 1.0, 1.0)},
        {"line": (24.0, 1.0, 400.0, 1.0, 1.0)},
        {"half_line": (25.0, 1.0, 1.0, 1.0, 1.0)},
        {"products": (1e20,) * 15},
        {"people": 25},
        {"line": (-1.0, 0.0, 0.0, 0.0, 0.0)},
    ],
)
def test_lines_that_no_images_have_are_refused(changed):
    honest = UnseenSums(people=3, line=(24.0, 40.0, 50.0, 90.0, 99.0), half_line=(24.0, 40.0, 50.0, 90.0, 99.0))
    with pytest.raises(ValidationError, match="surer answers than there are, or of people without images"):
        UnseenSums(**honest.model_dump() | changed)


@given(st.integers(0, 50))
def test_what_an_honest_site_sends_is_never_refused(seed):
    world = World(seed, sites=1, people=6, unseen=3, images=3, asked=2, noise=3.0)
    (sums,) = world.sums(world.model(0.5))
    assert ReferenceSums.model_validate_json(sums.model_dump_json()) == sums


def test_sums_of_several_sites_are_those_of_their_people():
    world = World(12)
    said = world.model(0.0)
    sums = [each.unseen for each in world.sums(said)]
    assert UnseenSums.added(sums).people == 5 * world.unseen
    assert UnseenSums.middle([sums[0], sums[0], sums[1]]) == sums[0]


# ---------------------------------------------------------------------- what is left, and what that decides


def left_of(value, error, people=8, level=0.05):
    return Left(value, error, level, people, spread=1.0)


@pytest.mark.parametrize(
    ("value", "error", "said"),
    [
        (0.0, 0.2, "is_forgotten"),
        (0.4, 0.2, None),
        (0.5, 0.01, None),
        (1.0, 0.2, "is_remembered"),
        (-1.0, 0.2, "is_conspicuous"),
        (-1.0, 0.9, "is_forgotten"),  # far below strangers, or by chance: not more than half in any case
    ],
)
def test_what_is_shown(value, error, said):
    found = left_of(value, error)
    shown = [name for name in ("is_forgotten", "is_remembered", "is_conspicuous") if getattr(found, name)]
    assert shown == ([said] if said else [])


@given(st.floats(0.05, 2.0))
def test_the_power_is_the_chance_of_being_shown_to_be_forgotten(error):
    drawn = norm.ppf((np.arange(2000) + 0.5) / 2000) * error
    share = np.mean([left_of(value, error).high < 0.5 for value in drawn])
    assert left_of(0.0, error).power == pytest.approx(share, abs=2e-3)


@pytest.mark.parametrize("value", [0.5, 0.7, 1.0])
def test_the_mean_of_an_e_value_is_at_most_one_where_half_or_more_is_left(value):
    for error in (0.1, 0.2, 0.4):
        drawn = norm.ppf((np.arange(20_000) + 0.5) / 20_000, value, error)
        assert np.mean([left_of(each, error).e_value for each in drawn]) <= 1.0 + 0.02


def test_an_e_value_is_a_ratio_of_likelihoods():
    found = left_of(0.1, 0.2)
    assert found.e_value == pytest.approx(norm.pdf(0.1, 0.0, 0.2) / norm.pdf(0.1, 0.5, 0.2))
    assert left_of(-9.0, 0.01).e_value < 1e9


def test_so_many_people_decide_in_four_cases_of_five():
    found = left_of(0.3, 0.4, people=8)
    many = found.people_to_decide
    error = (found.level_error**2 + (found.standard_error**2 - found.level_error**2) * 8 / many) ** 0.5
    assert left_of(0.0, error).power == pytest.approx(0.8, abs=0.01)
    assert left_of(0.3, 0.4, level=0.3).people_to_decide is None


def test_the_chance_of_an_attacker_is_the_auc_of_single_people():
    world = World(13, sites=10, asked=60)
    original = member_share(world.sums(world.model(1.0)))
    found = Left.of(original, member_share(world.sums(world.model(0.0))))
    assert found.chance(0.0) == 0.5
    alone = [World(seed, asked=1) for seed in range(60)]
    shares = [[member_share(each.sums(each.model(left))).value for each in alone] for left in (0.0, 1.0)]
    auc = np.mean(np.array(shares[1])[:, None] > np.array(shares[0])[None, :])
    assert found.chance(1.0) == pytest.approx(auc, abs=0.12)
