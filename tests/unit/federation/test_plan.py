"""A plan says what an erasure will aim at, and what it does if that is not reached or fails."""

from __future__ import annotations

import pytest

from dlfd_fleet.federation.jobs.plan import what_it_will_aim_at
from dlfd_fleet.model_input import ModelInput
from dlfd_fleet.settings import Settings
from tests.unit.federation.test_ways import site

NOBODY = site(1)
NUMBERS = ModelInput(shape=(3,), low=-4.0, high=4.0)
OWN = "what the model itself says of changed copies of the images"
LONG_WAY = "all sites take part, up to one gate of the whole fleet"


def said(*replies, **erasure):
    return what_it_will_aim_at(Settings(erasure=erasure), (*replies, NOBODY))


def test_without_references_it_aims_at_the_models_own_answers():
    assert said(site(0, asks=True, unseen=9)) == (
        f"The erasure will aim at {OWN}, because no reference models have answered. After at most 5 rounds an audit "
        "judges its model, even if the gate of a site is not reached. If that fails, or retained people lose more than "
        f"0.05, the erasure begins again: {LONG_WAY}"
    )


def test_references_come_first_and_own_answers_after_them():
    text = said(site(0, asks=True, references=True, unseen=9), rounds=1)
    assert text.startswith(
        "The erasure will aim at what reference models, which never saw the people who asked, say of"
    )
    assert "unless a site finds these models too poor. After at most 1 round an audit" in text
    assert text.endswith(f"the erasure begins again: it aims at {OWN}; if that fails too, {LONG_WAY}")


@pytest.mark.parametrize(
    ("reply", "erasure", "why"),
    [
        (site(0, asks=True), {}, "a site that was asked has nobody on whom no model was trained"),
        (site(0, asks=True, unseen=9), {"own_answers": False}, "the settings rule out the model's own answers"),
        (site(0, asks=True, unseen=9), {"method": "scrub"}, "the way of forgetting aims at nothing"),
        (
            site(0, asks=True, unseen=9).model_copy(update={"input": NUMBERS}),
            {},
            "the model's inputs are no images that could be changed",
        ),
    ],
)
def test_where_there_is_nothing_to_aim_at_it_says_why_and_what_happens_then(reply, erasure, why):
    text = said(reply, **erasure)
    aimed = "The erasure will aim at nothing but one gate of the whole fleet, because no reference models have answered"
    assert text.startswith(f"{aimed}, and {why}")
    judged = "After at most 5 rounds an audit judges the best model, even if that gate is not reached"
    assert text.endswith(f". So all sites take part. {judged}")


def test_references_that_have_not_answered_for_everybody_are_named_as_the_reason():
    half = site(0, asks=True, unseen=9).model_copy(update={"answered_images": 5})
    assert "because reference models have not answered for all people who asked." in said(half)


def test_where_costs_decide_the_way_it_is_said_of_unlearning_alone():
    assert said(site(0, asks=True, unseen=9), way="cheapest").startswith("If it unlearns, the erasure will aim at")
