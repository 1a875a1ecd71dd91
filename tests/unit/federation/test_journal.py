"""A finished step is recalled only for what it was about, and says no more of a site than can be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dlfd_fleet.audit import SampleScores
from dlfd_fleet.federation.records.costs import SiteCost
from dlfd_fleet.federation.records.journal import Answers, Journal, Merged, Uncounted
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.settings import Settings

NOTHING = SampleScores(np.zeros(1, np.uint8), *np.zeros((3, 1), np.int64), np.zeros(1))
ONE, OTHER = {"w": torch.zeros(3)}, {"w": torch.ones(3)}


@pytest.fixture
def resumed(tmp_path):
    """A journal of the same job, each time as a process that was started again has it."""
    store = Store(tmp_path)
    job = store.new_job("erase", Settings()).job
    return lambda: Journal(store, job)


def asked(journal, about, images):
    """Return how many images a step says there are, which counts these if it is done now."""
    return journal.answers("audit-unlearned-1", lambda: Answers(NOTHING, images=images), about).images


@pytest.mark.parametrize(("one", "other"), [(ONE, OTHER), (b"a file", b"another file")])
def test_an_audit_of_another_model_or_file_is_not_taken_for_the_one_of_this(resumed, one, other):
    assert asked(resumed(), one, 1) == 1
    assert asked(resumed(), one, 2) == 1
    assert asked(resumed(), other, 3) == 3
    assert asked(resumed(), other, 4) == 3


def test_a_round_that_began_with_another_model_is_done_again(resumed):
    def relearned(base, value):
        step = resumed().merged("relearn-3", lambda: Merged({"w": torch.full((3,), value)}), base)
        return step.arrays["w"][0].item()

    assert [relearned(ONE, 1.0), relearned(ONE, 2.0), relearned(OTHER, 3.0), relearned(OTHER, 4.0)] == [1, 1, 3, 3]


@pytest.mark.parametrize(("one", "other"), [(ONE, OTHER), (b"a file", b"another file")])
def test_what_sites_said_of_another_model_or_file_is_asked_again(resumed, one, other):
    def said(about, value):
        return resumed().facts_of(about, "gate-2", dict[str, int], lambda: {"site-a": value})["site-a"]

    assert [said(one, 1), said(one, 2), said(other, 3), said(other, 4)] == [1, 1, 3, 3]


def test_a_step_that_an_earlier_release_has_finished_stands(resumed):
    journal = resumed()
    assert asked(journal, None, 1) == 1
    assert asked(resumed(), ONE, 2) == 1


def test_no_site_has_worked_longer_than_the_step_has_lasted(tmp_path):
    store, traffic = Store(tmp_path), Uncounted()
    job = store.new_job("train", Settings()).job

    def train():
        traffic.sites_took |= {"site-a": SiteCost(seconds=1e9), "site-b": SiteCost(seconds=1e-9)}
        return Merged(ONE)

    Journal(store, job, traffic).merged("train-1", train)
    phase = store.steps.phases(job)["train"]
    assert 0.0 < phase.longest_site_seconds <= phase.seconds
    assert phase.site_seconds == pytest.approx(phase.longest_site_seconds + 1e-9)
