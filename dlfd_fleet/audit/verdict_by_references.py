"""The verdict by reference models: how much is left of the forgotten people, in words."""

from __future__ import annotations

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


def judge_by_references(left: Left, failures: list[str], doubts: list[str], margin: float) -> Verdict:
    """Judge by what is left; two-sided, for people who stand out by high losses are found, too.

    Parameters
    ----------
    failures, doubts
        What is wrong with the model's utility, and what may be.
    margin
        Of AUC, for what else the verdict's reader compares.
    """
    failures, doubts = failures + leaks(left), doubts + _undecided(left)
    if failures:
        outcome, reasons = Outcome.FAIL, failures
    elif doubts:
        outcome, reasons = Outcome.INCONCLUSIVE, doubts
    else:
        outcome, reasons = Outcome.PASS, [f"{_said(left)}; {_attacker(left)}"]
    return Verdict(
        outcome=outcome,
        reasons=tuple(reasons),
        margin=margin,
        power=left.power,
        evidence=Evidence.REFERENCES,
        e_value=left.e_value,
    )


def leaks(left: Left) -> list[str]:
    """Say that forgotten people are shown to be remembered, or to stand out; nothing if neither is shown."""
    if left.is_remembered:
        return [f"forgotten people are still remembered: {_said(left)}; {_attacker(left)}"]
    if left.is_conspicuous:
        return [f"forgotten people are made conspicuous (losses above those of people never seen): {_said(left)}"]
    return []


def _said(left: Left) -> str:
    return f"of what the original shows of its members, {left} is left of the forgotten people"


def _attacker(left: Left) -> str:
    """Say what that is to an attacker who has such references."""
    now, most, member = (left.chance(max(0.0, value)) for value in (left.value, left.high, 1.0))
    return (
        "an attacker with the same references tells one of them from a stranger in "
        f"{now:.0%} of cases ({most:.0%} at most), and a member of the original in {member:.0%}"
    )


def _undecided(left: Left) -> list[str]:
    """Say that it is not decided, what could have been seen, and what would decide it."""
    if left.is_forgotten:
        return []
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
