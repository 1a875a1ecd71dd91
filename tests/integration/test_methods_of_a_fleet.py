"""``erasure.method``: any method of the registry forgets at the sites of a fleet, and no private part is overridden."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass

import pytest

from dlfd_fleet.exceptions import ConfigurationError
from dlfd_fleet.federation.protocol.messages import UnlearnTask
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.ledger import RequestState, Site, site_folders
from dlfd_fleet.settings import SiteUnlearningSettings
from dlfd_fleet.unlearning import METHODS, Candidate, Method
from dlfd_fleet.unlearning.peers import FineTune
from tests.integration.fleet_in_process import InProcessGrid, a_person_asks_at_each_site, run_job, trained_fleet


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    settings = trained_fleet(tmp_path_factory.mktemp("methods"))
    a_person_asks_at_each_site(settings)
    return settings


@pytest.fixture
def fleet(trained, tmp_path):
    """Return a function that gives the settings of a copy of that fleet, with changes of the erasure."""

    def copy(**changes):
        erasure = trained.erasure.model_copy(update={"rounds": 1, "relearning_rounds": 0, **changes})
        shutil.copytree(trained.state_folder, tmp_path / "state")
        return trained.model_copy(update={"state_folder": tmp_path / "state", "erasure": erasure})

    yield copy
    METHODS.reload()


def tasks_of(grid):
    sent = [message for message in grid.seen if message.metadata.message_type == UnlearnTask.TYPE]
    questions = [message for message in sent if not message.metadata.reply_to_message_id]
    return [UnlearnTask.from_records(message.content, "test") for message in questions]


def states(settings):
    found = set()
    for folder in site_folders(settings.state_folder):
        with Site(folder) as site:
            found |= {request.state for request in site.ledger.requests()}
    return found


def test_a_method_of_another_package_forgets_at_every_site_that_was_asked(fleet):
    problems = []

    @dataclass(frozen=True)
    class Watched(FineTune):
        strength: float = 0.5

        def unlearn(self, session):
            problems.append(session.problem)
            super().unlearn(session)

    METHODS.register(Method("watched", "Watched", "none", (Candidate(Watched(), {"epochs": 2.0, "batch_size": 4}),)))
    given = SiteUnlearningSettings(learning_rate=0.015)  # the fleet's default, and said all the same
    settings = fleet(method="watched", unlearning=given)
    grid = InProcessGrid(settings)
    record = run_job(settings, "erase", grid)
    assert record.released, record.verdict
    assert states(settings) == {RequestState.COMPLETE}
    assert [task.method for task in tasks_of(grid)] == ["watched", "watched"]
    # What the method sets, but for what somebody has set for the fleet; a site has no validation people to give.
    used = {(one.settings.epochs, one.settings.batch_size, one.settings.learning_rate) for one in problems}
    assert used == {(2.0, 4, 0.015)}
    assert {one.validation for one in problems} == {None}
    store = Store(settings.state_folder)
    assert store.settings_of(record.job).erasure.method == "watched"
    report = json.loads((store.folders.made(record.job) / "report.json").read_text())
    said = {name: value for name, value in report.items() if name.startswith("method")}
    package = "registered by the running process"
    assert said == {
        "method": "watched",
        "method_title": "Watched",
        "method_package": package,
        "method_settings": {"strength": 0.5},
    }
    kept = report["settings"]
    assert (kept["erasure.unlearning.epochs"], kept["erasure.unlearning.batch_size"]) == (2.0, 4)
    page = (store.folders.made(record.job) / "report.html").read_text(encoding="utf-8")
    assert "changed by a procedure called Watched, with the aim" in page
    assert f"Sites whose people asked ran Watched (watched, {package}; strength = 0.5) on them" in page


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        ("dlfdd", "There is no method 'dlfdd'; there are dlfd, "),
        (
            "dlfd-released",
            "The method 'dlfd-released' has a gate of its own, for which a site has no validation",
        ),
    ],
)
def test_what_no_site_can_run_is_refused_before_anybody_is_asked(fleet, method, sentence):
    settings = fleet(method=method)
    grid = InProcessGrid(settings)
    with pytest.raises(ConfigurationError, match=sentence):
        run_job(settings, "erase", grid)
    assert grid.seen == []
    assert states(settings) == {RequestState.ACCEPTED}


def test_a_site_without_the_method_is_named(fleet):
    METHODS.register(Method("elsewhere", "elsewhere", "none", (Candidate(FineTune()),)))
    settings = fleet(method="elsewhere")

    class Forgetful(InProcessGrid):
        def answer(self, message, context):
            if message.metadata.message_type == UnlearnTask.TYPE and context.node_id == 1:
                METHODS.reload()
                answer = super().answer(message, context)
                METHODS.register(Method("elsewhere", "elsewhere", "none", (Candidate(FineTune()),)))
                return answer
            return super().answer(message, context)

    record = run_job(settings, "erase", Forgetful(settings))
    (reason,) = record.absent.values()
    assert reason.startswith("failed at train.unlearn: This site has no method of unlearning 'elsewhere'")
    assert len(record.forgotten) == 1
