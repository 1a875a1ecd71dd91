"""A training job goes on from the champion, whoever made it, or begins anew where that is asked for."""

from __future__ import annotations

import pytest

from dlfd_fleet.exceptions import JobError
from dlfd_fleet.federation.protocol.held_names import name_of
from dlfd_fleet.federation.protocol.messages import FitTask
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.ledger import site_folders
from dlfd_fleet.models import digest, load_model, state_arrays
from tests.integration.fleet_in_process import InProcessGrid, run_job


@pytest.fixture
def champion(fleet):
    """The job of the fleet's champion."""
    return Store(fleet.state_folder).champions.current().job


def with_training(settings, **changes):
    return settings.model_copy(update={"training": settings.training.model_copy(update=changes)})


def first_model(grid):
    """The digest of the model that the first training task is about; a site that holds it is not sent it."""
    return name_of(next(message for message in grid.seen if message.metadata.message_type == FitTask.TYPE).content)


def saved(settings, job):
    model, card = load_model(Store(settings.state_folder).folders.model(job))
    return card, state_arrays(model)


def test_training_goes_on_from_the_champion_and_says_so_in_the_card(fleet, champion):
    _, before = saved(fleet, champion)
    grid = InProcessGrid(fleet)
    record = run_job(with_training(fleet, rounds=1), "train", grid)
    assert first_model(grid) == digest(before)
    card, after = saved(fleet, record.job)
    assert (card.kind, card.epoch, card.parent) == ("original", 0, digest(before))
    assert digest(after) != digest(before)


def test_fresh_weights_where_they_are_asked_for_by_flower(fleet, champion, run_app):
    _, before = saved(fleet, champion)
    grid = run_app(with_training(fleet, rounds=1), job="train", fresh=True)
    assert first_model(grid) not in ("", digest(before))
    record = Store(fleet.state_folder).jobs()[-1]
    assert saved(fleet, record.job)[0].parent is None


def test_another_network_than_the_champions_is_said_before_anybody_trains(fleet, champion):
    model = fleet.model.model_copy(update={"architecture": "resnet18"})
    grid = InProcessGrid(fleet)
    with pytest.raises(JobError, match=r"is a mobilenet_v3_small, and model\.architecture asks for a resnet18"):
        run_job(fleet.model_copy(update={"model": model}), "train", grid)
    assert FitTask.TYPE not in {message.metadata.message_type for message in grid.seen}
    assert Store(fleet.state_folder).champions.current().job == champion


def test_a_fresh_training_is_begun_though_another_one_was_interrupted(fleet):
    short = with_training(fleet, rounds=1)
    store = Store(fleet.state_folder)
    interrupted = store.new_job("train", short)
    record = run_job(with_training(short, start="fresh"), "train")
    assert store.load(interrupted.job).step == "settled"
    assert record.job != interrupted.job
    assert saved(fleet, record.job)[0].parent is None


def test_classes_that_a_site_spells_otherwise_are_the_champions(fleet, champion):
    file = site_folders(fleet.state_folder)[0] / "site.json"
    card, before = saved(fleet, champion)
    file.write_text(file.read_text().replace(f'"{card.classes[0]}"', f'"{card.classes[0].upper()} "'))
    grid = InProcessGrid(fleet)
    run_job(with_training(fleet, rounds=1), "train", grid)
    assert first_model(grid) == digest(before)
