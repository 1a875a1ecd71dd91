"""Which way an erasure takes follows from the settings, the sites' counts and what earlier jobs took."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime

import pytest
import torch

from dlfd_fleet.federation.jobs.ways import SinceTraining, choose, rounds_anew
from dlfd_fleet.federation.protocol.messages import PendingReply
from dlfd_fleet.federation.records.job_record import JobRecord
from dlfd_fleet.federation.release.release_rule import may_release_retrained
from dlfd_fleet.model_input import image_input
from dlfd_fleet.models import ModelCard
from dlfd_fleet.report.contents import AttemptMade, GateReading, ModelResult, Phase, Proceedings, SiteShare
from dlfd_fleet.settings import Settings
from tests.erasure_report import scores

INPUT = image_input(32)
CARD = ModelCard(architecture="resnet18", classes=("no", "yes"), input=INPUT, frozen=("backbone",))
MEGABYTE = 10**6
# Of the backbone nothing travels; the head has a megabyte.
ARRAYS = {"backbone.weight": torch.zeros(50 * MEGABYTE // 4), "head.weight": torch.zeros(500, MEGABYTE // 2000)}
IMAGES = 100


def site(number, *, asks=False, references=False, unseen=0):
    request = f"{number:016x}"
    day = {"asked_at": date(2026, 11, 3), "deadline": date(2026, 12, 3)}
    return PendingReply(
        site=f"{number:08x}",
        requests=(request,) if asks else (),
        dates={request: day} if asks else {},
        forget_images=10 if asks else 0,
        answered_images=10 if references else 0,
        unseen_images=unseen,
        class_images=(IMAGES // 2, IMAGES // 2),
        classes=("no", "yes"),
        input=INPUT,
    )


SITES = [site(0, asks=True), site(1), site(2), site(3)]


def record(kind="train", phases=(), readings=(), attempts=()):
    shares = tuple(
        SiteShare(site=f"site-{number}", requests=0, forget_images=0, training_images=IMAGES, counted_images=IMAGES)
        for number in range(len(SITES))
    )
    known = {
        name: Phase(steps=steps, seconds=1.0, sent_bytes=0, site_seconds=seconds) for name, steps, seconds in phases
    }
    return JobRecord(
        job=f"{kind}-1",
        kind=kind,
        step="settled",
        started_at=datetime(2026, 11, 3, tzinfo=UTC),
        proceedings=Proceedings(sites=shares, phases=known, readings=readings, attempts_made=attempts),
    )


# Four sites train for two seconds a round together, and audit in one.
TRAINED = record(phases=[("train", 5, 10.0), ("audit-original", 1, 1.0)])


def chosen(way="cheapest", replies=SITES, earlier=(TRAINED,), doubt="", precision="float32", **erasure):
    settings = Settings(erasure={"way": way, **erasure}, fleet={"update_precision": precision})
    return choose(settings, CARD, ARRAYS, replies, earlier, doubt)


def test_both_ways_are_said_in_bytes_and_seconds_and_the_cheaper_is_taken():
    way = chosen()
    assert way.taken == "retrain"
    # Anew: 5 rounds both ways at 4 sites, and an audit; unlearning: 1 + 8 + 4 models a round, 4 to audit, 4 + 4 after.
    assert "training anew is expected to take 44.0 MB and 11.0 s of the sites' work" in way.why
    assert "unlearning 77.0 MB and" in way.why
    assert "in 5 rounds at most" in way.why
    assert "exact and cheaper" in way.why


def test_differences_of_fewer_bits_make_both_ways_cheaper():
    # Whole to 4 sites at first, and a quarter of that 40 times, with a scale for each row.
    assert "take 14.1 MB" in chosen(precision="int8").why


def test_where_sites_can_tell_by_references_unlearning_is_cheaper():
    way = chosen(replies=[site(0, asks=True, references=True), *SITES[1:]], rounds=2)
    assert way.taken == "unlearn"
    assert "The model is unlearned, which is cheaper: training anew is expected to take 44.0 MB" in way.why


def test_rounds_are_those_of_the_last_erasure():
    reading = GateReading(attempt=1, round=1, utility=0.9, utility_half_width=0.1, retain_accuracy=0.9, attack_auc=0.5)
    erased = record("erase", [("repair", 2, 4.0), ("distancing", 1, 1.0)], (reading,))
    assert "in 2 rounds, as in the last erasure" in chosen(earlier=(TRAINED, erased)).why


def made(*attempts):
    """Return attempts by what they aimed at, and how many rounds they took to forget and to repair."""
    return tuple(
        AttemptMade(number=number, aim=aim, forgetting=forgetting, repair=repair, reached=True, ended="")
        for number, (aim, forgetting, repair) in enumerate(attempts, 1)
    )


# The site that asks has 10 images to forget. Of its 200 images of unseen people 128 are used.
WITH_OWN_ANSWERS = [site(0, asks=True, unseen=200), *SITES[1:]]
OWN_FAILED = record(
    "erase",
    [("distancing", 3, 1.0), ("repair", 3, 1.0), ("audit-unlearned", 2, 1.0), ("audit-relearned", 1, 1.0)],
    attempts=made(("own-answers", 2, 0), ("fleet-gate", 1, 3)),
)


@pytest.mark.parametrize(
    ("earlier", "expected"),
    [
        # Models: 5 times to the site that asks and back, 4 to audit; after further training 4 back and 4 to audit.
        # Seconds of an image: 0.005 to train, 0.0025 to answer. A round of forgetting: 100 images, 6 steps of 2
        # passes, 3 s. Own answers: 128 unseen images and 8 copies under 5 changes, then 138 images, and 8 copies of
        # these and of 100 retained ones: 7290 answers, 18.2 s. With 15 s to forget, 1 s to audit, and 3 s of further
        # training and its audit.
        ((), "22.0 MB and 37.2 s of the sites' work in 5 rounds at most"),
        # Twice to the site and back; then 1 + 4 to forget, and three times 4 back and 4 to the gate; two audits of 4,
        # and 8 after further training; the site that asks gets the original anew. 9 s to forget, 9 s to repair, 2 s to
        # audit.
        ((OWN_FAILED,), "50.0 MB and 41.2 s of the sites' work in 5 rounds and 2 attempts, as in the last erasure"),
        # Repair by need takes two of four sites: 2 models there, 2 back, and 2 to ask what retained people lost; 1.5 s.
        (
            (record("erase", [("distancing", 3, 1.0)], attempts=made(("own-answers", 3, 1))),),
            "24.0 MB and 32.7 s of the sites' work in 3 rounds, as in the last erasure",
        ),
        # The latest of this kind counts, and no erasure of another kind.
        (
            (
                OWN_FAILED,
                record("erase", [("distancing", 9, 1.0)], attempts=made(("references", 9, 0))),
                record("erase", [("distancing", 9, 1.0)], attempts=made(("fleet-gate", 9, 9))),
            ),
            "in 5 rounds and 2 attempts, as in the last erasure",
        ),
    ],
)
def test_unlearning_is_priced_by_all_attempts_of_the_last_erasure_that_aimed_at_the_same(earlier, expected):
    assert expected in chosen(replies=WITH_OWN_ANSWERS, earlier=(TRAINED, *earlier)).why


def test_a_further_attempt_sends_the_original_whole():
    # Of the 49 models that attempts, audits and further training send, each takes a quarter of a megabyte in int8, with
    # a scale for each row. The original goes whole to the site that asks; the others are sent a model whole once.
    assert "unlearning 15.6 MB" in chosen(replies=WITH_OWN_ANSWERS, earlier=(TRAINED, OWN_FAILED), precision="int8").why


def test_without_an_earlier_job_bytes_decide():
    way = chosen(earlier=())
    assert way.taken == "retrain"
    assert "44.0 MB, and unlearning 77.0 MB" in way.why
    assert "no earlier job says how long the sites would work" in way.why


def test_work_weighs_as_much_as_bytes():
    slow = record(phases=[("train", 5, 10_000.0), ("audit-original", 1, 1.0)])
    assert chosen(earlier=(slow,), repair_epochs=1, relearning_rounds=0, rounds=1).taken == "unlearn"
    assert "the product of both counts" in chosen(earlier=(slow,)).why
    assert "the product of both counts" not in chosen().why


def test_what_is_not_exact_is_not_taken_for_its_cost():
    way = chosen(doubt="its frozen layers were trained here")
    assert way.taken == "unlearn"
    assert "would not be exact: its frozen layers were trained here; training anew" in way.why
    assert chosen("retrain", doubt="so").taken == "retrain"


@pytest.mark.parametrize("way", ["unlearn", "retrain"])
def test_a_way_that_is_set_is_taken(way):
    assert chosen(way, earlier=()).taken == way


def released(kind, accuracy, *, began_with="", retrained=False):
    made = "original" if kind == "train" else "retrained" if retrained else "unlearned"
    measured = scores(0.5)
    test = measured.test_accuracy.model_copy(update={"value": accuracy})
    measured = measured.model_copy(update={"test_accuracy": test})
    return JobRecord(
        job=f"{kind}-1",
        kind=kind,
        step="settled",
        started_at=datetime(2026, 11, 3, tzinfo=UTC),
        released=True,
        models={made: ModelResult(scores=measured, seconds=1.0, bytes_sent=1)},
        proceedings=Proceedings(began_with=began_with, retrained=retrained),
    )


FRESH, GOES_ON = released("train", 0.9, began_with="random weights"), released("train", 0.88)
UNLEARNED, ANEW = released("erase", 0.85), released("erase", 0.91, retrained=True)


@pytest.mark.parametrize(
    ("earlier", "erasures", "lost"),
    [
        ((), 0, 0.0),
        ((FRESH,), 0, 0.0),
        ((GOES_ON,), 0, 0.0),  # by a release that did not note what it began with
        ((FRESH, UNLEARNED, GOES_ON, UNLEARNED), 2, 0.05),
        ((FRESH, UNLEARNED, ANEW), 0, 0.0),
        ((FRESH, UNLEARNED, ANEW, UNLEARNED), 1, 0.06),
        ((FRESH, UNLEARNED, FRESH), 0, 0.0),
        ((FRESH, UNLEARNED.model_copy(update={"released": False}), record("plan")), 0, 0.0),
    ],
)
def test_what_became_of_the_model_since_it_was_trained_in_full(earlier, erasures, lost):
    since = SinceTraining.of(earlier)
    assert (since.erasures, round(since.lost, 6)) == (erasures, lost)


def with_steps(record, name, steps):
    phases = {name: Phase(steps=steps, seconds=1.0, sent_bytes=0, site_seconds=1.0)}
    return record.model_copy(update={"proceedings": record.proceedings.model_copy(update={"phases": phases})})


@pytest.mark.parametrize(
    ("earlier", "rounds"),
    [
        ((), 5),
        ((with_steps(FRESH, "train", 3),), 5),
        ((with_steps(FRESH, "train", 5), UNLEARNED, with_steps(GOES_ON, "train", 3)), 8),
        ((with_steps(FRESH, "train", 9), with_steps(ANEW, "retrain", 6), with_steps(GOES_ON, "train", 1)), 7),
        ((with_steps(FRESH, "train", 5), with_steps(UNLEARNED, "retrain", 5)), 5),  # it was only compared
    ],
)
def test_a_model_is_trained_anew_for_the_rounds_that_are_in_it_and_no_fewer_than_are_set(earlier, rounds):
    assert rounds_anew(Settings(training={"rounds": 5}), earlier) == rounds


FAILED = UNLEARNED.model_copy(
    update={"job": "erase-7", "proceedings": UNLEARNED.proceedings.model_copy(update={"anew_failed": "FAIL: so."})}
)


@pytest.mark.parametrize("erasure", [{"way": "cheapest"}, {"retrain_after": 1}, {"retrain_drift": 0.01}])
def test_training_anew_that_has_failed_waits_for_the_next_training(erasure):
    way = erasure.pop("way", "unlearn")
    assert chosen(way, earlier=(FRESH, UNLEARNED), **erasure).taken == "retrain"
    assert chosen(way, earlier=(FRESH, UNLEARNED, FAILED), **erasure).taken == "unlearn"
    assert chosen(way, earlier=(FRESH, UNLEARNED, FAILED, GOES_ON), **erasure).taken == "retrain"
    assert "erase-7" in SinceTraining.of((FRESH, FAILED)).advice(Settings().erasure)
    assert chosen("retrain", earlier=(FRESH, FAILED)).taken == "retrain"


@pytest.mark.parametrize(
    ("erasures", "erasure", "advised"),
    [(24, {}, False), (25, {}, True), (25, {"retrain_after": 30}, False), (25, {"retrain_drift": 0.1}, False)],
)
def test_after_many_erasures_a_plan_says_that_no_setting_trains_anew(erasures, erasure, advised):
    said = SinceTraining.of((FRESH, *[UNLEARNED] * erasures)).advice(Settings(erasure=erasure).erasure)
    assert ("erasure.retrain_after" in said) is advised


@pytest.mark.parametrize(
    ("erasure", "reason"),
    [
        ({"retrain_after": 2}, "2 erasures by unlearning since the last full training.*retrain_after is 2"),
        ({"retrain_drift": 0.03}, "test accuracy was 0.900 then and is 0.850 now .*retrain_drift is 0.03"),
        ({"retrain_after": 3, "retrain_drift": 0.06}, None),
        ({}, None),
    ],
)
def test_a_policy_says_when_to_train_anew_in_place_of_unlearning(erasure, reason):
    way = chosen("unlearn", earlier=(FRESH, UNLEARNED, UNLEARNED), **erasure)
    assert way.taken == ("retrain" if reason else "unlearn")
    assert reason is None or re.search(reason, way.why)
    assert may_release_retrained(Settings(erasure=erasure)) is bool(erasure)
