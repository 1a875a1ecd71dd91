"""A training job goes on from the champion, whoever made it, or begins anew where that is asked for."""

from __future__ import annotations

import shutil

import pytest
from flwr.app import Context, RecordDict

from dlfd_fleet.configuration import write_settings
from dlfd_fleet.exceptions import JobError
from dlfd_fleet.federation.protocol.held_names import name_of
from dlfd_fleet.federation.protocol.messages import FitTask
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.ledger import site_folders
from dlfd_fleet.models import digest, load_model, state_arrays
from server.app import app as server_app
from tests.integration.fleet_in_process import InProcessGrid, run_job, trained_fleet
from tests.small_networks import small_networks


@pytest.fixture(scope="module", autouse=True)
def networks():
    with small_networks():
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return trained_fleet(tmp_path_factory.mktemp("going-on"))


@pytest.fixture
def fleet(trained, tmp_path):
    """Settings of a copy of that fleet, and its champion's job."""
    settings = trained.model_copy(update={"state_folder": tmp_path / "state"})
    shutil.copytree(trained.state_folder, settings.state_folder)
    return settings, Store(settings.state_folder).champions.current().job


def with_training(settings, **changes):
    return settings.model_copy(update={"training": settings.training.model_copy(update=changes)})


def first_model(grid):
    """The digest of the model that the first training task is about; a site that holds it is not sent it."""
    return name_of(next(message for message in grid.seen if message.metadata.message_type == FitTask.TYPE).content)


def saved(settings, job):
    model, card = load_model(Store(settings.state_folder).folders.model(job))
    return card, state_arrays(model)


def test_training_goes_on_from_the_champion_and_says_so_in_the_card(fleet):
    settings, champion = fleet
    _, before = saved(settings, champion)
    grid = InProcessGrid(settings)
    record = run_job(with_training(settings, rounds=1), "train", grid)
    assert first_model(grid) == digest(before)
    card, after = saved(settings, record.job)
    assert (card.kind, card.epoch, card.parent) == ("original", 0, digest(before))
    assert digest(after) != digest(before)


def test_fresh_weights_where_they_are_asked_for_by_flower(fleet, tmp_path, monkeypatch):
    settings, champion = fleet
    _, before = saved(settings, champion)
    write_settings(with_training(settings, rounds=1), tmp_path / "fleet.json")
    monkeypatch.setenv("DLFD_FLEET_CONFIG", str(tmp_path / "fleet.json"))
    grid = InProcessGrid(settings)
    run_config = {"job": "train", "fresh": True}
    server_app(grid, Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=run_config))
    assert first_model(grid) not in ("", digest(before))
    record = Store(settings.state_folder).jobs()[-1]
    assert saved(settings, record.job)[0].parent is None


def test_another_network_than_the_champions_is_said_before_anybody_trains(fleet):
    settings, champion = fleet
    model = settings.model.model_copy(update={"architecture": "resnet18"})
    grid = InProcessGrid(settings)
    with pytest.raises(JobError, match=r"is a mobilenet_v3_small, and model\.architecture asks for a resnet18"):
        run_job(settings.model_copy(update={"model": model}), "train", grid)
    assert FitTask.TYPE not in {message.metadata.message_type for message in grid.seen}
    assert Store(settings.state_folder).champions.current().job == champion


def test_a_fresh_training_is_begun_though_another_one_was_interrupted(fleet):
    settings, _ = fleet
    short = with_training(settings, rounds=1)
    store = Store(settings.state_folder)
    interrupted = store.new_job("train", short)
    record = run_job(with_training(short, start="fresh"), "train")
    assert store.load(interrupted.job).step == "settled"
    assert record.job != interrupted.job
    assert saved(settings, record.job)[0].parent is None


def test_classes_that_a_site_spells_otherwise_are_the_champions(fleet):
    settings, champion = fleet
    file = site_folders(settings.state_folder)[0] / "site.json"
    card, before = saved(settings, champion)
    file.write_text(file.read_text().replace(f'"{card.classes[0]}"', f'"{card.classes[0].upper()} "'))
    grid = InProcessGrid(settings)
    run_job(with_training(settings, rounds=1), "train", grid)
    assert first_model(grid) == digest(before)
