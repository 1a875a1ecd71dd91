"""The verdict: who bears the burden of proof, and what each outcome needs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlfd_fleet.audit import (
    Estimate,
    Evidence,
    Left,
    MemberShare,
    Outcome,
    Scores,
    equivalence_power,
    judge,
    judge_relearned,
    judge_retrained,
    judge_trained,
    judge_without_each,
)
from dlfd_fleet.audit.verdict_by_references import judge_by_references
from dlfd_fleet.exceptions import DataError
from dlfd_fleet.settings import AuditSettings

SETTINGS = AuditSettings(margin=0.10, max_accuracy_drop=0.02, min_gain_over_majority=0.10)


def estimate(value, error=0.02):
    return Estimate(
        value=value, low=max(0.0, value - 1.96 * error), high=min(1.0, value + 1.96 * error), standard_error=error
    )


def scores(auc=0.5, error=0.02, test=0.8, balanced=0.75, control=0.5, unseen_classes=2, retain=0.95, share=None):
    return Scores(
        test_accuracy=estimate(test),
        balanced_accuracy=estimate(balanced),
        retain_accuracy=estimate(retain),
        forget_accuracy=estimate(0.8),
        mia_accuracy=estimate(0.5),
        mia_auc=None if auc is None else estimate(auc, error),
        forgetting_score=0.0,
        nomus=0.9,
        control_auc=estimate(control),
        majority_baseline=0.7,
        unseen_classes=unseen_classes,
        forget_images=400,
        unseen_images=400,
        member_share=share,
    )


ORIGINAL = scores(auc=0.8)


@pytest.mark.parametrize(
    ("retain", "outcome"), [(0.93, Outcome.PASS), (0.89, Outcome.INCONCLUSIVE), (0.80, Outcome.FAIL)]
)
def test_people_who_stay_may_not_pay_for_it(retain, outcome):
    verdict = judge(ORIGINAL, scores(auc=0.51, retain=retain), SETTINGS)
    assert verdict.outcome is outcome
    assert ("accuracy on retained people fell" in verdict.sentence()) == (outcome is not Outcome.PASS)


def test_equivalence_shown_with_working_controls_passes():
    verdict = judge(ORIGINAL, scores(auc=0.51), SETTINGS)
    assert verdict.outcome is Outcome.PASS
    assert verdict.power > 0.95
    assert "forgotten" in verdict.sentence()


@pytest.mark.parametrize(
    ("candidate", "words"),
    [
        (scores(auc=0.70), "remembered"),
        (scores(auc=0.30), "conspicuous"),
        (scores(auc=0.68, error=0.2), "not halved"),
        (scores(test=0.70), "test accuracy fell by 0.100"),
        (scores(balanced=0.55), "collapsed"),
    ],
)
def test_a_leak_a_lost_utility_or_a_collapse_fails(candidate, words):
    verdict = judge(ORIGINAL, candidate, SETTINGS)
    assert verdict.outcome is Outcome.FAIL
    assert words in verdict.sentence()


COLLAPSED = "balanced accuracy 0.550 is under 0.600: the model collapsed towards one answer"
BEFORE = "the original model had collapsed already, before the erasure: its balanced accuracy was 0.520"


@pytest.mark.parametrize("judged", [judge, judge_retrained])
def test_a_collapse_from_before_the_erasure_is_not_laid_at_its_door(judged):
    candidate = scores(balanced=0.55)
    assert judged(ORIGINAL, candidate, SETTINGS).reasons == (COLLAPSED,)
    assert judged(scores(auc=0.8, balanced=0.52), candidate, SETTINGS).reasons == (COLLAPSED, BEFORE)
    assert BEFORE not in judged(scores(auc=0.8, balanced=0.52), scores(), SETTINGS).reasons  # it is well again


@pytest.mark.parametrize(
    ("original", "candidate", "words"),
    [
        (ORIGINAL, scores(auc=0.52, error=0.09), "too few"),
        (scores(auc=0.53), scores(auc=0.51), "may find nobody in the original"),
        (scores(auc=0.38), scores(auc=0.51), "may find nobody in the original"),  # hard people, and no memory of them
        (scores(auc=0.62, error=0.2), scores(auc=0.51), "may find nobody in the original"),
        (scores(auc=0.70, error=0.2), scores(auc=0.62, error=0.1), "may find nobody in the original"),
        # One forgotten person: the bounds hold everything, and nothing can be told of either model.
        (
            scores(auc=1.0, error=0.5),
            scores(auc=0.51),
            "model either: too few people to tell (AUC 1.000, with bounds that",
        ),
        (scores(auc=1.0, error=0.5), scores(auc=1.0, error=0.5), "are of too few people to tell whether it leaks (AUC"),
        (ORIGINAL, scores(auc=0.51, control=0.7), "never-trained"),
        (ORIGINAL, scores(auc=0.51, unseen_classes=1), "one class only"),
    ],
)
def test_broken_controls_and_few_images_are_inconclusive_never_a_pass(original, candidate, words):
    verdict = judge(original, candidate, SETTINGS)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert words in verdict.sentence()


def test_of_an_attack_that_seems_to_find_somebody_it_is_not_said_that_it_finds_nobody():
    verdict = judge(scores(auc=1.0, error=0.5), scores(auc=1.0, error=0.5), SETTINGS)
    assert "no leak" not in verdict.sentence()


def test_a_drop_of_exactly_the_bound_is_allowed():
    assert judge(ORIGINAL, scores(test=0.78), SETTINGS).outcome is Outcome.PASS


def test_nobody_forgotten_cannot_be_judged():
    with pytest.raises(DataError, match="no forgotten images"):
        judge(ORIGINAL, scores(auc=None), SETTINGS)


def test_a_drop_that_few_people_cannot_tell_from_chance_is_a_doubt():
    verdict = judge(ORIGINAL, scores(test=0.77), SETTINGS)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "test accuracy fell by 0.030, more than 0.020, which may be chance" in verdict.reasons[0]


def test_below_chance_is_no_memory_until_bounds_say_that_it_stands_out():
    assert judge(ORIGINAL, scores(auc=0.35, error=0.2), SETTINGS).outcome is Outcome.INCONCLUSIVE
    assert judge(ORIGINAL, scores(auc=0.35, error=0.01), SETTINGS).outcome is Outcome.FAIL


def test_what_comes_back_after_further_training_fails_a_model_that_had_passed():
    passed = judge(ORIGINAL, scores(), SETTINGS)
    assert judge_relearned(passed, ORIGINAL, scores(auc=0.52, test=0.4), SETTINGS) == passed
    back = judge_relearned(passed, ORIGINAL, scores(auc=0.75), SETTINGS)
    assert back.outcome is Outcome.FAIL
    assert all(reason.startswith("after further training, ") for reason in back.reasons)


def test_a_retrained_model_is_judged_by_utility_alone():
    assert judge_retrained(ORIGINAL, scores(auc=0.75), SETTINGS).outcome is Outcome.PASS
    assert judge_retrained(ORIGINAL, scores(test=0.5), SETTINGS).outcome is Outcome.FAIL


@given(st.floats(0.001, 0.5), st.floats(0.01, 0.4))
def test_stated_power_is_the_share_of_simulated_tests_that_pass(error, margin):
    estimates = np.random.default_rng(0).normal(0.5, error, 20_000)
    passed = np.mean(np.abs(estimates - 0.5) + 1.6449 * error < margin)
    assert equivalence_power(error, margin) == pytest.approx(passed, abs=0.015)


def test_a_site_that_praises_a_ruined_model_cannot_hide_what_others_see():
    """Three sites with 100 test images each, and a liar with 400: together they see no loss."""
    before = dict.fromkeys(("site-1", "site-2", "site-3"), (100, 80)) | {"liar": (400, 320)}
    ruined = dict.fromkeys(("site-1", "site-2", "site-3"), (100, 50)) | {"liar": (400, 400)}
    original, candidate = scores(auc=0.8), scores(auc=0.51, test=550 / 700)
    original, candidate = (model.model_copy(update={"unseen_images": 700}) for model in (original, candidate))
    together = judge(original, candidate, SETTINGS)
    assert together.outcome is Outcome.PASS
    verdict = judge_without_each(together, original, candidate, before, ruined, SETTINGS)
    assert verdict.outcome is Outcome.FAIL
    assert verdict.reasons == ("without the people of liar, test accuracy fell by 0.300",)
    honest = dict.fromkeys(before, (100, 80)) | {"liar": (400, 310)}
    assert judge_without_each(together, original, candidate, before, honest, SETTINGS) == together
    # Where one site holds all the people that were set aside, there is nobody to ask beside it.
    assert (
        judge_without_each(together, original, candidate, {"liar": (700, 560)}, {"liar": (700, 1)}, SETTINGS)
        == together
    )


def test_a_trained_model_must_be_no_worse_than_the_champion_by_more_than_chance():
    champion = scores(auc=None)
    assert judge_trained(champion, scores(auc=None, test=0.79, balanced=0.74), SETTINGS).outcome is Outcome.PASS
    assert judge_trained(champion, scores(auc=None, test=0.77), SETTINGS).outcome is Outcome.PASS  # 0.03 may be chance
    fell = judge_trained(champion, scores(auc=None, test=0.46), SETTINGS)
    assert (fell.outcome, fell.reasons) == (Outcome.FAIL, ("test accuracy fell by 0.340, more than 0.020",))
    collapsed = judge_trained(champion, scores(auc=None, balanced=0.5), SETTINGS)
    assert collapsed.reasons == ("balanced accuracy fell by 0.250, more than 0.020",)
    # Fewer people learnt by heart are no loss.
    assert judge_trained(champion, scores(auc=None, retain=0.5), SETTINGS).outcome is Outcome.PASS


def test_a_first_model_is_refused_only_if_it_is_shown_to_be_worse_than_one_answer():
    assert judge_trained(None, scores(auc=None, balanced=0.5), SETTINGS).outcome is Outcome.PASS
    assert judge_trained(None, scores(auc=None, balanced=0.47), SETTINGS).outcome is Outcome.PASS
    assert judge_trained(None, scores(auc=None, balanced=0.3), SETTINGS).outcome is Outcome.FAIL
    assert judge_trained(None, scores(auc=None, balanced=0.3, unseen_classes=1), SETTINGS).outcome is Outcome.PASS


def without_unseen(auc=0.5, error=0.02, retain=0.95, balanced=0.9):
    """Scores where everybody was trained on; ``auc`` says how forgotten people stand out from retained ones."""
    nothing = dict.fromkeys(
        ("test_accuracy", "balanced_accuracy", "mia_accuracy", "mia_auc", "forgetting_score", "nomus", "control_auc")
    )
    changes = {
        **nothing,
        "majority_baseline": None,
        "unseen_classes": 0,
        "unseen_images": 0,
        "retain_accuracy": estimate(retain),
        "retain_balanced_accuracy": estimate(balanced),
        "retain_auc": estimate(auc, error),
    }
    return scores().model_copy(update=changes)


RETRAINED = without_unseen(0.2)


def test_without_unseen_people_and_without_a_reference_nothing_is_claimed():
    verdict = judge(without_unseen(), without_unseen(), SETTINGS)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.power == 0.0
    assert verdict.reasons == (
        "no unseen people were audited, nor a retrained model, so nothing says whether the forgotten people are still "
        "remembered",
    )
    assert judge_relearned(verdict, without_unseen(), without_unseen(), SETTINGS) == verdict
    assert judge_without_each(verdict, without_unseen(), without_unseen(), {}, {}, SETTINGS) == verdict
    # Whoever answered of one model only is compared with nobody either.
    assert judge(ORIGINAL, without_unseen(), SETTINGS).outcome is Outcome.INCONCLUSIVE


@pytest.mark.parametrize(
    ("original", "candidate", "outcome", "words"),
    [
        (0.5, without_unseen(0.21), Outcome.PASS, "no difference from one retrained model detected"),
        (0.5, without_unseen(0.40), Outcome.FAIL, "still remembered: AUC +0.200"),
        (0.5, without_unseen(0.02), Outcome.FAIL, "conspicuous (losses above those under a retrained model)"),
        (0.5, without_unseen(0.38, error=0.2), Outcome.FAIL, "was not halved"),
        (0.5, without_unseen(0.22, error=0.2), Outcome.INCONCLUSIVE, "400 forgotten images are too few"),
        (0.5, without_unseen(0.34, error=0.2), Outcome.INCONCLUSIVE, "400 forgotten images are of too few people"),
        (0.22, without_unseen(0.2), Outcome.INCONCLUSIVE, "may know the forgotten people no better than one retrained"),
        (0.5, without_unseen(0.21, retain=0.80), Outcome.FAIL, "accuracy on retained people fell by 0.150"),
        (0.5, without_unseen(0.21, balanced=0.5), Outcome.FAIL, "balanced accuracy on retained people fell by 0.400"),
        (0.5, without_unseen(0.21, retain=0.89), Outcome.INCONCLUSIVE, "which may be chance"),
    ],
)
def test_without_unseen_people_a_model_that_never_saw_the_forgotten_ones_is_the_reference(
    original, candidate, outcome, words
):
    verdict = judge(without_unseen(original), candidate, SETTINGS, RETRAINED)
    assert verdict.outcome is outcome
    assert words in verdict.sentence()
    assert "no unseen people were audited" in verdict.sentence()


def test_without_a_reference_lost_utility_fails_all_the_same():
    verdict = judge(without_unseen(), without_unseen(retain=0.80), SETTINGS)
    assert verdict.outcome is Outcome.FAIL
    assert "accuracy on retained people fell by 0.150" in verdict.sentence()


def test_where_there_are_unseen_people_the_reference_changes_nothing():
    assert judge(ORIGINAL, scores(auc=0.51), SETTINGS, RETRAINED) == judge(ORIGINAL, scores(auc=0.51), SETTINGS)


def test_what_comes_back_beside_the_reference_fails_too():
    original = without_unseen()
    passed = judge(original, without_unseen(0.21), SETTINGS, RETRAINED)
    assert judge_relearned(passed, original, without_unseen(0.22), SETTINGS, RETRAINED) == passed
    verdict = judge_relearned(passed, original, without_unseen(0.45), SETTINGS, RETRAINED)
    assert verdict.outcome is Outcome.FAIL
    assert "after further training, forgotten people are still remembered" in verdict.sentence()


def test_a_retrained_model_and_a_new_champion_are_judged_on_retained_people_where_nobody_is_unseen():
    good, bad = without_unseen(), without_unseen(retain=0.7)
    verdict = judge_retrained(good, good, SETTINGS)
    assert verdict.outcome is Outcome.PASS
    assert "no unseen people were audited, so its utility was measured on people whom" in verdict.sentence()
    assert judge_retrained(good, bad, SETTINGS).outcome is Outcome.FAIL
    assert judge_trained(None, good, SETTINGS).outcome is Outcome.PASS
    assert judge_trained(good, good, SETTINGS).reasons == ("no unseen people were audited",)
    assert judge_trained(good, bad, SETTINGS).outcome is Outcome.FAIL
    assert judge_trained(ORIGINAL, bad, SETTINGS).outcome is Outcome.FAIL


# ---------------------------------------------------------------------- by reference models


def share(value, error=0.1, retained=0.7, retained_error=0.05, images=400, people=20):
    return MemberShare(
        value=value,
        standard_error=error,
        retained=retained,
        retained_error=retained_error,
        level_error=0.05,
        people=people,
        images=images,
        noise=10.0,
        gap=10.0 / (error**2 - 0.05**2),
    )


MEMBERS = scores(auc=0.5, error=0.2, share=share(0.7))
"""An original in which other people never seen show nothing, and reference models do."""


@pytest.mark.parametrize(
    ("value", "error", "outcome", "words"),
    [
        (0.0, 0.1, Outcome.PASS, "0% [-24%, 24%] is left of the forgotten people"),
        (0.7, 0.1, Outcome.FAIL, "forgotten people are still remembered"),
        (-0.7, 0.1, Outcome.FAIL, "made conspicuous"),
        (0.2, 0.2, Outcome.INCONCLUSIVE, "the least that is told from nothing is 71%; it takes about"),
        (0.2, 2.0, Outcome.INCONCLUSIVE, "20 forgotten people with so few images cannot show whether anything is left"),
    ],
)
def test_reference_models_decide_where_they_have_answered(value, error, outcome, words):
    verdict = judge(MEMBERS, scores(auc=0.5, error=0.2, share=share(value, error)), SETTINGS)
    assert verdict.outcome is outcome
    assert verdict.evidence is Evidence.REFERENCES
    assert words in verdict.sentence()
    assert "(margin 50% of what members show, power" in verdict.sentence()
    assert "[0.000, 1.000]" not in verdict.sentence()


def test_a_pass_says_what_an_attacker_can_do():
    verdict = judge(MEMBERS, scores(share=share(0.1)), SETTINGS)
    assert "an attacker with the same references tells one of them from a stranger in" in verdict.sentence()
    assert verdict.power > 0.9
    assert verdict.e_value > 10.0
    assert judge(MEMBERS, scores(share=share(0.7)), SETTINGS).e_value < 0.05


@pytest.mark.parametrize(
    "after",
    [
        share(0.0, images=399),  # an image came after the reference models
        None,
    ],
)
def test_where_references_do_not_cover_everybody_other_people_are_the_evidence(after):
    verdict = judge(ORIGINAL.model_copy(update={"member_share": share(0.7)}), scores(auc=0.51, share=after), SETTINGS)
    assert verdict.evidence is Evidence.UNSEEN
    assert verdict.e_value is None
    assert verdict.outcome is Outcome.PASS


def test_references_that_find_no_members_in_the_original_are_no_evidence():
    before = scores(auc=0.8, share=share(0.1, retained=0.1, retained_error=0.1))
    assert judge(before, scores(auc=0.51, share=share(0.0)), SETTINGS).evidence is Evidence.UNSEEN


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (share(0.7), share(0.0, images=399), "reference models have answered for 399 of 400 forgotten images"),
        (share(0.1, retained=0.1, retained_error=0.1), share(0.0), "reference models find too little of retained"),
    ],
)
def test_who_has_references_that_do_not_decide_is_told_why(before, after, words):
    vague = scores(auc=0.5, error=0.2).model_copy(update={"member_share": after})
    verdict = judge(scores(auc=0.8, error=0.2).model_copy(update={"member_share": before}), vague, SETTINGS)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert words in verdict.sentence()


def test_by_references_too_utility_may_not_fall():
    verdict = judge(MEMBERS, scores(test=0.70, share=share(0.0)), SETTINGS)
    assert verdict.outcome is Outcome.FAIL
    assert "test accuracy fell by 0.100" in verdict.sentence()
    assert verdict.evidence is Evidence.REFERENCES


def test_what_comes_back_by_further_training_is_found_by_references():
    verdict = judge(MEMBERS, scores(share=share(0.0)), SETTINGS)
    assert judge_relearned(verdict, MEMBERS, scores(auc=0.9, share=share(0.1)), SETTINGS) is verdict
    worse = judge_relearned(verdict, MEMBERS, scores(share=share(0.7)), SETTINGS)
    assert worse.outcome is Outcome.FAIL
    assert "after further training, forgotten people are still remembered" in worse.sentence()


@pytest.mark.parametrize("auc", [0.6, None])
def test_a_pass_by_references_does_not_stand_if_they_cannot_say_what_comes_back(auc):
    verdict = judge(MEMBERS, scores(share=share(0.0)), SETTINGS)
    unseen = {} if auc else {"unseen_images": 0}
    again = scores(auc=auc, error=0.2, share=None).model_copy(update=unseen)
    after = judge_relearned(verdict, MEMBERS, again, SETTINGS)
    assert after.outcome is Outcome.INCONCLUSIVE
    assert "after further training they could not say what is left" in after.sentence()


def test_by_references_too_test_people_of_one_class_are_a_doubt():
    one = {"unseen_classes": 1}
    verdict = judge(MEMBERS.model_copy(update=one), scores(share=share(0.0), unseen_classes=1), SETTINGS)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "the test people show one class only" in verdict.sentence()


def test_people_who_probably_stand_out_by_high_losses_do_not_pass():
    verdict = judge(MEMBERS, scores(share=share(-0.63, 0.17)), SETTINGS)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "forgotten people may be conspicuous" in verdict.sentence()


def test_an_attacker_who_looks_for_high_losses_is_counted_too():
    found = Left(-0.4, 0.1, 0.05, 8, 0.5)
    (reason,) = judge_by_references(found, [], [], 0.1).reasons
    assert f"in {found.chance(0.4):.0%} of cases ({found.chance(-found.low):.0%} at most)" in reason


@given(st.floats(-2.0, 2.0), st.floats(0.06, 1.0))
def test_more_that_is_left_never_makes_a_verdict_better(value, error):
    order = [Outcome.PASS, Outcome.INCONCLUSIVE, Outcome.FAIL]
    outcomes = [
        order.index(judge(MEMBERS, scores(share=share(each, error)), SETTINGS).outcome)
        for each in (max(0.0, value), max(0.0, value) + 0.3)
    ]
    assert outcomes == sorted(outcomes)


def test_bounds_that_exclude_nothing_are_not_shown_as_a_result():
    verdict = judge(scores(auc=0.5, error=0.3), scores(auc=0.5, error=0.3), SETTINGS)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "AUC 0.500, with bounds that exclude nothing" in verdict.sentence()
    assert "[0.0" not in verdict.sentence()
