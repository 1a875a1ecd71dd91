"""Which runs of the demo go on, and which begin anew."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from dlfd_fleet.demo import Demo
from dlfd_fleet.ledger import deal_to_sites, site_folders
from dlfd_fleet.settings import DataSettings, Settings


@pytest.fixture
def settings(tmp_path, synthetic_faces):
    data = DataSettings(
        source="manifest", manifest=synthetic_faces, image_size=32, validation_people=2, test_people=2, sites=2
    )
    return Settings(state_folder=tmp_path / "state", data=data)


def begin(settings):
    return Demo(settings, Console(file=io.StringIO()))


def test_a_run_that_died_while_dealing_deals_again(settings, silent):
    begin(settings).reach("new")
    deal_to_sites(settings, silent)  # and then it died, before it could note that it had dealt
    again = begin(settings)
    assert again.state.phase == "new"
    again.deal()
    assert again.state.phase == "dealt"
    assert len(site_folders(settings.state_folder)) == 2


def test_a_run_goes_on_after_its_last_phase_and_begins_anew_under_other_settings(settings):
    first = begin(settings)
    first.reach("new")
    first.deal()
    assert begin(settings).state.phase == "dealt"
    other = settings.model_copy(update={"seed": 5})
    assert begin(other).state.phase == "new"
    assert not (settings.state_folder / "sites").exists()
