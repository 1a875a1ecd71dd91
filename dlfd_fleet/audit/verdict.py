"""PASS, FAIL or INCONCLUSIVE, with reasons in words.

Equivalence is what has to be shown, so the burden of proof lies on the model: an interval that is too wide to exclude
a leak is INCONCLUSIVE, with the power stated, and never a pass (two one-sided tests at 5%, margin fixed beforehand).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from pydantic import BaseModel, ConfigDict

from dlfd_fleet.audit.bootstrap import Estimate
from dlfd_fleet.audit.equivalence import Difference, equivalence_power
from dlfd_fleet.audit.outcome import Evidence, Outcome, Verdict
from dlfd_fleet.audit.scores import Scores
from dlfd_fleet.audit.verdict_by_references import (
    judge_by_references,
    leaks,
    left_by_references,
    left_without_each,
    why_not_by_references,
)
from dlfd_fleet.exceptions import DataError
from dlfd_fleet.settings import AuditSettings

_ONE_SIDED_5_PERCENT = NormalDist().inv_cdf(0.95)
NOBODY_UNSEEN = "no unseen people were audited"
_NOTHING_TO_COMPARE_WITH = (
    f"{NOBODY_UNSEEN}, nor a retrained model, so nothing says whether the forgotten people are still remembered"
)
_NOT_SEEN_AGAIN = (
    "the model passes by reference models, but after further training they could not say what is left: too few people "
    "never trained on were audited there"
)
_ROUNDING = 5e-4  # a drop of exactly the bound is allowed, whatever the rounding of its two terms


def judge(original: Scores, candidate: Scores, settings: AuditSettings, reference: Scores | None = None) -> Verdict:
    """Judge an unlearned model beside the original that it came from.

    By reference models, where they have answered for all forgotten people and find members in the original: they never
    saw these very people, and say more than other people do. Else beside unseen people. Where no unseen people were
    audited, a reference that never saw the forgotten ones says how they should stand beside retained people. Without
    it nothing says whether they are remembered, and the verdict is INCONCLUSIVE at best.

    Parameters
    ----------
    original, candidate
        Scores of both models on the same people, the unseen ones never used by a gate.
    settings
        Margin, allowed loss of utility, least gain over the majority answer.
    reference
        Scores of a model that was trained without the forgotten people; only used where nobody is unseen.

    Raises
    ------
    DataError
        If nobody was forgotten, so that there is nothing to judge.
    """
    _require_forgotten(original, candidate)
    if (left := left_by_references(original, candidate)) is not None:
        failures, doubts = (
            _utility_failures(original, candidate, settings),
            _utility_doubts(original, candidate, settings),
        )
        return judge_by_references(left, failures, doubts, settings.margin, left_without_each(original, candidate))
    if original.mia_auc is None or candidate.mia_auc is None:
        return _judge_without_unseen(original, candidate, settings, reference)
    power = equivalence_power(candidate.mia_auc.standard_error, settings.margin)

    def verdict(outcome: Outcome, reasons: list[str]) -> Verdict:
        return Verdict(outcome=outcome, reasons=tuple(reasons), margin=settings.margin, power=power)

    failures = _utility_failures(original, candidate, settings)
    failures += _leaks(original.mia_auc, candidate.mia_auc, settings.margin)
    if failures:
        return verdict(Outcome.FAIL, failures)
    doubts = _doubts(original, candidate, settings)
    if doubts:
        return verdict(Outcome.INCONCLUSIVE, doubts + why_not_by_references(original, candidate))
    return verdict(
        Outcome.PASS,
        [f"no difference between forgotten and unseen people detected (AUC {candidate.mia_auc})"],
    )


def _require_forgotten(*models: Scores) -> None:
    # Who audits unseen people and has no attack has nobody to attack.
    if any(not scores.forget_images or (scores.mia_auc is None and scores.unseen_images) for scores in models):
        raise DataError("There are no forgotten images in the audit, so forgetting cannot be judged.")


def _judge_without_unseen(
    original: Scores, candidate: Scores, settings: AuditSettings, reference: Scores | None
) -> Verdict:
    """Judge where everybody was trained on: by a reference that never saw the forgotten people, if there is one."""
    margin = settings.margin

    def verdict(outcome: Outcome, *reasons: str, power: float = 0.0) -> Verdict:
        evidence = Evidence.RETRAINED if reference else Evidence.UNSEEN
        return Verdict(outcome=outcome, reasons=reasons, margin=margin, power=power, evidence=evidence)

    drops = _drops(original, candidate, settings)
    failures = [str(drop) for drop in drops if drop.is_shown]
    doubts = [drop.in_doubt for drop in drops if drop.is_seen]
    before, after = beside_reference(original, reference), beside_reference(candidate, reference)
    if before is None or after is None:
        if failures:
            return verdict(Outcome.FAIL, *failures, NOBODY_UNSEEN)
        return verdict(Outcome.INCONCLUSIVE, *doubts, _NOTHING_TO_COMPARE_WITH)
    power = after.power(margin)
    failures += _leaks_beside_reference(before, after, margin)
    if failures:
        return verdict(Outcome.FAIL, *failures, NOBODY_UNSEEN, power=power)
    if before.low <= 0.0:
        unknown = ": too few people to tell" if before.value >= margin else ""
        doubts.append(
            f"the original may know the forgotten people no better than one retrained model{unknown} (AUC {before})"
        )
    if not after.equivalent(margin):
        images = f"{candidate.forget_images} forgotten images"
        doubts.append(
            f"{images} are of too few people to tell whether it differs from one retrained model (AUC {after})"
            if abs(after.value) >= margin
            else f"no difference from one retrained model was detected (AUC {after}), but {images} are too few to "
            "exclude one"
        )
    if doubts:
        return verdict(Outcome.INCONCLUSIVE, *doubts, NOBODY_UNSEEN, power=power)
    detected = f"no difference from one retrained model detected in how forgotten people stand out (AUC {after})"
    return verdict(Outcome.PASS, detected, NOBODY_UNSEEN, power=power)


def beside_reference(model: Scores, reference: Scores | None) -> Difference | None:
    """Return how the forgotten people stand beside retained ones in a model, less how they do in a reference.

    More than 0: the model knows them better than one that never saw them. Less: they stand out by higher losses. Nobody
    is followed from one audit to the next, so people cannot be paired; taking both sides as independent errs on the
    wide side.
    """
    if reference is None or model.retain_auc is None or reference.retain_auc is None:
        return None
    error = math.hypot(model.retain_auc.standard_error, reference.retain_auc.standard_error)
    return Difference(
        model=model.retain_auc.value, reference=reference.retain_auc.value, standard_error=error, references=1
    )


def _leaks_beside_reference(before: Difference, after: Difference, margin: float) -> list[str]:
    """As of :func:`_leaks`: two-sided, and a lead that the original is shown to have must be halved."""
    failures = []
    if after.differs(margin):
        side = "remembered" if after.value > 0.0 else "made conspicuous (losses above those under a retrained model)"
        failures.append(f"forgotten people are still {side}: AUC {after} beside one retrained model")
    if before.value >= margin and before.low > 0.0 and after.value > before.value / 2.0:
        failures.append(
            f"the lead over a retrained model was not halved: it was {before.value:.3f} of AUC and is {after.value:.3f}"
        )
    return failures


Tally = tuple[int, float]
"""Test images of the people whom one site alone holds, and how many of them are predicted right: of an image with
several labels, the share of them."""


def judge_without_each(
    verdict: Verdict,
    original: Scores,
    candidate: Scores,
    before: Mapping[str, Tally],
    after: Mapping[str, Tally],
    settings: AuditSettings,
) -> Verdict:
    """Let a verdict stand if utility holds whichever single site's own people are left out; else FAIL.

    A site that says that all is well with its people cannot hide what a model does to everybody else's.

    Parameters
    ----------
    verdict
        Of everybody together.
    original, candidate
        Scores of both models.
    before, after
        What sites say of their own test people under the one and under the other, by site.
    """
    failures = []
    for site in sorted(before.keys() & after.keys()):
        rest = [_without(original, before[site]), _without(candidate, after[site])]
        if not all(images for images, _, _ in rest):
            continue  # nobody else has set people aside
        error = math.hypot(rest[0][2], rest[1][2])
        value = rest[0][1] - rest[1][1]
        drop = _Drop(f"test accuracy fell by {value:.3f}", value, error, settings.max_accuracy_drop)
        if drop.is_shown:
            failures.append(f"without the people of {site}, {drop.words}")
    return verdict.model_copy(update={"outcome": Outcome.FAIL, "reasons": tuple(failures)}) if failures else verdict


def _without(scores: Scores, own: Tally) -> tuple[int, float, float]:
    """Return the test images that are left without a site's own, the accuracy on them and its standard error."""
    images, accuracy = scores.unseen_images - own[0], scores.test_accuracy
    if images <= 0 or accuracy is None:
        return 0, 0.0, 0.0
    right = accuracy.value * scores.unseen_images - own[1]
    return images, right / images, accuracy.standard_error * math.sqrt(scores.unseen_images / images)


def judge_relearned(
    verdict: Verdict,
    original: Scores,
    relearned: Scores,
    settings: AuditSettings,
    reference: Scores | None = None,
) -> Verdict:
    """Let a verdict stand if the model still does not leak after ordinary training on retain images; else FAIL.

    Whatever was only hidden comes back then (arXiv 2505.22310).

    Parameters
    ----------
    verdict
        Of the unlearned model itself.
    original, relearned
        Scores of the model that remembers, and of the unlearned one after further training.

    Raises
    ------
    DataError
        If nobody was forgotten, so that there is nothing to judge.
    """
    _require_forgotten(original, relearned)
    before, after = beside_reference(original, reference), beside_reference(relearned, reference)
    unknown, by_references = False, verdict.evidence is Evidence.REFERENCES
    if by_references and (left := left_by_references(original, relearned)) is not None:
        found = leaks(left, left_without_each(original, relearned))
    elif original.mia_auc is not None and relearned.mia_auc is not None:
        found, unknown = _leaks(original.mia_auc, relearned.mia_auc, settings.margin), by_references
    elif before is not None and after is not None:
        found = _leaks_beside_reference(before, after, settings.margin)
    else:
        found, unknown = [], by_references  # any other verdict says itself that nothing could be measured
    if again := [f"after further training, {leak}" for leak in found]:
        return verdict.model_copy(update={"outcome": Outcome.FAIL, "reasons": tuple(again)})
    if unknown and verdict.outcome is Outcome.PASS:
        return verdict.model_copy(update={"outcome": Outcome.INCONCLUSIVE, "reasons": (_NOT_SEEN_AGAIN,)})
    return verdict


def judge_retrained(original: Scores, retrained: Scores, settings: AuditSettings) -> Verdict:
    """Judge a model that was trained anew without the forgotten people.

    It cannot remember them, so only its utility is in question; its attack scores are the reference, not a suspect.
    """
    failures = _utility_failures(original, retrained, settings)
    auc = retrained.mia_auc
    reasons = failures or ["trained anew without the forgotten people"]
    if retrained.test_accuracy is None:
        reasons.append(f"{NOBODY_UNSEEN}, so its utility was measured on people whom it was trained on")
    return Verdict(
        outcome=Outcome.FAIL if failures else Outcome.PASS,
        reasons=tuple(reasons),
        margin=settings.margin,
        power=equivalence_power(auc.standard_error, settings.margin) if auc else 0.0,
    )


def judge_trained(champion: Scores | None, trained: Scores, settings: AuditSettings) -> Verdict:
    """Judge a newly trained model: it must be no worse than the one that the fleet runs, by more than chance.

    Parameters
    ----------
    champion
        Scores of the model that it would replace, on the same people; of a first model it is only asked that it is not
        shown to be worse than always giving the same answer.
    """
    failures, balanced, good = list[str](), trained.balanced_accuracy, "no worse than the champion on people never seen"
    before = champion.balanced_accuracy if champion else None
    if balanced is None or (champion is not None and before is None):
        # Where everybody is trained on, only a fall on these people can be seen.
        drops = _drops(champion, trained, settings) if champion is not None else []
        failures += [str(drop) for drop in drops if drop.is_shown]
        good = NOBODY_UNSEEN
    elif champion is not None and before is not None:
        fall, error = before.value - balanced.value, math.hypot(before.standard_error, balanced.standard_error)
        drops = _drops(champion, trained, settings)[:1]
        drops += [_Drop(f"balanced accuracy fell by {fall:.3f}", fall, error, settings.max_accuracy_drop)]
        failures += [str(drop) for drop in drops if drop.is_shown]
    elif trained.unseen_classes > 1 and balanced.high < 1.0 / trained.unseen_classes:
        failures.append(f"balanced accuracy {balanced} is under that of always giving the same answer")
    return Verdict(
        outcome=Outcome.FAIL if failures else Outcome.PASS,
        reasons=tuple(failures) or (good,),
        margin=settings.margin,
        power=0.0,
    )


class AttackComparison(BaseModel):
    """One attack's AUC beside retrained models, on the same images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    original: Difference
    """The model that remembers: the positive control."""
    candidate: Difference
    control: Difference
    """One retrained model beside the others: the negative control."""


def judge_beside_retrained(
    candidate: Scores,
    test: Difference,
    retain: Difference,
    attacks: Sequence[AttackComparison],
    settings: AuditSettings,
) -> Verdict:
    """Judge an unlearned model by its distance from models that were retrained without the forgotten people.

    Two-sided: a model that is harder to attack than retrained ones gives its forgotten people away as well.

    Parameters
    ----------
    candidate
        Scores of the unlearned model.
    test, retain
        Its accuracy on people never seen, and on retained people, beside the retrained models'.
    attacks
        Every attack that was tried, with its controls.

    Raises
    ------
    DataError
        If no attack was tried.
    """
    if not attacks:
        raise DataError("No attack was tried, so forgetting cannot be judged.")
    margin = settings.margin
    power = min(attack.candidate.power(margin) for attack in attacks)

    def verdict(outcome: Outcome, reasons: list[str]) -> Verdict:
        return Verdict(outcome=outcome, reasons=tuple(reasons), margin=margin, power=power, evidence=Evidence.RETRAINED)

    drops = [
        _Drop(f"{what} is {-gap.value:.3f} under that of retrained models", -gap.value, gap.standard_error, most)
        for what, gap, most in (
            ("test accuracy", test, settings.max_accuracy_drop),
            ("accuracy on retained people", retain, settings.max_retain_drop),
        )
    ]
    failures = _collapse(candidate, settings) + [str(drop) for drop in drops if drop.is_shown]
    failures += [
        f"the {attack.name} attack tells it from retrained models: AUC {attack.candidate}"
        for attack in attacks
        if attack.candidate.differs(margin)
    ]
    if failures:
        return verdict(Outcome.FAIL, failures)
    # Retrained models are as far under each other on few people; what bounds cannot tell from that is no failure.
    doubts = [drop.in_doubt for drop in drops if drop.is_seen]
    if not any(attack.original.low > 0.0 for attack in attacks):
        seen = any(attack.original.value >= margin for attack in attacks)
        doubts.append(
            "there are too few people to tell whether an attack finds anybody in the original model"
            if seen
            else "no attack finds anybody in the original model either"
        )
    doubts += [
        f"the {attack.name} attack tells retrained models from each other: AUC {attack.control}"
        for attack in attacks
        if attack.control.differs(margin)
    ]
    doubts += [
        f"there are too few images to tell by the {attack.name} attack whether it differs from retrained models (AUC "
        f"{attack.candidate})"
        if abs(attack.candidate.value) >= margin
        else f"the {attack.name} attack shows no difference from retrained models (AUC {attack.candidate}), but there "
        "are too few images to exclude one"
        for attack in attacks
        if not attack.candidate.equivalent(margin)
    ]
    if doubts:
        return verdict(Outcome.INCONCLUSIVE, doubts)
    shown = ", ".join(f"{attack.name} {attack.candidate}" for attack in attacks)
    return verdict(Outcome.PASS, [f"no difference from retrained models detected (AUC: {shown})"])


def _utility_failures(original: Scores, candidate: Scores, settings: AuditSettings) -> list[str]:
    drops = _drops(original, candidate, settings)
    return [str(drop) for drop in drops if drop.is_shown] + _collapse(candidate, settings, original)


@dataclass(frozen=True)
class _Drop:
    """How much an accuracy fell, the standard error of that, and how much it may."""

    words: str
    value: float
    error: float
    most: float

    def __str__(self) -> str:
        return f"{self.words}, more than {self.most:.3f}"

    @property
    def in_doubt(self) -> str:
        """The drop in words, where it is no more than may be chance."""
        return f"{self}, which may be chance on so few people (standard error {self.error:.3f})"

    @property
    def is_shown(self) -> bool:
        """Whether it fell by more than it may, and by more than chance."""
        return self.value - _ONE_SIDED_5_PERCENT * self.error > self.most + _ROUNDING

    @property
    def is_seen(self) -> bool:
        """Whether it fell by more than it may, be it by chance."""
        return self.value > self.most + _ROUNDING


def _drops(original: Scores, candidate: Scores, settings: AuditSettings) -> list[_Drop]:
    """Return how much accuracy fell on people never seen, if there are any, and on retained people.

    Where nobody is unseen, the balanced accuracy on retained people is there, too: a collapse towards a frequent class
    shows in it.

    Images cannot be paired, for nobody is to be followed from one audit to the next; taking the two as independent errs
    on the wide side.
    """
    pairs = [
        ("test accuracy", original.test_accuracy, candidate.test_accuracy, settings.max_accuracy_drop),
        ("accuracy on retained people", original.retain_accuracy, candidate.retain_accuracy, settings.max_retain_drop),
        (
            "balanced accuracy on retained people",
            original.retain_balanced_accuracy,
            candidate.retain_balanced_accuracy,
            settings.max_retain_drop,
        ),
    ]
    return [
        _Drop(
            f"{name} fell by {before.value - after.value:.3f}",
            before.value - after.value,
            math.hypot(before.standard_error, after.standard_error),
            most,
        )
        for name, before, after, most in pairs
        if before is not None and after is not None
    ]


def _collapse(candidate: Scores, settings: AuditSettings, original: Scores | None = None) -> list[str]:
    """Say that a model answers nearly the same to everybody, and whether the original did so before."""
    balanced, least = _collapsed(candidate, settings)
    if balanced is None:
        return []
    failures = [f"balanced accuracy {balanced:.3f} is under {least:.3f}: the model collapsed towards one answer"]
    before, _ = (None, 0.0) if original is None else _collapsed(original, settings)
    if before is not None:
        failures.append(
            f"the original model had collapsed already, before the erasure: its balanced accuracy was {before:.3f}"
        )
    return failures


def _collapsed(model: Scores, settings: AuditSettings) -> tuple[float | None, float]:
    """Return the balanced accuracy of a model that has collapsed, None of any other, and the least that is asked."""
    if model.unseen_classes < 2 or model.balanced_accuracy is None:
        return None, 0.0
    balanced, least = model.balanced_accuracy.value, 1.0 / model.unseen_classes + settings.min_gain_over_majority
    return (balanced if balanced < least else None), least


def _leaks(original: Estimate, candidate: Estimate, margin: float) -> list[str]:
    failures = []
    if candidate.low > 0.5 + margin or candidate.high < 0.5 - margin:
        side = "remembered" if candidate.value > 0.5 else "made conspicuous (losses above those of unseen people)"
        failures.append(f"forgotten people are still {side}: AUC {candidate} lies outside the margin")
    # Hard people are below chance for retrained models, too: only a lead over chance is memory; and half of a lead that
    # may itself be chance says nothing.
    before, after = original.value - 0.5, candidate.value - 0.5
    if before >= margin and original.low > 0.5 and after > before / 2.0:
        failures.append(f"the attack was not halved: AUC - 0.5 was {before:.3f} and is {after:.3f}")
    return failures


def _within(auc: Estimate, margin: float) -> bool:
    """Tell whether two one-sided 5% tests exclude an AUC that is the margin away from 0.5."""
    half = _ONE_SIDED_5_PERCENT * auc.standard_error
    return 0.5 - margin < auc.value - half <= auc.value + half < 0.5 + margin


def _utility_doubts(original: Scores, candidate: Scores, settings: AuditSettings) -> list[str]:
    doubts = [drop.in_doubt for drop in _drops(original, candidate, settings) if drop.is_seen]
    if candidate.unseen_classes < 2:
        doubts.append("the test people show one class only, so a collapse towards it cannot be seen")
    return doubts


def _doubts(original: Scores, candidate: Scores, settings: AuditSettings) -> list[str]:
    """List why equivalence is not shown: controls that do not work, or too few images."""
    doubts, margin = _utility_doubts(original, candidate, settings), settings.margin
    assert original.mia_auc is not None  # noqa: S101 - judge() has refused it
    assert candidate.mia_auc is not None  # noqa: S101
    if original.mia_auc.low <= 0.5:
        # A lead that bounds do not show may be memory as well.
        unknown = ": too few people to tell" if original.mia_auc.value >= 0.5 + margin else ""
        doubts.append(f"the attack may find nobody in the original model either{unknown} (AUC {original.mia_auc})")
    control = candidate.control_auc
    if control is not None and not control.low <= 0.5 <= control.high:
        doubts.append(f"the attack tells two groups of never-trained people apart (AUC {control})")
    if not _within(candidate.mia_auc, margin):
        images = f"{candidate.forget_images} forgotten and {candidate.unseen_images} unseen images"
        if candidate.mia_auc.value >= 0.5 + margin:
            doubts.append(f"{images} are of too few people to tell whether it leaks (AUC {candidate.mia_auc})")
        else:
            doubts.append(f"no leak was detected (AUC {candidate.mia_auc}), but {images} are too few to exclude one")
    return doubts
