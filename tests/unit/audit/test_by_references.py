"""How much is left of what members show: what sites send, and what is made of it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.stats import linregress, norm

from dlfd_fleet.audit import Left, MemberSums, Outcome, ReferenceLosses, ReferenceSums, UnseenSums, reference_sums
from dlfd_fleet.audit.verdict_by_references import judge_by_references, left_without_each
from tests.erasure_report import scores
from tests.unit.audit.reference_world import World, losses, share_of


def left(world, share, **kwargs):
    original = share_of(world.sums(world.model(1.0)))
    return Left.of(original, share_of(world.sums(world.model(share, **kwargs))))


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
        share_of(world.sums(world.model(0.0))).standard_error
        for world in (World(asked=4), World(asked=16), World(asked=4, images=32))
    )
    assert people < 0.65 * few
    assert images < 0.65 * few


def test_without_the_forgotten_of_other_sites_the_rest_is_the_same():
    world = World(1)
    sums = world.sums(world.model(0.0))
    alone = [each.model_copy(update={"forget": MemberSums()}) for each in sums[1:]]
    share = share_of([sums[0], *alone])
    assert share.people == sums[0].forget.people == 2
    assert share.retained == share_of(sums).retained


def test_one_site_that_makes_its_retained_people_up_moves_neither_what_members_show_nor_the_noise():
    world = World(2)
    sums = world.sums(world.model(0.0))
    retain = sums[4].retain
    lie = retain.model_copy(update={"excess": 20.0 * retain.weight})
    told = share_of([*sums[:4], sums[4].model_copy(update={"retain": lie, "noise": 1e-6})])
    usual = sorted(share_of([each, *sums[:4]]).retained for each in sums)
    assert usual[0] <= told.retained <= usual[-1]
    assert told.noise > 0.3 * share_of(sums).noise


def test_people_whom_all_sites_hold_count_once_and_as_most_sites_say():
    world = World(4)
    said = world.model(0.0)
    own, shared = share_of(world.sums(said)), world.sums(said, shared=True)
    assert share_of(shared).value == pytest.approx(own.value, abs=1e-3)
    assert share_of(shared).level_error == pytest.approx(own.level_error, rel=0.05)  # sums are sent rounded
    lie = UnseenSums(**shared[0].shared.model_dump() | {"line": (320.0, 500.0, 4000.0, 3000.0, 9000.0)})
    told = [shared[0].model_copy(update={"shared": lie}), *shared[1:]]
    assert share_of(told).value == pytest.approx(share_of(shared).value)


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
    assert slope == pytest.approx(oracle.slope, rel=5e-3)  # of sums of three digits
    assert (z - slope * x) / count == pytest.approx(oracle.intercept, abs=2e-2)
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
    assert share_of(sums) is None


def test_without_people_never_trained_on_there_is_no_share():
    world = World(11, unseen=0)
    assert share_of(world.sums(world.model(0.0))) is None
    assert share_of([]) is None
    assert share_of([ReferenceSums()]) is None


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


def test_nothing_that_is_sent_of_people_never_trained_on_is_exact():
    world = World(9, sites=1, people=12, unseen=1, images=1, asked=2)
    (sums,) = world.sums(world.model(0.0))
    for number in (*sums.unseen.line, *sums.unseen.half_line, *sums.unseen.products):
        assert float(f"{number:.3g}") == number


# ---------------------------------------------------------------------- one site cannot decide for the others


def judged(world, share, lie=None):
    """The verdict of a model of which so much is left, of whose sites the last one tells a lie."""
    original, model = (world.sums(world.model(left)) for left in (1.0, share))
    before, after = share_of(original), share_of([*model[:-1], lie(model[-1])] if lie else model)
    audits = (scores(0.5).model_copy(update={"member_share": each}) for each in (before, after))
    return judge_by_references(Left.of(before, after), [], [], 0.1, left_without_each(*audits))


def one_image(sums):
    return sums.model_copy(
        update={"forget": MemberSums(people=1, images=1, weight=30.0, gap=900.0, predicted=0.0, excess=-400.0)}
    )


def lying_about_its_own(excess):
    def lie(sums):
        own, weight = sums.forget, 30.0 * sums.forget.images
        told = own.model_copy(
            update={"weight": weight, "gap": 30.0 * weight, "predicted": 0.0, "excess": excess * weight}
        )
        return sums.model_copy(update={"forget": told})

    return lie


def raising_the_level(sums):
    count, x, z, xx, xz = sums.unseen.line
    told = sums.unseen.model_copy(update={"line": (count, x, z + 13.0 * count, xx, xz + 13.0 * x)})
    return sums.model_copy(update={"unseen": told})


@pytest.mark.parametrize("lie", [one_image, lying_about_its_own(-20.0), lying_about_its_own(0.0), raising_the_level])
def test_no_single_site_hides_that_the_people_of_others_are_remembered(lie):
    for seed in range(5):
        world = World(seed, sites=12, asked=40)
        assert judged(world, 1.0).outcome is Outcome.FAIL
        assert judged(world, 1.0, lie).outcome is Outcome.FAIL
        assert judged(world, 1.0, lie).e_value < 1.0


def test_a_site_that_alone_makes_an_erasure_fail_is_named():
    world = World(1, sites=12, asked=40)
    assert judged(world, 0.0).outcome is Outcome.PASS
    verdict = judged(world, 0.0, lying_about_its_own(28.0))
    assert verdict.outcome is Outcome.FAIL
    assert "without 11, of what the original shows of its members, " in verdict.reasons[0]


def test_of_two_sites_neither_decides_what_members_show():
    world = World(5, sites=2, people=30, unseen=12, asked=16)
    sums = world.sums(world.model(1.0))
    own = sums[1].retain
    lie = own.model_copy(
        update={"weight": 0.1 * own.images, "gap": 0.01 * own.images, "predicted": 0.0, "excess": 2.8 * own.images}
    )
    told = share_of([sums[0], sums[1].model_copy(update={"retain": lie})])
    assert told.retained <= 1.1 * max(share_of([each, each]).retained for each in sums)


def test_no_site_takes_away_what_the_people_of_others_vary_by():
    world = World(3, sites=5, asked=30, unseen=2)
    sums = world.sums(world.model(0.0))
    usual = share_of(sums)
    mine = sums[4].unseen
    largest = mine.images * np.array([1.0, 14.0, 14.0, 196.0, 196.0])
    products = tuple(-0.9 * (np.outer(largest, largest) * (1.0 - np.eye(5)))[np.triu_indices(5)])
    told = [*sums[:4], sums[4].model_copy(update={"unseen": UnseenSums(**mine.model_dump() | {"products": products})})]
    assert share_of(told).level_error > 0.5 * usual.level_error


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_passes_the_checks_of_a_message_is_reckoned_with(data):
    world = World(3, sites=3, people=12, unseen=8, asked=6)
    sums = world.sums(world.model(0.0))
    numbers = st.one_of(
        st.sampled_from([0.0, 5e-324, 1e-320, 1e-200, 1e-6, 1.0, 30.0, 900.0, 1e300]), st.floats(-1e9, 1e9)
    )
    fields = {name: data.draw(numbers) for name in ("weight", "gap", "predicted", "excess")}
    counts = {name: data.draw(st.integers(0, 3)) for name in ("people", "images")}
    try:
        lie = MemberSums(**fields | counts)
    except ValidationError:
        return
    part = data.draw(st.sampled_from(["forget", "retain"]))
    for told in ([sums[0].model_copy(update={part: lie})], [*sums[:2], sums[2].model_copy(update={part: lie})]):
        share = share_of(told)
        if share is not None:
            assert np.isfinite([share.value, share.standard_error, share.retained, share.retained_error]).all()


def test_people_who_are_counted_without_images_or_images_without_people_are_refused():
    for counts in ({"people": 0, "images": 8}, {"people": 1, "images": 0}):
        with pytest.raises(ValidationError, match="of people without images"):
            MemberSums(**counts, weight=0.0)


# ---------------------------------------------------------------------- an error of what members show


def test_half_left_passes_once_in_twenty_and_is_no_evidence_though_what_members_show_is_uncertain():
    rng = np.random.default_rng(0)
    for error, scale_error in ((0.1, 0.3), (0.15, 0.2), (0.2, 0.4), (0.15, 0.05)):
        value, scale = rng.normal(0.5, error, 4000), rng.normal(1.0, scale_error, 4000)
        found = scale > 1.645 * scale_error
        drawn = [
            Left(one / by, error / by, 0.01, 8, 1.0, scale_error / by)
            for one, by in zip(value[found], scale[found], strict=True)
        ]
        assert np.mean([each.is_forgotten for each in drawn]) <= 0.065
        assert np.mean([each.e_value for each in drawn]) <= 1.05


def test_the_bounds_of_a_ratio_are_those_that_a_test_of_each_value_excludes():
    found = Left(0.3, 0.2, 0.05, 8, 1.0, 0.25)
    for bound in (found.low, found.high):
        error = np.hypot(found.standard_error, bound * found.scale_error)
        assert abs(found.value - bound) / error == pytest.approx(1.6448536)


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
        (-0.9, 0.25, "may_be_conspicuous"),
        (-1.0, 0.9, "is_forgotten"),  # far below strangers, or by chance: not more than half in any case
    ],
)
def test_what_is_shown(value, error, said):
    found = left_of(value, error)
    names = ("may_be_conspicuous", "is_forgotten", "is_remembered", "is_conspicuous")
    shown = [name for name in names if getattr(found, name)][:1]
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
    assert left_of(0.0, 0.01).e_value == 1000.0
    assert left_of(-0.4, 0.2).e_value == left_of(0.0, 0.2).e_value  # to be less known than a stranger is no more
    assert left_of(-9.0, 0.01).e_value == 1.0  # conspicuous


def test_so_many_people_decide_in_four_cases_of_five():
    found = left_of(0.3, 0.4, people=8)
    many = found.people_to_decide
    error = (found.level_error**2 + (found.standard_error**2 - found.level_error**2) * 8 / many) ** 0.5
    assert left_of(0.0, error).power == pytest.approx(0.8, abs=0.01)
    assert left_of(0.3, 0.4, level=0.3).people_to_decide is None


def test_the_chance_of_an_attacker_is_the_auc_of_single_people():
    world = World(13, sites=10, asked=60)
    original = share_of(world.sums(world.model(1.0)))
    found = Left.of(original, share_of(world.sums(world.model(0.0))))
    assert found.chance(0.0) == 0.5
    alone = [World(seed, asked=1) for seed in range(60)]
    shares = [[share_of(each.sums(each.model(left))).value for each in alone] for left in (0.0, 1.0)]
    auc = np.mean(np.array(shares[1])[:, None] > np.array(shares[0])[None, :])
    assert found.chance(1.0) == pytest.approx(auc, abs=0.12)
