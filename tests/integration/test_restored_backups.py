"""A backup of a site or of the coordinator is put back: it is noticed, and nobody is trained on again."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
from flwr.app import Context, RecordDict
from typer.testing import CliRunner

from dlfd_fleet.cli import app
from dlfd_fleet.data import canonical
from dlfd_fleet.exceptions import JobError, LedgerError
from dlfd_fleet.federation.protocol.messages import FitTask
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.federation.site.images import used_images
from dlfd_fleet.federation.site.site_of_node import site_of_node
from dlfd_fleet.ledger import RequestState, Site, request_forgetting, site_folders
from dlfd_fleet.ledger.restored import reconcile, restored
from tests.integration.fleet_in_process import InProcessGrid, a_person_asks_at_each_site, run_job, trained_fleet
from tests.small_networks import small_networks


@pytest.fixture(scope="module", autouse=True)
def networks():
    with small_networks():
        yield


@pytest.fixture(scope="module")
def erased(tmp_path_factory):
    """A fleet that has forgotten a person at each site, and copies of its folders from before."""
    settings = trained_fleet(tmp_path_factory.mktemp("restored"))
    run_job(settings.model_copy(update={"training": settings.training.model_copy(update={"rounds": 1})}), "train")
    before = settings.state_folder.with_name("before")
    asked = a_person_asks_at_each_site(settings)
    with Site(site_folders(settings.state_folder)[0]) as site:
        site.ledger.move(asked[0].id, RequestState.WITHDRAWN, "not meant")  # so that there is a history before
    shutil.copytree(settings.state_folder, before)
    with Site(site_folders(settings.state_folder)[0]) as site:
        asked[0] = request_forgetting(site, asked[0].identity, deadline_days=30)
    assert run_job(settings, "erase").released
    return SimpleNamespace(settings=settings, before=before, people=[request.identity for request in asked])


@pytest.fixture
def fleet(erased, tmp_path):
    """A copy of that fleet, whose training is short."""
    settings = erased.settings.model_copy(
        update={
            "state_folder": tmp_path / "state",
            "training": erased.settings.training.model_copy(update={"rounds": 1}),
        }
    )
    shutil.copytree(erased.settings.state_folder, settings.state_folder)
    return settings


def put_back(erased, fleet, name):
    shutil.rmtree(fleet.state_folder / name)
    shutil.copytree(erased.before / name, fleet.state_folder / name)


def put_first_site_back(erased, fleet):
    folder = site_folders(fleet.state_folder)[0]
    put_back(erased, fleet, folder.relative_to(fleet.state_folder))
    with Site(folder) as site:
        assert erased.people[0] in used_images(site).retain().identities  # the images are back, and no request is
        return folder, f"site-{site.card.id}"


def trained_at(grid):
    return {
        message.metadata.dst_node_id
        for message in grid.seen
        if message.metadata.message_type == FitTask.TYPE and not message.metadata.reply_to_message_id
    }


def test_a_site_that_was_put_back_trains_on_nobody_until_it_is_reconciled(erased, fleet):
    folder, name = put_first_site_back(erased, fleet)
    grid = InProcessGrid(fleet)
    record = run_job(fleet, "train", grid)
    assert "was put back from a backup" in record.absent[name]
    assert "1 request that the fleet has forgotten" in record.absent[name]
    assert trained_at(grid) == {2}
    own = Context(run_id=1, node_id=1, node_config={"site-folder": str(folder)}, state=RecordDict(), run_config={})
    with pytest.raises(JobError, match="site reconcile"), site_of_node(own):  # an app's own training asks it, too
        pass

    # Also in the next job, which need not tell it again.
    assert "was put back" in run_job(fleet, "erase", InProcessGrid(fleet)).absent[name]

    said = CliRunner().invoke(app, ["site", "reconcile", str(folder)])
    (lost,) = Site(folder).ledger and restored(Site(folder)).lost
    assert said.exit_code == 1
    assert f"{lost}: epoch 1" in said.stdout
    assert lost in Store(fleet.state_folder).jobs()[2].forgotten

    with Site(folder) as site:
        request_forgetting(site, erased.people[0], deadline_days=30)
    assert CliRunner().invoke(app, ["site", "reconcile", str(folder), "--confirm"]).exit_code != 0  # no reason
    confirmed = ["--confirm", "--reason", "by the letters of last year", "--by", "ada"]
    assert CliRunner().invoke(app, ["site", "reconcile", str(folder), *confirmed]).exit_code == 0
    record = run_job(fleet, "erase", grid := InProcessGrid(fleet))
    assert (record.requests, record.released) == (1, True)
    assert name not in record.absent
    with Site(folder) as site:
        assert canonical(erased.people[0]) not in map(canonical, used_images(site).retain().identities)
        assert '"done_by": "ada"' in (folder / "reconciled.json").read_text()
    run_job(fleet, "train", grid := InProcessGrid(fleet))
    assert trained_at(grid) == {1, 2}


def test_a_site_that_was_put_back_and_went_on_is_noticed_by_what_its_history_lacks(erased, fleet):
    folder, name = put_first_site_back(erased, fleet)
    with Site(folder) as site:
        for number in range(20):  # more rows than it ever had
            site.ledger.note_letter(site.ledger.requests()[0].id, f"letter {number}", "ada")
    record = run_job(fleet, "train", grid := InProcessGrid(fleet))
    assert "was put back from a backup" in record.absent[name]
    assert trained_at(grid) == {2}


def test_a_site_whose_history_went_on_takes_part(erased, fleet):
    with Site(site_folders(fleet.state_folder)[0]) as site:
        site.ledger.note_letter(site.ledger.requests()[0].id, "forgotten", "ada")
    record = run_job(fleet, "train", grid := InProcessGrid(fleet))
    assert record.absent == {}
    assert trained_at(grid) == {1, 2}


def test_a_coordinator_that_was_put_back_says_so_and_nothing_is_trained(erased, fleet):
    put_back(erased, fleet, "coordinator")
    grid = InProcessGrid(fleet)
    for kind in ("train", "erase", "plan"):
        with pytest.raises(
            JobError, match=r"erasure epoch is 0, and sites were told of later ones \(site-\w+ 1, .*backup"
        ):
            run_job(fleet, kind, grid)
    assert trained_at(grid) == set()


def test_a_coordinator_that_was_put_back_goes_on_with_a_model_that_saw_nobody_who_was_forgotten(erased, fleet):
    put_back(erased, fleet, "coordinator")
    anew = fleet.model_copy(update={"training": fleet.training.model_copy(update={"start": "fresh"})})
    record = run_job(anew, "train", grid := InProcessGrid(fleet))
    assert (record.released, record.epoch) == (True, 1)
    assert trained_at(grid) == {1, 2}
    with Store(fleet.state_folder).lock():
        assert Store(fleet.state_folder).champions.epoch() == 1
    a_person_asks_at_each_site(fleet)
    record = run_job(fleet, "erase", InProcessGrid(fleet))
    assert (record.released, record.epoch) == (True, 2)


def test_what_the_coordinator_keeps_of_a_ledger_tells_of_nobody(erased, fleet):
    text = (fleet.state_folder / "coordinator" / "site-ledgers.json").read_text()
    for folder, person in zip(site_folders(fleet.state_folder), erased.people, strict=True):
        with Site(folder) as site:
            words = [person, site.person_digest(person), *(request.id for request in site.ledger.requests())]
            assert not [word for word in words if word in text]


def test_a_site_that_was_not_put_back_cannot_be_reconciled(fleet):
    with Site(site_folders(fleet.state_folder)[0]) as site, pytest.raises(LedgerError, match="was not put back"):
        reconcile(site, "because", "ada")
