"""A report in plain words, that claim no more than was measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, date
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

from dlfd_fleet.audit import Difference, Evidence, Outcome, Scores, Verdict, left_by_references, margin_in_words
from dlfd_fleet.report.contents import AimedAt, AttemptMade, Compared, ErasureReport, Proceedings

if TYPE_CHECKING:
    from dlfd_fleet.report.certificate import Statement, VerdictClaim

_COMPARED: dict[Compared, str] = {
    "mia_auc": "AUC of the attack",
    "retain_auc": "AUC of the people who asked against retained people",
    "test_accuracy": "accuracy on people never trained on",
    "forget_accuracy": "accuracy on the people who asked",
}

_METHODS = {"dlfd": "distribution-level feature distancing, arXiv 2409.14747"}
"""What is said in place of a method's name."""
AIMS: dict[AimedAt, str] = {
    "references": "what reference models, which never saw the people who asked, say of the images",
    "own-answers": "what the model itself says of changed copies of the images",
    "fleet-gate": "nothing but one gate of the whole fleet",
}
"""What sites aim at, as what follows the words "aimed at"."""
_FILE_STEP, _EVERYWHERE = "audit-file-", "-everywhere"
_MOST_LAYERS = 12  # that are named one by one
STEPS: dict[str, str] = {
    "asked": "asking the sites who wants to be forgotten",
    "way": "comparing what unlearning and training anew would cost",
    "champion": "looking up the model in use",
    "audit-original": "attacking the original model",
    "compare-references": "comparing reference models with the original model",
    "distancing": "unlearning at the sites that were asked",
    "repair": "training on everybody else, to keep the model useful",
    "gate": "measuring whether it is enough",
    "audit-unlearned": "attacking the unlearned model",
    "relearn": "training on, to see what comes back",
    "audit-relearned": "attacking it again after that",
    "retrain": "training anew without the people",
    "audit-retrained": "attacking the retrained model",
    "export": "exporting to ONNX",
    "audit-file": "attacking the exported fp32 file",
    "calibrate": "measuring ranges of activations",
    "settle": "telling the sites; they purge",
}
"""What a journal's steps are called, but those of the other files, which have the names of their formats."""


def step(name: str) -> str:
    """Return what a journal's step is called."""
    if name.endswith(_EVERYWHERE):
        return f"{step(name.removesuffix(_EVERYWHERE))} at all sites"
    if name.startswith(_FILE_STEP):
        return f"attacking the exported {name.removeprefix(_FILE_STEP)} file"
    return STEPS.get(name, name)


class MethodUsed(Protocol):
    """What reports of a fleet and of one machine say of the method."""

    @property
    def method(self) -> str:
        """Its name."""

    @property
    def method_title(self) -> str:
        """What people call it."""

    @property
    def method_package(self) -> str:
        """Distribution and version."""

    @property
    def method_settings(self) -> Mapping[str, Any]:
        """Its own hyper-parameters."""


def method_title(used: MethodUsed) -> str:
    """Return what people call a method; reports of before there were others do not say it."""
    return used.method_title or ("DLFD" if used.method == "dlfd" else used.method)


def method(used: MethodUsed) -> str:
    """Return the method in words: title, name, package, and its own hyper-parameters."""
    own = ", ".join(f"{name} = {value}" for name, value in used.method_settings.items())
    known = ", ".join(filter(None, (_METHODS.get(used.method, used.method), used.method_package)))
    return f"{method_title(used)} ({known}{own and f'; {own}'})"


def count(number: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def day(moment: date) -> str:
    """Return a date as people write it."""
    return f"{moment:%d %B %Y}".lstrip("0")


def headline(report: ErasureReport) -> str:
    """Say in one line what came of it."""
    asked = f"{count(report.requests, 'request')} to be forgotten"
    if report.released:
        return f"{asked}: a new model was released"
    if report.nothing_to_unlearn:
        return f"{asked}: no model was trained on them"
    return f"{asked}: no model was released"


def asked(report: ErasureReport) -> str:
    """Say who asked when, and by when that was due."""
    return f"{_asked(report)} {_deadline(report)}"


def _asked(report: ErasureReport) -> str:
    sites = sum(1 for site in report.sites if site.requests)
    where = f" reached {count(sites, 'site')} of this fleet" if sites else " reached this fleet"
    days = [request.asked_at for request in report.asked]
    first, last = day(min(days)), day(max(days))
    when = f"On {first}, " if first == last else f"Between {first} and {last}, "
    images = sum(site.forget_images for site in report.sites)
    trained = f" The sites hold {count(images, 'image')} of the people who asked." if images else ""
    return f"{when}{count(report.requests, 'request')} to be forgotten{where}.{trained}"


def done(report: ErasureReport) -> str:
    """Say what became of the model and the images, for somebody who is no engineer."""
    if report.nothing_to_unlearn:
        purged = count(report.purged_images, "image")
        return f"No model of the fleet was trained on them, so none had to change. The sites deleted {purged}."
    if not report.released:
        return (
            "No model was released by this job: the model in use before stays in use, no image was purged, and the "
            f"requests wait for the next job. {_why_not_released(report)}"
        )
    if report.retrained:
        how = "a model that was trained anew without them"
    else:
        how = (
            f"one that was changed by a procedure called {method_title(report)}, with the aim that it treats their "
            "images like those of people whom it has never seen"
        )
    when = f" on {day(report.settled_at)}" if report.settled_at else ""
    waiting = report.requests - len(report.served)
    rest = f" {count(waiting, 'request')} could not be served and wait for the next job." if waiting else ""
    purged = (
        f" The sites then deleted {count(report.purged_images, 'image')} of theirs." if report.purged_images else ""
    )
    return f"The fleet's model was replaced{when} by {how}. It is epoch {report.epoch}.{purged}{rest}"


def aimed(noted: Proceedings) -> Iterator[str]:
    """Say what each attempt to unlearn aimed at, and which failed, for somebody who is no engineer.

    Records of earlier releases do not have it, so nothing is said.
    """
    made = noted.attempts_made
    if len(made) > 1:
        yield _which_failed(noted)
    for one in made:
        because = f", because {one.because}" if one.because else ""
        said = f"Sites aimed at {AIMS[one.aim]}{because}."
        if one.aim == "fleet-gate":
            said += " So all sites took part."
        failed = f" This attempt failed: {one.failed}" if one.failed else ""
        yield (f"Attempt {one.number}: " if len(made) > 1 else "") + said + failed


def _which_failed(noted: Proceedings) -> str:
    many = len(noted.attempts_made)
    if noted.attempts_made[-1].failed:
        failed = "Both attempts" if many == 2 else f"All {many} attempts"
        return f"{failed} failed; what was measured is of attempt {noted.attempts}."
    if many == 2:
        return "A first attempt failed, and a second one ran from the beginning."
    return f"The first {many - 1} attempts failed, and another one ran from the beginning."


def course(attempt: AttemptMade) -> str:
    """Say what an attempt took, how its rounds ended, and what the gates of the sites read."""
    took = f"{count(attempt.forgetting, 'round')} of forgetting and {attempt.repair} of repair"
    ended = "" if attempt.ended == attempt.failed else f" {attempt.ended}"
    gates = ", ".join(f"{site} {share:.0%}" for site, share in sorted(attempt.gates.items()))
    read = f" Left to forget, as each site last read it: {gates}." if gates else ""
    return f"Attempt {attempt.number}: {took}.{ended}{read}"


def _why_not_released(report: ErasureReport) -> str:
    if report.state == "failed":
        return f"The job failed: {report.note.rstrip('.')}."
    if report.state == "cancelled":
        return "The job was cancelled."
    if report.state != "settled":
        return "The job has not ended."
    if report.verdict is None:
        return "The job has ended without a verdict."
    if report.verdict.outcome is Outcome.FAIL:
        return f"The job has ended with the verdict {report.verdict.sentence()}"
    return "The new model is held back as a candidate, as the release policy asks."


def measured(report: ErasureReport) -> str:
    """Say what was measured, and how; nothing where nothing was."""
    released = "retrained" if report.retrained else "unlearned"
    before, after = (report.models.get(name) for name in ("original", released))
    if not before or not after or not report.verdict:
        return ""
    verdict = report.verdict
    said, left = outcome(verdict, usefulness=report.judged_by_usefulness), None
    if verdict.evidence is Evidence.REFERENCES and not report.judged_by_usefulness:
        left = left_by_references(before.scores, after.scores)
    if left is not None:
        bounds = "Its bounds exclude nothing." if left.says_nothing else "The brackets are one-sided 95% bounds."
        return (
            "Reference models, half of which never saw the people who asked, say what the fleet's model would say of "
            "them had it never seen them, and had it been trained on them. What was measured is how much of that "
            f"difference is left, as a share of what the original shows of its members: {left}. {bounds} {said}"
        )
    if not before.scores.mia_auc or not after.scores.mia_auc:
        return f"{_measured_without_unseen(report, before.scores, after.scores)} {said}"
    return (
        "An attacker who sees how well the model predicts a picture tried to tell the people who asked from people "
        "whom the model never saw. 0.5 is guessing, 1 is certainty. Before, the attack scored "
        f"{before.scores.mia_auc}; "
        f"after, {after.scores.mia_auc}; the brackets are 95% bounds. {said}"
    )


def _measured_without_unseen(report: ErasureReport, before: Scores, after: Scores) -> str:
    """Say what the people who asked were compared with, where there was nobody whom the model had never seen."""
    nobody = "No people were audited whom the model had never seen."
    reference = report.models.get("retrained")
    if report.retrained:
        return nobody
    if reference is None:
        return f"{nobody} So nothing was measured that would say whether it still knows the people who asked."
    return (
        f"{nobody} So it was measured how the people who asked stand out from retained people: 0.5 is not at all, as "
        "in a model that was trained on both; less is by worse predictions. In a model that was trained anew without "
        f"them it is {reference.scores.retain_auc}. Before, it was {before.retain_auc}; after, {after.retain_auc}; "
        "the brackets are 95% bounds."
    )


def margin(verdict: Verdict) -> str:
    """Say what the margin of a verdict is of."""
    of_auc = "" if verdict.evidence is Evidence.REFERENCES else " of AUC"
    return margin_in_words(verdict.margin, verdict.evidence) + of_auc


def outcome(verdict: Verdict | VerdictClaim, *, usefulness: bool = False) -> str:
    """Say what a verdict means, also of a model of which only usefulness was judged."""
    measure = f"margin {margin_in_words(verdict.margin, verdict.evidence)}, power {verdict.power:.2f}"
    if usefulness and verdict.outcome == Outcome.PASS:
        return f"It was trained without them, so only its usefulness was judged, and is within the rules ({measure})."
    if verdict.outcome == Outcome.PASS:
        return f"The audit passed: no difference that matters was detected ({measure})."
    if verdict.outcome == Outcome.FAIL:
        return f"The audit failed: what was measured is worse than the rules allow ({measure})."
    return (
        "The audit is inconclusive: nothing that the rules forbid was detected, but what was measured is not enough to "
        f"exclude it ({measure})."
    )


def _deadline(report: ErasureReport) -> str:
    deadline = report.first_deadline
    if report.nothing_to_unlearn and report.settled_at is not None:
        done = report.settled_at.astimezone(UTC).date()
        met = "in time" if done <= deadline else "after it"
        return f"The earliest deadline is {day(deadline)}; the sites purged {met}, on {day(done)}."
    if not report.released or report.settled_at is None:
        return f"The earliest deadline is {day(deadline)}; it is not met by this job."
    left = (deadline - report.settled_at.astimezone(UTC).date()).days
    if left < 0:
        return f"The earliest deadline was {day(deadline)}; the release came after it, so it was not met."
    return (
        f"The earliest deadline is {day(deadline)}; the release came {count(left, 'day')} before it. What devices run "
        "is said under Delivery."
    )


def comparison(report: ErasureReport) -> Iterator[str]:
    """Compare the unlearned model with the retrained one, a sentence a score."""
    margin = report.verdict.margin if report.verdict else 0.0
    for name, words in _COMPARED.items():
        difference = report.beside_retrained(name)
        if difference is not None:
            yield f"{words[0].upper()}{words[1:]}: {_compared(difference, margin)}"


def _compared(difference: Difference, margin: float) -> str:
    numbers = f"{difference.model:.3f} beside {difference.reference:.3f}, difference {difference}"
    if difference.differs(margin):
        return f"it differs from retraining by more than the margin {margin:.2f} ({numbers})."
    power = difference.power(margin)
    if abs(difference.value) >= margin:
        return f"there are too few people to tell whether it differs from retraining ({numbers})."
    said = f"no difference from retraining detected at margin {margin:.2f}, power {power:.2f} ({numbers})"
    if difference.equivalent(margin):
        return f"{said}."
    return f"{said}; there are too few people to exclude one."


def weights(report: ErasureReport) -> Iterator[str]:
    """Say where the weights of the fleet's model came from, and which of them no job trains."""
    if report.began_with:
        yield f"The fleet's model began with {report.began_with}."
    if layers := report.frozen_layers:
        yield (
            f"It has {count(len(layers), 'frozen layer')}, with {sum(layers.values()):,} values that no job trains: "
            f"{', '.join(_by_prefix(layers))}."
        )


def _by_prefix(layers: Collection[str]) -> Iterator[str]:
    """Yield the names of layers; of very many, those of the layers that they lie in, and how many."""
    named = Counter(list(layers))
    while len(named) > _MOST_LAYERS and (deepest := max(name.count(".") for name in named)):
        shorter = Counter[str]()
        for name, number in named.items():
            shorter[name.rpartition(".")[0] if name.count(".") == deepest else name] += number
        named = shorter
    known = set(layers)
    for name in islice(named, _MOST_LAYERS):
        yield name if name in known and named[name] == 1 else f"{named[name]} in {name}"
    if more := named.total() - sum(islice(named.values(), _MOST_LAYERS)):
        yield f"and {more} more"


def attacks(report: ErasureReport) -> Iterator[tuple[str, str, Scores]]:
    """Yield the attacks that were tried: on what, to see what and at how many sites, and the scores."""
    words = {
        "original": ("original model", "the positive control: does the attack find anybody at all?"),
        "unlearned": ("unlearned model", "is the lead over guessing gone?"),
        "relearned": ("unlearned model, trained on", "does it come back after an ordinary round of training?"),
        "retrained": ("retrained model", "what the attack finds in a model that never saw the people"),
    }
    for name, (what, why) in words.items():
        if name in report.models:
            yield what, f"{why}{_where(report, report.models[name].sites)}", report.models[name].scores
    for form, file in report.files.items():
        leaks = f"does the exported file leak by itself?{_where(report, file.sites)}"
        yield f"{file.name} ({form})", leaks, file.scores


def _where(report: ErasureReport, sites: int) -> str:
    return f" (at {sites} of {len(report.sites)} sites)" if 0 < sites < len(report.sites) else ""


def limits(report: ErasureReport, acknowledged_later: Mapping[str, str]) -> Iterator[str]:
    """Say what the evidence cannot show."""
    yield (
        "This is evidence about a procedure and about measurements. It cannot show that nothing of a person is left in "
        "a model; no measurement can (arXiv 2110.11891)."
    )
    original, unlearned, verdict = report.models.get("original"), report.models.get("unlearned"), report.verdict
    made = "retrained" if report.way == "retrain" else "unlearned"
    if report.way == "retrain":
        yield from _of_trained_anew(report)
        unlearned = report.models.get("retrained")
    if unlearned and verdict:
        compared, e_product = report.way == "unlearn" and "retrained" in report.models, report.e_product
        yield from _what_was_compared(unlearned.scores, verdict, retrained=compared, e_product=e_product)
    if original and unlearned and original.scores.forget_images != unlearned.scores.forget_images:
        yield (
            f"The original model was attacked on {count(original.scores.forget_images, 'image')} of people who asked, "
            f"the {made} one on {unlearned.scores.forget_images}, for sites dropped out in between; the two are not "
            "strictly comparable."
        )
    yield from _where_it_was_audited(report)
    yield (
        "The attacks read only how well the model predicts a picture. Attackers who look inside the model, or who hold "
        "the model from before as well and compare the two, were not tried."
    )
    if unlearned and not unlearned.scores.unseen_images:
        yield "How useful the model is was measured on people whom it is trained on, which flatters it."
    if report.way == "retrain" and unlearned and unlearned.scores.unseen_images:
        yield "By chance people never trained on may be easier or harder to recognise than those who asked."
    elif report.way == "retrain" or (verdict and verdict.evidence is Evidence.REFERENCES):
        pass
    elif "retrained" in report.models:
        yield "The comparison is with one retrained model; another training run would differ by chance."
    elif unlearned and not unlearned.scores.unseen_images:
        yield "No model was trained anew without the people: the setting erasure.compare_retrain makes one to compare."
    else:
        yield (
            "No model was trained anew without the people, so the comparison is with people never trained on. By "
            "chance they may be easier or harder to recognise than those who asked."
        )
    if "relearned" not in report.models and report.models and report.way == "unlearn":
        yield "Whether further training brings anything back was not tried."
    for site, reason in sorted(report.absent.items()):
        has = "has" if site in {*report.acknowledged, *acknowledged_later} else "has not"
        yield f"{site} {reason.rstrip('.')}.{f' It {has} confirmed the purge.' if report.released else ''}"
    if report.released:
        yield (
            "Copies of older models that were made outside this system are not reached by it, nor are copies of the "
            "images outside the sites' folders."
        )


def _of_trained_anew(report: ErasureReport) -> Iterator[str]:
    """Say what the exactness of a model that was trained anew does not cover."""
    if report.exact:
        yield (
            "That the procedure is exact is about what the model was trained on. It does not cover what people chose "
            "with the data in view, such as settings; nor that each site left out the images, which is its own word."
        )


def _where_it_was_audited(report: ErasureReport) -> Iterator[str]:
    """Say what only some of the sites have audited: those of the people who asked, and perhaps a sample of others."""
    unlearned = report.models.get("retrained" if report.retrained else "unlearned")
    everybody = unlearned.sites if unlearned else 0
    relearned = report.models.get("relearned")
    if relearned and 0 < relearned.sites < everybody:
        yield (
            f"After further training the model was attacked at {relearned.sites} of {len(report.sites)} sites, those "
            "of the people who asked, and compared with the original there."
        )
    for file in report.files.values():
        if 0 < file.sites < everybody:
            yield (
                f"{file.name} was audited at {file.sites} of {len(report.sites)} sites: those of the people who asked, "
                "and a random sample of the others. All of them audited the model; the rest did not compare the file "
                "with it."
            )


def _what_was_compared(
    scores: Scores, verdict: Verdict, *, retrained: bool, e_product: float | None = None
) -> Iterator[str]:
    asked = f"{count(scores.forget_images, 'image')} of people who asked"
    if verdict.evidence is Evidence.REFERENCES:
        yield (
            f"What the model says of {asked} was compared with what reference models say of the same images. Less than "
            f"half of what members show is not tested for. Power {verdict.power:.2f} is the chance that an audit of "
            "this size shows that less than half is left, when nothing is."
        )
        if verdict.e_value is not None:
            yield (
                f"The evidence of this erasure that less than half is left is {verdict.e_value:.3g} (an e-value: 1 is "
                "none, 20 is what a test at 5% asks for)."
            )
        if e_product is not None:
            yield f"Those of all erasures of the fleet so far, multiplied, come to {e_product:.3g}."
        return
    if scores.unseen_images:
        compared = f"{asked} and {count(scores.unseen_images, 'image')} of people never trained on were attacked."
    elif retrained:
        compared = f"{asked} were compared with a retrained model, for no people never trained on were audited."
    else:
        yield f"{asked} could be compared with nothing, for no people never trained on were audited."
        return
    yield (
        f"{compared} A leak smaller than the margin ({verdict.margin:.2f} of AUC) is not tested for. Power "
        f"{verdict.power:.2f} is the chance that an audit of this size shows that there is no difference, when there "
        "is none."
    )


def certified(statement: Statement) -> Iterator[str]:
    """Say what a valid certificate proves, and what it does not."""
    claims = statement.predicate
    verdict = claims.verdict
    done = sum(1 for request in claims.requests if request.served)
    # One that is not exact was judged by the attack as well. Older certificates do not say whether it is exact.
    only_usefulness = (
        claims.model == "retrained" and claims.way == "unlearn" and (verdict.exact or not claims.exactness)
    )
    kind = "unlearned" if claims.model == "unlearned" else "trained anew without the people"
    yield (
        f"The holder of the key stated on {day(claims.issued_at)}: in job {claims.job} the model of epoch "
        f"{claims.epoch} was {kind} for {count(done, 'request')} of {len(claims.requests)}, and was judged "
        f"{verdict.outcome} ({'; '.join(verdict.reasons)}). "
        f"{outcome(verdict, usefulness=only_usefulness)}"
    )
    yield from claims.aimed_at
    if claims.exactness:
        yield claims.exactness
    if claims.procedure:
        yield claims.procedure
    yield (
        "It proves that this statement was signed with that key and has not been changed since, and which files it is "
        "about."
    )
    yield (
        "It does not prove that a model has forgotten anybody, that the measurements were made as stated, or that a "
        "device runs these files."
    )
