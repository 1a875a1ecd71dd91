"""Three lines say what was done, what was measured and what remains open; and they are the same everywhere."""

from __future__ import annotations

import html

import pytest

from dlfd_fleet.audit import Difference, Estimate, Evidence, Outcome, Verdict
from dlfd_fleet.federation.jobs.summary import describe, summarise
from dlfd_fleet.federation.records.job_record import JobRecord
from dlfd_fleet.report import in_short, issue, load_signer, read, render
from dlfd_fleet.report.contents import ModelResult
from dlfd_fleet.report.page import score_text
from tests.erasure_report import make_report, scores

POLICY = "release.on_inconclusive"


def judged(outcome, reasons=("too few images",), **fields):
    return Verdict(outcome=outcome, reasons=reasons, margin=0.1, power=0.25, **fields)


def settled(policy="release", **changes):
    """A report of an erasure after which every site has purged."""
    report = make_report()
    whole = {"served": tuple(one.request for one in report.asked), "absent": {}}
    whole["acknowledged"] = {site.site: 1 for site in report.sites}
    return make_report(**whole | {"settings": {POLICY: policy}} | changes)


def held(policy="hold", **changes):
    return settled(policy, **{"released": False, "served": (), "acknowledged": {}} | changes)


@pytest.mark.parametrize(
    ("report", "answer"),
    [
        (
            settled("hold"),
            "Yes, as soon as no device runs an older model: after PASS it may under any policy",
        ),
        (
            settled(verdict=judged(Outcome.INCONCLUSIVE)),
            "Yes, as soon as no device runs an older model: the policy release.on_inconclusive = release accepts an",
        ),
        (
            settled("retrain", verdict=judged(Outcome.INCONCLUSIVE, exact=True), retrained=True, way="retrain"),
            ": the policy release.on_inconclusive = retrain accepts an inconclusive audit of a model that was",
        ),
        (
            held(verdict=judged(Outcome.INCONCLUSIVE)),
            "No: under the policy release.on_inconclusive = hold a person decides about the candidate",
        ),
        (
            held("release", verdict=judged(Outcome.FAIL)),
            "No: after FAIL nothing is released, whatever the policy (release.on_inconclusive = release). The requests",
        ),
        (held("release", state="failed", verdict=None), "No: the job failed, whatever the policy"),
        (held("release", state="judged"), "No: the job has not ended"),
        (
            settled(released=False, verdict=None, models={}),
            "Yes: no model was trained on them, so the policy (release.on_inconclusive = release) is not asked.",
        ),
        (make_report(), "For 1 of 2 requests yes, as soon as no device runs an older model: after PASS it may"),
        (make_report(), "1 request waits for the next job."),
        (settled(acknowledged={}), "as soon as site-1a2b3c4d has confirmed its purge and site-5e6f7a8b has confirmed"),
    ],
)
def test_whether_a_case_may_be_closed_has_an_answer_that_names_the_policy(report, answer):
    line = in_short(report).open
    assert line.startswith("May this case be closed? ")
    assert answer in line
    assert POLICY in line


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        (
            judged(Outcome.PASS),
            "passes a right erasure in 25% of cases, and one that leaks by the margin, 0.10 of AUC, in 5%",
        ),
        (judged(Outcome.PASS, evidence=Evidence.REFERENCES), "and one that leaves half in 5%"),
        (
            judged(Outcome.INCONCLUSIVE),
            "INCONCLUSIVE: too few images. An audit like this passes a right erasure in 25% of",
        ),
        (
            judged(Outcome.FAIL, ("collapsed", "remembered")),
            "FAIL: collapsed, and 1 other reason (see The evidence in the report).",
        ),
    ],
)
def test_what_was_measured_is_said_with_how_sure_that_is(verdict, words):
    assert words in in_short(settled(verdict=verdict)).measured


def test_the_terminal_the_page_and_the_certificate_begin_with_the_same_three_lines(tmp_path):
    report = make_report(losses={}, readings=())
    said = in_short(report)
    record = JobRecord(job=report.job, kind="erase", step="settled", started_at=report.started_at, requests=2)
    page = html.unescape(render(report.to_json()))
    (tmp_path / "certificate.json").write_bytes(issue(report, load_signer(tmp_path / "key.pem")))
    assert summarise(record, said).lead == said
    assert read(tmp_path / "certificate.json").predicate.in_short == said
    places = [page.index(line) for line in said]
    assert places == sorted(places)
    assert places[-1] < page.index("<dl>")
    assert said.measured.replace("[", r"\[") in describe(record, said)


def test_a_value_without_bounds_is_shown_as_in_the_verdict_and_bounds_from_0_to_1_nowhere():
    unknown = Estimate(value=0.512, low=0.0, high=1.0, standard_error=0.5)
    assert score_text(unknown) == "0.512 [no bounds]"
    assert score_text(Estimate(value=0.5, low=0.1, high=0.9, standard_error=0.2)) == "0.500 [0.100, 0.900]"
    assert "[" not in str(Difference(model=0.5, reference=0.5, standard_error=0.7, references=1))
    models = {
        name: ModelResult(
            scores=scores(0.5).model_copy(update=dict.fromkeys(known, unknown)), seconds=1.0, bytes_sent=1
        )
        for name in ("original", "unlearned", "retrained")
        for known in [("mia_auc", "mia_accuracy", "test_accuracy", "forget_accuracy", "control_auc")]
    }
    report = make_report(models=models, losses={}, readings=(), files={}, verdict=judged(Outcome.INCONCLUSIVE))
    page = render(report.to_json())
    assert "[0.000, 1.000]" not in page
    assert page.count("0.512 [no bounds]") > 5
    record = JobRecord(
        job=report.job, kind="erase", step="settled", started_at=report.started_at, requests=2, models=models
    )
    assert "[0.000, 1.000]" not in str(summarise(record)) + describe(record)
    assert "MIA AUC 0.512 [no bounds] (before 0.512 [no bounds])" in describe(record).replace("\\", "")
    assert ("MIA AUC", *["0.512 [no bounds]"] * 3) in summarise(record).rows
