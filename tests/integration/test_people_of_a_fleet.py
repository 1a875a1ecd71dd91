"""A person is one person in a whole fleet: whoever is at several sites, never trained on, or the last one somewhere."""

from __future__ import annotations

import io
import shutil
from contextlib import closing
from dataclasses import replace

import pytest

from dlfd_fleet.audit import Outcome
from dlfd_fleet.data import write_manifest
from dlfd_fleet.exceptions import JobError
from dlfd_fleet.federation.jobs.reporting import report_of
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.ledger import RequestState, Site, request_forgetting, site_folders
from dlfd_fleet.report import render
from tests.integration.fleet_in_process import by_the_fleets_gate, run_job, trained_fleet


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """Settings of a trained fleet of two sites, with test and validation people whom both hold."""
    settings = by_the_fleets_gate(trained_fleet(tmp_path_factory.mktemp("people")))
    quick = settings.erasure.model_copy(update={"rounds": 1, "relearning_rounds": 0})
    return settings.model_copy(update={"erasure": quick})


@pytest.fixture
def trained(fleet, tmp_path):
    settings = fleet.model_copy(update={"state_folder": tmp_path / "state"})
    shutil.copytree(fleet.state_folder, settings.state_folder)
    return settings


def people(settings, number, split="train"):
    with Site(site_folders(settings.state_folder)[number]) as site:
        return sorted({row.identity for row in site.manifest().rows if row.split == split})


def ask(settings, number, *names):
    with Site(site_folders(settings.state_folder)[number]) as site:
        for name in names:
            request_forgetting(site, name, deadline_days=30)


def states(settings):
    """What became of the requests at each site."""
    found = []
    for folder in site_folders(settings.state_folder):
        with Site(folder) as site:
            site.ledger.verify()
            found.append([request.state for request in site.ledger.requests()])
    return found


def images_left(settings, name):
    """How many images, rows and files, each site has of somebody."""
    left = []
    for folder in site_folders(settings.state_folder):
        with Site(folder) as site:
            rows = [row for row in site.manifest().rows if row.identity.strip().lower() == name]
            left.append((len(rows), sum((site.image_root / row.image).exists() for row in rows)))
    return left


def champion(settings):
    with closing(Store(settings.state_folder)) as store:
        return store.champions.current()


def ended(record):
    """What becomes of requests; of a dozen drawings the verdict is chance, and another one on another processor."""
    return COMPLETE if record.released else ACCEPTED


COMPLETE, ACCEPTED = RequestState.COMPLETE, RequestState.ACCEPTED


def test_who_was_never_trained_on_is_purged_at_every_site_without_an_erasure(trained):
    (first, _), before = people(trained, 0, "test"), champion(trained)
    ask(trained, 0, first.upper())
    record = run_job(trained, "erase")
    assert record.note == "nobody who asks was trained on; 6 images purged at the sites"
    with closing(Store(trained.state_folder)) as store:
        report = report_of(store, record)
    assert (report.purged_images, set(report.served)) == (6, {request.request for request in report.asked})
    page = render(report.to_json())
    assert "no model was trained on them" in page
    assert "The sites deleted 6 images." in page
    assert "waits for the next job" not in page
    assert "is not met" not in page
    assert (record.step, record.released) == ("settled", False)
    assert states(trained) == [[COMPLETE], [COMPLETE]]
    assert images_left(trained, first) == [(0, 0), (0, 0)]
    assert champion(trained) == before
    assert run_job(trained, "erase").note == "nobody asks to be forgotten"


def test_the_test_image_of_who_is_trained_on_elsewhere_leaves_the_audit_of_her_own_forgetting(trained):
    person, site_folder = people(trained, 0)[0], site_folders(trained.state_folder)[1]
    with Site(site_folder) as there, Site(site_folders(trained.state_folder)[0]) as here:
        rows = [row for row in here.manifest().rows if row.identity == person]
        for row in rows:
            target = there.image_root / f"{row.image}.test.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(here.image_root / row.image, target)
        own = [
            replace(row, image=f"{row.image}.test.png", identity=f"{person.title()} ", site="site-2", split="test")
            for row in rows
        ]
        write_manifest([*there.manifest().rows, *own], there.manifest_file)
    ask(trained, 0, person)
    record = run_job(trained, "erase")
    scores = record.models["unlearned"].scores
    assert (scores.forget_images, scores.unseen_images) == (3, 6)  # of two test people whom both sites hold
    assert states(trained) == [[ended(record)], [ended(record)]]
    if record.released:
        assert images_left(trained, person) == [(0, 0), (0, 0)]


def test_a_site_whose_people_have_all_asked_is_forgotten_by_the_others(trained):
    everybody, unseen = people(trained, 1), people(trained, 0, "test")[0]
    ask(trained, 1, *everybody)
    ask(trained, 0, unseen)
    record = run_job(trained, "erase")
    assert not record.absent
    assert record.models["unlearned"].scores.forget_images == 3 * len(everybody)
    assert states(trained) == [[ended(record)], [ended(record)] * (len(everybody) + 1)]
    if record.released:
        assert people(trained, 1) == []


def test_where_everybody_asks_the_job_says_what_to_do_and_the_requests_wait(trained):
    for number in (0, 1):
        ask(trained, number, *people(trained, number))
    with pytest.raises(JobError, match=r"^Everybody whom the sites train on asks to be forgotten"):
        run_job(trained, "erase", out=io.StringIO())
    assert {state for site in states(trained) for state in site} == {ACCEPTED}


@pytest.mark.parametrize("split", ["validation", "test"])
def test_where_all_unseen_people_ask_the_job_goes_on_and_says_what_it_could_not_measure(trained, split):
    ask(trained, 0, people(trained, 0)[0], *people(trained, 0, split))
    record = run_job(trained, "erase")
    assert (record.proceedings.readings[0].utility is None) == (split == "validation")
    assert ("no unseen people were audited" in record.verdict.sentence()) == (split == "test")
    assert (record.verdict.outcome is Outcome.INCONCLUSIVE) or split == "validation"
    assert {state for site in states(trained) for state in site} == {ended(record)}
