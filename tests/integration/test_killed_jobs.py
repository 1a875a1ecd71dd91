"""Killed at every step: started again, a job ends as if nothing had happened."""

from __future__ import annotations

import io
import multiprocessing
import shutil

import pytest
from rich.console import Console

from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.ledger import RequestState, Site, request_forgetting, site_folders
from dlfd_fleet.ledger.site_setup import deal_to_sites
from dlfd_fleet.models import digest, load_model, state_arrays
from dlfd_fleet.progress import ConsoleProgress
from dlfd_fleet.settings import TrackingSettings
from tests.integration.fleet_in_process import KILLED, run_and_die, run_job, small_settings
from tests.mlflow_client import client_of
from tests.small_networks import small_networks

# Forked from a process that has imported everything and computed nothing: quick, and without anybody's threads.
processes = multiprocessing.get_context("forkserver")
_LATE = ["torchvision", "onnxscript", "sklearn.metrics", "scipy.stats", "jinja2"]  # what a job imports where it is used
processes.set_forkserver_preload(["tests.integration.fleet_in_process", *_LATE])


def in_process(target, *arguments):
    process = processes.Process(target=target, args=arguments)
    process.start()
    process.join(300)
    assert process.exitcode is not None
    return process.exitcode


@pytest.fixture(scope="module", autouse=True)
def networks():
    with small_networks():
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A fleet with a champion, and one person at each of its sites who asks to be forgotten."""
    from dlfd_fleet.data import synthesize

    folder = tmp_path_factory.mktemp("killed")
    progress = ConsoleProgress(Console(file=io.StringIO()))
    manifest = synthesize(
        folder / "faces", people=14, images_per_person=3, image_size=32, classes=2, seed=0, progress=progress
    )
    settings = small_settings(folder / "state", manifest)
    deal_to_sites(settings, progress)
    assert in_process(run_job, settings, "train") == 0
    for site_folder in site_folders(settings.state_folder):
        with Site(site_folder) as site:
            person = next(row.identity for row in site.manifest().rows if row.split == "train")
            request_forgetting(site, person, deadline_days=30)
    return settings


def copy_of(trained, folder):
    shutil.copytree(trained.state_folder, folder)
    return trained.model_copy(update={"state_folder": folder})


@pytest.fixture(scope="module")
def whole(trained, tmp_path_factory):
    """What an erasure that nobody interrupts comes to."""
    settings = copy_of(trained, tmp_path_factory.mktemp("whole") / "state")
    assert in_process(run_job, settings, "erase") == 0
    expected = outcome(settings)
    assert expected[:2] == ("settled", True)
    assert {ledger[0] for ledger in expected[-1]} == {RequestState.COMPLETE}
    return expected


def outcome(settings):
    """Return what an erasure came to: its model, and what every ledger says."""
    store = Store(settings.state_folder)
    (job,) = [record for record in store.jobs() if record.kind == "erase"]
    model, card = load_model(store.folders.model(store.champions.current().job))
    ledgers = []
    for folder in site_folders(settings.state_folder):
        with Site(folder) as site:
            site.ledger.verify()
            (request,) = site.ledger.requests()
            released = [event for event in site.ledger.history() if event.state is RequestState.RELEASED]
            people = site.manifest().identities
            ledgers.append((request.state, request.epoch, len(released), site.ledger.tombstones(), people))
    found = (job.step, job.released, job.note, job.requests, card.epoch, digest(state_arrays(model)), ledgers)
    store.close()
    return found


def test_a_job_that_is_killed_before_every_step_is_written_ends_as_if_it_had_not_been(trained, whole, tmp_path):
    settings, kills = copy_of(trained, tmp_path / "step"), 0
    # Each process finishes one step and dies before its next one is written, until one lives to the end.
    while (code := in_process(run_and_die, settings, "erase", "step", 2)) == KILLED:
        kills += 1
    assert (code, kills >= 8) == (0, True)
    assert outcome(settings) == whole


def test_a_job_that_is_killed_between_writes_of_ledgers_ends_as_if_it_had_not_been(trained, whole, tmp_path):
    settings, kills = copy_of(trained, tmp_path / "ledger"), 0
    # A step that was not finished is done again with all its writes, so each process is allowed one more than the last.
    while (code := in_process(run_and_die, settings, "erase", "ledger", kills + 1)) == KILLED:
        kills += 1
    assert (code, kills >= 4) == (0, True)
    assert outcome(settings) == whole


def test_a_training_that_is_killed_goes_on_from_its_last_round(trained, tmp_path):
    settings = trained.model_copy(update={"state_folder": tmp_path / "again"})
    deal_to_sites(settings, ConsoleProgress(Console(file=io.StringIO())))
    assert in_process(run_and_die, settings, "train", "step", 4) == KILLED
    store = Store(settings.state_folder)
    (job,) = store.jobs()
    assert store.steps.names(job.job) == ["asked", "champion", "train-1"]
    assert in_process(run_job, settings, "train") == 0
    (again,) = store.jobs()
    assert (again.job, again.step, again.released) == (job.job, "settled", True)
    whole, other = Store(trained.state_folder), store
    models = [load_model(each.folders.model(each.champions.current().job))[0] for each in (whole, other)]
    assert digest(state_arrays(models[0])) == digest(state_arrays(models[1]))


def test_a_verdict_that_policy_holds_leaves_a_candidate_and_the_champion_stays(trained, tmp_path):
    settings = copy_of(trained, tmp_path / "held").model_copy(
        update={
            "release": trained.release.model_copy(update={"on_inconclusive": "hold"}),
            "tracking": TrackingSettings(),
        }
    )
    assert in_process(run_job, settings, "erase") == 0
    store = Store(settings.state_folder)
    (job,) = [record for record in store.jobs() if record.kind == "erase"]
    assert (job.step, job.released, job.verdict.outcome, job.unsent) == ("settled", False, "INCONCLUSIVE", 0)
    assert "registered as the candidate" in job.note
    assert store.champions.current().epoch == 0
    for folder in site_folders(settings.state_folder):
        with Site(folder) as site:
            assert [request.state for request in site.ledger.requests()] == [RequestState.ACCEPTED]
    client = client_of(f"sqlite:///{settings.state_folder / 'mlflow.db'}")
    candidate = client.get_model_version_by_alias("dlfd-fleet", "candidate")
    assert (candidate.tags["dlfd.job"], candidate.tags["dlfd.epoch"]) == (job.job, "1")
    assert "dlfd.promoted" not in candidate.tags
    champion = client.get_model_version_by_alias("dlfd-fleet", "champion")
    assert champion.tags["dlfd.job"] == store.champions.current().job
    assert "dlfd.revoked" not in champion.tags
