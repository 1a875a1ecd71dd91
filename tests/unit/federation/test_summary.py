"""What MLflow says of a job in words."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from dlfd_fleet.audit import Outcome, Verdict
from dlfd_fleet.federation.jobs.summary import describe, summarise
from dlfd_fleet.federation.records.job_record import JobRecord
from dlfd_fleet.report.contents import ModelResult
from tests.erasure_report import scores
from tests.unit.report.test_erasure_report import FAILED, LONG, share

VERDICT = Verdict(outcome=Outcome.FAIL, reasons=("site <b>a</b> [said](http://x) *so*\x1b[2J",), margin=0.1, power=0.5)


def job(kind="erase", **fields):
    return JobRecord(job=f"{kind}-1", kind=kind, step="settled", started_at=datetime(2026, 11, 3, tzinfo=UTC), **fields)


@pytest.mark.parametrize(
    ("record", "first"),
    [
        (job("train", note="released as epoch 0"), "**Trained the fleet's model** (train-1)."),
        (job("references"), "**Made reference models** (references-1)."),
        (job("import"), "**Imported a model** (import-1)."),
        (job(), "**Nobody asked to be forgotten** (erase-1)."),
        (job(requests=3), "**3 requests to forget, and not released** (erase-1)."),
        (
            job(requests=1, released=True, epoch=2, forgotten=("a",)),
            "**1 request forgotten**; released as epoch 2 (erase-1).",
        ),
        (
            job(requests=3, released=True, epoch=2, forgotten=("a", "b")),
            "**2 requests forgotten**, of 3 requests; released as epoch 2 (erase-1).",
        ),
    ],
)
def test_it_begins_with_what_was_done(record, first):
    assert describe(record).splitlines()[0] == first


def test_only_a_released_erasure_has_a_certificate_to_point_at():
    assert "certificate" in describe(job(requests=1, released=True, forgotten=("a",)))
    assert "certificate" not in describe(job(requests=1))
    assert "report" not in describe(job())


def test_of_a_model_that_was_trained_anew_its_own_scores_are_shown():
    models = {
        name: ModelResult(scores=scores(auc), seconds=1.0, bytes_sent=1)
        for name, auc in {"original": 0.72, "unlearned": 0.61, "retrained": 0.5}.items()
    }
    shown = {made: describe(job(requests=1, models=models, proceedings={"retrained": made})) for made in (True, False)}
    assert "MIA AUC 0.500 [0.400, 0.600] (before 0.720" in shown[True]
    assert "MIA AUC 0.610" in shown[False]


def test_what_a_site_said_is_shown_as_it_is_and_no_markup():
    said = describe(job(requests=1, verdict=VERDICT))
    assert r"site \<b\>a\</b\> \[said\](http://x) \*so\*\\x1b\[2J" in said


def test_what_sites_aimed_at_is_said_there_too():
    said = describe(job(requests=1, proceedings={"attempts": 2, "attempts_made": (FAILED, LONG)}))
    assert "A first attempt failed, and a second one ran from the beginning." in said
    assert "Sites aimed at what the model itself says of changed copies of the images" in said


@pytest.mark.parametrize(("sites", "rows"), [(4, 2), (2, 1)])
def test_what_is_left_after_further_training_is_shown_beside_the_original_of_the_same_sites_alone(sites, rows):
    models = {
        name: ModelResult(
            scores=scores(0.5).model_copy(update={"member_share": share(left)}), seconds=1.0, bytes_sent=1, sites=at
        )
        for name, left, at in (("original", 1.0, 4), ("unlearned", 0.0, 4), ("relearned", 0.1, sites))
    }
    names = [row[0] for row in summarise(job(requests=1, models=models)).rows]
    assert sum(name in ("left of what members show", "the same after further training") for name in names) == rows
