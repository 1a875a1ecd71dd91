"""The verdict by reference models: how much is left of the forgotten people, in words."""

from __future__ import annotations

from collections.abc import Mapping

from dlfd_fleet.audit.outcome import Evidence, Outcome, Verdict
from dlfd_fleet.audit.scores import Scores
from dlfd_fleet.audit.shares import HALF, Left


def left_by_references(original: Scores, model: Scores) -> Left | None:
    """Return what is left of forgotten people; None where references cannot say it of all of them.

    Nor can they if they do not find retained people in the original: that is the positive control.
    """
    before, after = original.member_share, model.member_share
    if before is None or after is None or not before.finds_members:
        return None
    covered = after.images == model.forget_images and before.images == original.forget_images
    return Left.of(before, after) if covered else None


def left_without_each(original: Scores, model: Scores) -> dict[str, Left]:
    """Return what is left of forgotten people without all that one site sent, by site, where references can say it."""
    before, after = original.member_share, model.member_share
    if before is None or after is None:
        return {}
    pairs = {site: (before.without[site], after.without[site]) for site in before.without.keys() & after.without.keys()}
    return {site: Left.of(*pair) for site, pair in sorted(pairs.items()) if pair[0].finds_members}


def why_not_by_references(original: Scores, model: Scores) -> list[str]:
    """Say why reference models that have answered are not the evidence; nothing where there are none, or they are."""
    before, after = original.member_share, model.member_share
    if before is None or after is None or left_by_references(original, model) is not None:
        return []
    if not before.finds_members:
        return ["reference models find too little of retained people in the original to say what is left of others"]
    return [
        f"reference models have answered for {after.images} of {model.forget_images} forgotten images, and say nothing "
        "of the others"
    ]


def judge_by_references(
    left: Left, failures: list[str], doubts: list[str], margin: float, without: Mapping[str, Left] | None = None
) -> Verdict:
    """Judge by what is left. It is two-sided, because people who stand out by high losses are found, too.

    One site alone cannot make a leak pass: the forgotten people of the others are judged without all that it sent, too.

    Parameters
    ----------
    failures, doubts
        What is wrong with the model's utility, and what may be.
    margin
        Of the AUC; the verdict's reader sees it beside other scores.
    without
        What is left without each site (:func:`left_without_each`).
    """
    without = without or {}
    failures, doubts = failures + leaks(left, without), doubts + _undecided(left, without)
    if failures:
        outcome, reasons = Outcome.FAIL, failures
    elif doubts:
        outcome, reasons = Outcome.INCONCLUSIVE, doubts
    else:
        outcome, reasons = Outcome.PASS, [f"{_said(left)}; {_attacker(left)}"]
    # Of a PASS no single site decides. Of another verdict one may, and then its answers are no evidence.
    rest = [] if outcome is Outcome.PASS else [each.e_value for each in without.values()]
    return Verdict(
        outcome=outcome,
        reasons=tuple(reasons),
        margin=margin,
        power=left.power,
        evidence=Evidence.REFERENCES,
        e_value=min([left.e_value, *rest]),
    )


def leaks(left: Left, without: Mapping[str, Left]) -> list[str]:
    """Say that forgotten people are shown to be remembered or conspicuous; nothing if neither is shown.

    Parameters
    ----------
    without
        What is left without each site (:func:`left_without_each`).
    """
    if left.is_remembered:
        alone = [f"without {site}, {_said(each)}" for site, each in without.items() if each.value < HALF]
        return ["; ".join([f"forgotten people are still remembered: {_said(left)}", _attacker(left), *alone])]
    if left.is_conspicuous:
        return [f"forgotten people are made conspicuous (losses above those of people never seen): {_said(left)}"]
    return [f"without {site}, {leak}" for site, each in without.items() for leak in leaks(each, {})]


def _said(left: Left) -> str:
    return f"of what the original shows of its members, {left} is left of the forgotten people"


def _attacker(left: Left) -> str:
    """Say what that is to an attacker who has such references."""
    most = max(abs(left.low), abs(left.high))
    now, most, member = (left.chance(value) for value in (abs(left.value), most, 1.0))
    return (
        "an attacker with the same references tells one of them from a stranger in "
        f"{now:.0%} of cases ({most:.0%} at most), and a member of the original in {member:.0%}"
    )


def _undecided(left: Left, without: Mapping[str, Left]) -> list[str]:
    """Say that it is not decided, what could have been seen, and what would decide it."""
    if left.may_be_conspicuous:
        return [f"forgotten people may be conspicuous (losses above those of people never seen): {_said(left)}"]
    if left.is_forgotten:
        return [
            f"the answers of {site} alone decide: without it, {_said(each)}"
            for site, each in without.items()
            if each.value >= HALF
        ]
    people, enough = f"{left.people} forgotten {'person' if left.people == 1 else 'people'}", what_decides(left)
    if left.says_nothing:
        return [f"{people} with so few images cannot show whether anything is left; {enough}"]
    return [
        f"{_said(left)}, which is not shown to be under {HALF:.0%}: with {people} the least that is told from nothing "
        f"is {left.least_seen:.0%}; {enough}"
    ]


def what_decides(left: Left) -> str:
    """Say how many people it takes to show in four cases of five that nothing is left."""
    wanted = left.people_to_decide
    if wanted is None:
        return "it takes more people never trained on"
    if wanted > left.people:
        return f"it takes about {wanted} people like these, or {wanted / left.people:.1f} times the images of each"
    return "so many show it in four cases of five if nothing is left"
