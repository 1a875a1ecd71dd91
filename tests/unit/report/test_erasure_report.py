"""What a privacy officer reads: whole, careful in its words, and safe to open."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from html.parser import HTMLParser

import pytest

from dlfd_fleet.audit import MemberShare, Outcome, Verdict, judge
from dlfd_fleet.exceptions import EvidenceError
from dlfd_fleet.report import DeliveryProgress, ErasureReport, render
from dlfd_fleet.report.contents import AttemptMade, ModelResult
from dlfd_fleet.settings import AuditSettings
from tests.erasure_report import ASKED, estimate, make_report, scores

VOID = {"meta", "br", "img", "path", "use", "rect", "line", "circle"}


class Page(HTMLParser):
    """The text of a page; fails on tags that do not match, and keeps what would load something."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open, self.words, self.loads = [], [], []
        self.feed(page)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value[0] != "#"]

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)


def read(report, delivery=None):
    return Page(render(report.to_json(), delivery))


def read_words(**changes):
    """Return the text of a page without plots, which take their time to draw."""
    return read(make_report(losses={}, readings=(), **changes)).text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "ran DLFD (distribution-level feature distancing, arXiv 2409.14747) on them"),
        ({"method": "DLFD"}, "a procedure called DLFD"),  # as reports said it before they had a title
        (
            {"method": "fresh-head", "method_title": "Fresh head", "method_package": "forget-head 1.0"},
            "ran Fresh head (fresh-head, forget-head 1.0) on them",
        ),
        (
            {"method": "x", "method_title": "X", "method_settings": {"rate": 0.1, "k": 5}},
            "ran X (x; rate = 0.1, k = 5) on",
        ),
    ],
)
def test_the_page_names_the_method_its_package_and_its_own_hyper_parameters(changes, words):
    assert words in read_words(**changes)


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ({"stem": 9}, "It has 1 frozen layer, with 9 values that no job trains: stem."),
        (
            {"stem": 1000, "body.1": 200},
            "It has 2 frozen layers, with 1,200 values that no job trains: stem, body.1.",
        ),
        (
            {"stem": 5} | {f"body.{block}.{layer}.weight": 1 for block in (1, 2) for layer in range(10)},
            "It has 21 frozen layers, with 25 values that no job trains: stem, 10 in body.1, 10 in body.2.",
        ),
        (
            {f"layer{number}": 1 for number in range(14)},
            f"14 values that no job trains: {', '.join(f'layer{number}' for number in range(12))}, and 2 more.",
        ),
    ],
)
def test_the_page_lists_the_frozen_layers_by_their_prefixes(layers, words):
    assert words in read_words(frozen_layers=layers)
    assert "frozen" not in read_words()


def test_the_page_says_what_the_models_first_training_began_with():
    assert "The fleet's model began with torchvision's X." in read_words(began_with="torchvision's X")
    assert "began with" not in read_words()


def test_the_page_tells_everything_that_the_report_holds():
    report = make_report()
    text = read(report).text
    for request in report.asked:
        assert request.request in text
        assert f"{request.deadline:%Y-%m-%d}" in text
    for part in (
        "2 requests to be forgotten: a new model was released",
        "Between 3 November 2026 and 5 November 2026",
        "served in time",
        "waits for the next job",
        "the release came 26 days before it",
        "PASS at margin 0.10 of AUC, power 0.83",
        report.parent,
        *(file.sha256 for file in report.files.values()),
        "No int8 file was released: FAIL: forgotten people are still remembered.",
        "train-20261124-105007-0001",
        "acknowledged under epoch 1",
        "site-5e6f7a8b did not answer query.settle within 3600 s. It has not confirmed the purge.",
        "This coordinator delivers to no devices. A request is complete when its site has purged the images.",
        "torch 2.15.0",
        "audit.margin",
        report.settings_sha256,
    ):
        assert part in text, part
    for model in report.models.values():
        assert str(model.scores.mia_auc) in text


def test_the_page_is_one_file_that_loads_nothing_and_runs_nothing():
    page = render(make_report().to_json())
    assert Page(page).loads == []
    assert "<script" not in page
    assert "@import" not in page
    assert re.findall(r"url\((?!#)", page) == []
    ids = re.findall(r'id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert render(make_report().to_json()) == page


def test_what_a_site_or_a_setting_says_is_text_and_never_markup():
    evil = "<script>alert(1)</script>"
    page = render(make_report(absent={evil: evil}, note=evil, settings={evil: evil}, released=False).to_json())
    assert evil not in page
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize("outcome", list(Outcome))
@pytest.mark.parametrize("released", [True, False])
@pytest.mark.parametrize("retrained", [True, False])
def test_no_report_says_that_anybody_was_forgotten(outcome, released, retrained):
    verdict = Verdict(outcome=outcome, reasons=("too few images",), margin=0.1, power=0.05)
    text = read_words(verdict=verdict, released=released, retrained=retrained).lower()
    assert "power 0.05" in text
    for claim in (
        "has forgotten",
        "have forgotten",
        "is forgotten",
        "was forgotten",
        "were forgotten",
        "proof",
        "proves",
    ):
        assert claim not in text


def test_a_job_that_released_nothing_says_so_first():
    text = read_words(released=False, served=(), released_files=(), revoked=(), acknowledged={})
    assert "2 requests to be forgotten: no model was released" in text
    assert "the model in use before stays in use" in text
    assert "it is not met by this job" in text
    assert "served in time" not in text
    assert "certificate verify" not in text


@pytest.mark.parametrize(
    ("auc", "error", "words"),
    [
        (0.51, 0.01, "no difference from retraining detected at margin 0.10, power 1.00 (0.510 beside 0.500"),
        (0.55, 0.08, "there are too few people to exclude one"),
        (0.90, 0.30, "there are too few people to tell whether it differs from retraining (0.900 beside 0.500"),
        (0.90, 0.01, "it differs from retraining by more than the margin 0.10"),
    ],
)
def test_the_comparison_with_retraining_claims_what_it_can(auc, error, words):
    models = {
        name: ModelResult(scores=scores(value, error), seconds=1.0, bytes_sent=1)
        for name, value in {"original": 0.9, "unlearned": auc, "retrained": 0.5}.items()
    }
    assert words in read_words(models=models)


def test_a_model_that_policy_holds_is_said_to_be_a_candidate():
    assert "held back as a candidate" in read_words(released=False, served=())
    failed = Verdict(outcome=Outcome.FAIL, reasons=("collapsed",), margin=0.1, power=0.9)
    assert "candidate" not in read_words(released=False, served=(), verdict=failed)


def test_a_retrained_model_is_judged_by_its_usefulness_only():
    text = read_words(retrained=True)
    assert "retrained model, two groups never trained on" in text
    assert "unlearned model, two groups never trained on" in read_words()
    assert "replaced on 7 November 2026 by a model that was trained anew without them" in text
    assert "only its usefulness was judged" in text
    assert "no difference that matters" not in text


def without_unseen(report, reference):
    """The models of a report where everybody was trained on, perhaps beside a retrained model."""
    nothing = dict.fromkeys(("test_accuracy", "balanced_accuracy", "mia_accuracy", "mia_auc", "nomus", "control_auc"))
    found = {}
    for name, model in report.models.items():
        changed = model.scores.model_copy(update={**nothing, "unseen_images": 0, "retain_auc": scores(0.6).mia_auc})
        if reference or name != "retrained":
            found[name] = model.model_copy(update={"scores": changed})
    return found


@pytest.mark.parametrize("reference", [True, False])
def test_where_nobody_was_unseen_the_page_says_so_and_what_was_compared_instead(reference):
    report = make_report()
    retained_only = {"utility": None, "attack_auc": None}
    readings = tuple(reading.model_copy(update=retained_only) for reading in report.readings)
    files = {
        form: file.model_copy(update={"scores": without_unseen(report, reference)["unlearned"].scores})
        for form, file in report.files.items()
    }
    text = read(make_report(models=without_unseen(report, reference), readings=readings, files=files)).text
    assert "No people were audited whom the model had never seen" in text
    assert "on people kept for that" not in text
    assert "people whom the model never saw. 0.5 is guessing" not in text
    assert "measured on people whom it is trained on, which flatters it" in text
    for sentence in (
        "In a model that was trained anew without them it is 0.600",
        "the retrained model shows",
        "AUC of the people who asked against retained people: no difference from retraining detected",
        "40 images of people who asked were compared with a retrained model",
    ):
        assert (sentence in text) == reference
    for sentence in (
        "So nothing was measured that would say whether it still knows the people who asked",
        "None: no people never trained on were audited",
        "40 images of people who asked could be compared with nothing",
    ):
        assert (sentence in text) != reference


OWN = AttemptMade(
    number=1,
    aim="own-answers",
    because="no reference models had answered",
    forgetting=2,
    repair=0,
    reached=True,
    ended="Every site that was asked was within its gate.",
    gates={"site-5e6f7a8b": 0.21, "site-1a2b3c4d": 0.1},
)
LONG = AttemptMade(
    number=2,
    aim="fleet-gate",
    because="attempt 1 had failed",
    forgetting=1,
    repair=3,
    reached=False,
    ended="It was not.",
)
FAILED = OWN.model_copy(update={"failed": "FAIL: retained people lost 0.08."})


def test_what_sites_aimed_at_is_said_in_plain_words():
    text = read_words(attempts_made=(OWN,))
    assert (
        "Sites aimed at what the model itself says of changed copies of the images, because no reference models had "
        "answered."
    ) in text
    assert (
        "Attempt 1: 2 rounds of forgetting and 0 of repair. Every site that was asked was within its gate. Left to "
        "forget, as each site last read it: site-1a2b3c4d 10%, site-5e6f7a8b 21%."
    ) in text
    assert "Each of these sites measured by itself when to stop." in text
    assert "failed" not in text
    assert "a gate measured the model" not in text


def test_that_a_first_attempt_failed_and_a_second_one_ran_is_said_plainly():
    report = make_report(losses={}, attempts=2, attempts_made=(FAILED, LONG))
    text = read(report).text
    assert "A first attempt failed, and a second one ran from the beginning." in text
    assert "Attempt 1: Sites aimed at what the model itself says" in text
    assert "This attempt failed: FAIL: retained people lost 0.08." in text
    aimed = "Attempt 2: Sites aimed at nothing but one gate of the whole fleet, because attempt 1 had failed."
    assert f"{aimed} So all sites took part." in text
    assert "Each of these sites measured by itself when to stop." in text
    assert "a gate measured the model on people kept for that" in text


@pytest.mark.parametrize(
    ("attempts", "said"),
    [
        ((FAILED, FAILED, LONG), "The first 2 attempts failed, and another one ran from the beginning."),
        (
            (FAILED, LONG.model_copy(update={"failed": "So."})),
            "Both attempts failed; what was measured is of attempt 2.",
        ),
    ],
)
def test_more_attempts_that_failed_are_counted(attempts, said):
    assert said in read_words(attempts=2, attempts_made=attempts)


def test_a_report_of_an_earlier_release_is_read_and_says_nothing_of_aims():
    content = json.loads(make_report(losses={}, readings=()).to_json())
    del content["attempts_made"]
    report = ErasureReport.from_json(json.dumps(content).encode())
    assert report.attempts_made == ()
    assert "Sites aimed at" not in read(report).text


def test_attacks_on_different_images_are_said_to_be_so():
    assert "not strictly comparable" not in read_words()
    models = dict(make_report().models)
    fewer = models["unlearned"].scores.model_copy(update={"forget_images": 20})
    models["unlearned"] = models["unlearned"].model_copy(update={"scores": fewer})
    assert "attacked on 40 images of people who asked, the unlearned one on 20" in read_words(models=models)


def test_a_release_after_the_deadline_is_not_met():
    text = read_words(settled_at=ASKED + timedelta(days=31))
    assert "so it was not met" in text
    assert "served after the deadline" in text


def test_delivery_is_told_when_it_is_known():
    progress = DeliveryProgress(
        as_of=ASKED + timedelta(days=6),
        published_at=ASKED + timedelta(days=5),
        minimum_epoch=1,
        devices=9,
        purged=6,
        excepted={"door": "its lease has run out"},
        waiting={"gate": "has never reported", "yard": "was at epoch 0"},
    )
    text = read(make_report(losses={}, readings=()), progress).text
    assert "6 of 9 devices have purged every older model; 2 devices still to come" in text
    assert "waiting for gate" in text
    assert "exception: door" in text
    assert "the requests stay open until then" in text


@pytest.mark.parametrize(
    ("changes", "said", "open_"),
    [
        ({"devices": 0, "published_at": None}, "no device is enrolled. A request is complete when its site", False),
        (
            {"devices": 1, "published_at": None, "waiting": {"gate": "has never reported"}},
            "is not published to devices. 1 device may run an older one and keep the requests open",
            True,
        ),
        ({"devices": 2, "purged": 2}, "2 of 2 devices have purged every older model; no device is left to come", False),
        ({"devices": 1, "retired": 1, "published_at": None}, "no device is left to come", False),
    ],
)
def test_what_the_page_says_of_devices_is_what_closes_requests(changes, said, open_):
    known = {"as_of": ASKED, "published_at": ASKED, "minimum_epoch": 1, "devices": 1, "purged": 0} | changes
    text = read(make_report(losses={}, readings=()), DeliveryProgress(**known)).text
    assert said in text
    assert ("open" in text.split("Delivery")[-1].split("Limits")[0]) == open_
    for claim in ("Devices that hold an older model may still run it", "not known"):
        assert claim not in text.split("Delivery")[-1].split("Limits")[0]


def test_devices_that_cannot_be_asked_are_said_to_be_unknown():
    text = read(make_report(losses={}, readings=()), "the database does not answer.").text
    assert "How far devices are is not known, and no request is closed until it is: the database does not" in text


def test_a_job_that_ended_with_fail_says_so_with_its_verdict():
    failed = Verdict(outcome=Outcome.FAIL, reasons=("it has collapsed",), margin=0.1, power=0.9)
    text = read_words(released=False, served=(), verdict=failed)
    assert "The job has ended with the verdict FAIL: it has collapsed (margin 0.10, power 0.90)." in text
    assert "has not ended" not in text
    assert "The job has not ended" in read_words(released=False, served=(), state="judged")


def test_a_report_survives_its_json_and_another_kind_is_refused():
    report = make_report()
    assert ErasureReport.from_json(report.to_json()) == report
    for content in (b"", b"{}", report.to_json().replace(b"erasure-report:1", b"erasure-report:2")):
        with pytest.raises(EvidenceError, match=r"report\.json"):
            render(content)


def test_what_a_share_of_the_sites_audited_is_said():
    report = make_report(readings=())
    sites = {"original": 2, "unlearned": 2, "relearned": 1, "retrained": 2}
    models = {name: model.model_copy(update={"sites": sites[name]}) for name, model in report.models.items()}
    files = {form: file.model_copy(update={"sites": 1}) for form, file in report.files.items()}
    page = " ".join(render(report.model_copy(update={"models": models, "files": files}).to_json()).split())
    assert "attacked at 1 of 2 sites, those of the people who asked" in page
    assert "model.onnx was audited at 1 of 2 sites" in page
    assert "Each of these sites measured by itself" in page
    assert "all sites then trained" not in page
    whole = {form: file.model_copy(update={"sites": 2}) for form, file in report.files.items()}
    assert "model.onnx was audited at" not in render(report.model_copy(update={"files": whole}).to_json())


def trained_anew(**changes):
    """What a report of an erasure by training anew says."""
    report = make_report()
    models = {name: report.models[name] for name in ("original", "retrained")}
    verdict = Verdict(outcome=Outcome.INCONCLUSIVE, reasons=("too few images",), margin=0.1, power=0.05, exact=True)
    fields = {
        "way": "retrain",
        "way_chosen": "The model is trained anew, which is exact and cheaper: 3.2 MB and 5 s.",
        "retrained": True,
        "exact": True,
        "exactness": "The model was trained anew on everybody else, from random weights. So the procedure is exact.",
        "models": models,
        "verdict": verdict,
        "attempts": 0,
    }
    return fields | changes


def test_a_report_of_training_anew_says_why_that_it_is_exact_and_what_was_measured():
    text = read_words(**trained_anew())
    for words in (
        "which is exact and cheaper: 3.2 MB and 5 s.",
        "So the procedure is exact.",
        "The model was trained anew at the sites on everybody else",
        "The audit is inconclusive",
        "It does not cover what people chose with the data in view",
        "40 images of people who asked and 50 images of people never trained on were attacked",
    ):
        assert words in text
    for words in ("ran DLFD", "a gate measured", "was released instead", "only its usefulness was judged"):
        assert words not in text


def test_a_report_of_training_anew_that_is_not_exact_says_why_not():
    doubt = "Training anew is not exact: its frozen layers are those of train-1."
    verdict = Verdict(outcome=Outcome.PASS, reasons=("no difference",), margin=0.1, power=0.5)
    text = read_words(**trained_anew(exact=False, exactness=doubt, verdict=verdict))
    assert doubt in text
    assert "The procedure is exact" not in text


def test_one_retrained_in_place_of_another_that_is_not_exact_was_judged_by_the_attack_and_the_report_says_so():
    doubt = "Training anew is not exact: the starting weights are those of train-1."
    verdict = Verdict(outcome=Outcome.PASS, reasons=("no difference",), margin=0.1, power=0.5)
    text = read_words(retrained=True, exactness=doubt, verdict=verdict)
    assert "only its usefulness was judged" not in text
    assert "Only its usefulness was judged" not in text
    assert "only its usefulness was judged" in read_words(retrained=True, verdict=verdict)  # before that was asked


def share(value, error=0.1):
    """What a model shows of 40 images of eight forgotten people."""
    return MemberShare(
        value=value,
        standard_error=error,
        retained=1.0,
        retained_error=0.1,
        level_error=0.05,
        people=8,
        images=40,
        noise=1.0,
        gap=40.0,
    )


def by_references(value, error=0.1, **changes):
    models = {name: model for name, model in make_report().models.items() if name in ("original", "unlearned")}
    before, after = (
        models[name].scores.model_copy(update={"member_share": each})
        for name, each in (("original", share(1.0)), ("unlearned", share(value, error).model_copy(update=changes)))
    )
    return {
        "models": {
            "original": models["original"].model_copy(update={"scores": before}),
            "unlearned": models["unlearned"].model_copy(update={"scores": after}),
        },
        "verdict": judge(before, after, AuditSettings()),
    }


def test_a_report_by_references_says_what_is_left_whatever_the_first_reason_is():
    poor = by_references(0.0)
    worse = estimate(0.5)
    scores = poor["models"]["unlearned"].scores.model_copy(update={"test_accuracy": worse, "balanced_accuracy": worse})
    models = poor["models"] | {"unlearned": poor["models"]["unlearned"].model_copy(update={"scores": scores})}
    verdict = judge(models["original"].scores, scores, AuditSettings())
    assert verdict.reasons[0].startswith("test accuracy fell")
    text = read_words(models=models, verdict=verdict, released=False)
    assert "as a share of what the original shows of its members: 0% [-17%, 17%]. The brackets are" in text
    assert "the comparison is with people never trained on" not in text


def test_bounds_that_exclude_nothing_are_not_called_a_result_and_a_fail_is():
    assert "Its bounds exclude nothing." in read_words(**by_references(0.1, 0.9))
    text = read_words(**by_references(2.5, 0.8), released=False)
    assert "250% [" in text
    assert "Its bounds exclude nothing." not in text


def test_what_is_said_to_be_exact_and_leaks_is_not_called_exact():
    told = by_references(1.0)
    verdict = told["verdict"].model_copy(update={"exact": True})
    assert verdict.outcome is Outcome.FAIL
    assert "The procedure is exact" not in verdict.sentence()
    assert "from weights that are said to have never seen them" in verdict.sentence()
