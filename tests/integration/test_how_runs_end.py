"""How a run of the ServerApp ends: `flwr run` and `job start` fail with what it raises."""

from __future__ import annotations

import shutil
from contextlib import closing

import pytest

from dlfd_fleet.exceptions import JobCancelledError, VerdictError
from dlfd_fleet.federation.jobs.command import cancel
from dlfd_fleet.federation.records.steps import Steps
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.ledger import RequestState, Site, site_folders
from tests.integration.fleet_in_process import a_person_asks_at_each_site


def cancelling_after(step, monkeypatch, settings):
    finish = Steps.finish

    def then_cancelled(self, job, finished):
        finish(self, job, finished)
        if finished.name == step:
            with closing(Store(settings.state_folder)) as store:
                cancel(store, job)

    monkeypatch.setattr(Steps, "finish", then_cancelled)


def test_an_erasure_whose_verdict_is_fail_fails(fleet, run_app):
    a_person_asks_at_each_site(fleet)
    strict = fleet.model_copy(update={"audit": fleet.audit.model_copy(update={"min_gain_over_majority": 0.5})})
    with pytest.raises(VerdictError, match=r"^The verdict is FAIL: .*collapsed.* the requests wait\.$"):
        run_app(strict, job="erase")
    with closing(Store(fleet.state_folder)) as store:
        assert (store.jobs()[-1].step, store.jobs()[-1].released) == ("settled", False)
    for folder in site_folders(fleet.state_folder):
        with Site(folder) as site:
            assert {request.state for request in site.ledger.requests()} == {RequestState.ACCEPTED}


def test_a_first_training_that_is_cancelled_ends_with_a_sentence_of_its_own(fleet, run_app, monkeypatch):
    shutil.rmtree(fleet.state_folder / "coordinator")  # no champion yet
    cancelling_after("asked", monkeypatch, fleet)
    with pytest.raises(JobCancelledError, match=r"^train-\S+ was cancelled\.$"):
        run_app(fleet, job="train", by="M. Ode", reason="it is time")
    with closing(Store(fleet.state_folder)) as store:
        begun = store.decisions.of(store.jobs()[-1].job)[0]
        assert (begun.act, begun.who, begun.why) == ("start", "M. Ode", "it is time")


def test_an_erasure_that_is_cancelled_says_that_its_requests_wait(fleet, run_app, monkeypatch):
    a_person_asks_at_each_site(fleet)
    cancelling_after("audit-original", monkeypatch, fleet)
    with pytest.raises(JobCancelledError, match=r"^erase-\S+ was cancelled: the requests wait for the next job\.$"):
        run_app(fleet, job="erase")
