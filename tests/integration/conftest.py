"""A trained fleet for tests that change it, and the fleet's ServerApp as Flower runs it."""

from __future__ import annotations

import shutil

import pytest
from flwr.app import Context, RecordDict

from dlfd_fleet.configuration import write_settings
from server.app import app as server_app
from tests.integration.fleet_in_process import InProcessGrid, be_a_server, trained_fleet
from tests.small_networks import small_networks


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Settings of a fleet with a champion; its networks are small ones as long as a module's tests run."""
    with small_networks():
        be_a_server()
        yield trained_fleet(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def fleet(trained, tmp_path):
    """Settings of a copy of that fleet."""
    settings = trained.model_copy(update={"state_folder": tmp_path / "state"})
    shutil.copytree(trained.state_folder, settings.state_folder)
    return settings


@pytest.fixture
def run_app(monkeypatch):
    """Run the ServerApp under settings of a file, with a run's configuration; return the grid that it used."""

    def run(settings, grid=None, **run_config):
        file, grid = settings.state_folder / "fleet.json", grid or InProcessGrid(settings)
        write_settings(settings, file)
        monkeypatch.setenv("DLFD_FLEET_CONFIG", str(file))
        server_app(grid, Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=run_config))
        return grid

    return run
