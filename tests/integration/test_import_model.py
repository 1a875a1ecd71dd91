"""A model that exists already becomes the champion of epoch 0, and its fleet forgets from it."""

from __future__ import annotations

import json
import shutil

import pytest
from typer.testing import CliRunner

from dlfd_fleet.cli import app
from dlfd_fleet.configuration import write_settings
from dlfd_fleet.exceptions import JobError, TrackingError
from dlfd_fleet.federation.jobs.command import reopen
from dlfd_fleet.federation.jobs.import_model import import_model
from dlfd_fleet.federation.jobs.releaser import FleetReleaser
from dlfd_fleet.federation.records.job_record import Champion
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.ledger import RequestState, Site, site_folders
from dlfd_fleet.models import digest, load_model, state_arrays
from dlfd_fleet.settings import TrackingSettings
from tests.integration.fleet_in_process import a_person_asks_at_each_site, run_job, trained_fleet
from tests.mlflow_client import client_of
from tests.small_networks import small_networks


@pytest.fixture(scope="module", autouse=True)
def networks():
    with small_networks():
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Settings of a fleet, and the folder of a model that somebody has trained on its people."""
    settings = trained_fleet(tmp_path_factory.mktemp("import"))
    store = Store(settings.state_folder)
    model = settings.state_folder / "elsewhere"
    shutil.copytree(store.folders.model(store.champions.current().job), model)
    shutil.rmtree(settings.state_folder / "coordinator")
    erasure = settings.erasure.model_copy(update={"rounds": 1, "relearning_rounds": 0})
    return settings.model_copy(update={"erasure": erasure}), model


@pytest.fixture
def fleet(trained, tmp_path):
    """A copy of it that has trained nothing itself."""
    settings, model = trained
    shutil.copytree(settings.state_folder, tmp_path / "state")
    return settings.model_copy(update={"state_folder": tmp_path / "state"}), model


def run(settings, tmp_path, *words):
    write_settings(settings, tmp_path / "fleet.json")
    return CliRunner().invoke(app, [*words, "--config", str(tmp_path / "fleet.json")])


def test_an_imported_model_is_the_champion_and_forgets(fleet, tmp_path, silent):
    settings, model = fleet
    result = run(settings, tmp_path, "registry", "import", str(model))
    assert result.exit_code == 0, result.output
    store = Store(settings.state_folder)
    champion = store.champions.current()
    assert (champion.epoch, store.load(champion.job).kind, store.load(champion.job).step) == (0, "import", "settled")
    imported, card = load_model(store.folders.model(champion.job))
    assert (card.epoch, card.kind, card.job, card.parent) == (0, "original", champion.job, None)
    assert digest(state_arrays(imported)) == digest(state_arrays(load_model(model)[0]))
    assert (store.folders.model(champion.job) / "model.onnx").exists()

    a_person_asks_at_each_site(settings)
    record = run_job(settings, "erase")
    assert record.released, record.verdict
    assert record.proceedings.began_with == f"an imported model (the folder {model.name})"
    assert store.champions.current() == Champion(job=record.job, epoch=1)
    for folder in site_folders(settings.state_folder):
        with Site(folder) as site:
            assert {request.state for request in site.ledger.requests()} == {RequestState.COMPLETE}
    with pytest.raises(JobError, match="at the erasure epoch 1, and a model from elsewhere may remember"):
        import_model(settings, str(model), silent)
    assert store.champions.current().job == record.job


def test_an_import_waits_for_no_interrupted_job_and_is_resumed_by_the_next_one_alone(fleet, silent, monkeypatch):
    settings, model = fleet
    store = Store(settings.state_folder)
    erasure = store.new_job("erase", settings)
    with pytest.raises(JobError, match=f"{erasure.job} was interrupted, and goes on from the champion"):
        import_model(settings, str(model), silent)
    store.save(erasure.at("failed"))

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:  # once the model is the champion, and before the registry hears of it
        patched.setattr(FleetReleaser, "register", killed)
        with pytest.raises(KeyboardInterrupt):
            import_model(settings, str(model), silent)
    record = store.jobs()[-1]
    assert (record.kind, record.step, record.released) == ("import", "released", True)
    with pytest.raises(JobError, match=f"{record.job} has released another model since {erasure.job} began"):
        reopen(store, None)  # the erasure: an import is no job that Flower could resume
    with pytest.raises(JobError, match="is an import"):
        reopen(store, record.job)
    run_job(settings, "erase")
    assert store.load(record.job).step == "settled"
    assert store.champions.current().job == record.job


def test_a_version_of_mlflow_is_imported_too(fleet, tmp_path, silent):
    settings, model = fleet
    settings = settings.model_copy(update={"tracking": TrackingSettings()})
    first = import_model(settings, str(model), silent)
    client = client_of(f"sqlite:///{settings.state_folder / 'mlflow.db'}")
    version = client.get_model_version_by_alias("dlfd-fleet", "champion")
    assert version.tags["dlfd.job"] == first.job
    second = import_model(settings, f"models:/dlfd-fleet/{version.version}", silent)
    assert client.get_model_version_by_alias("dlfd-fleet", "champion").tags["dlfd.job"] == second.job
    client.set_model_version_tag("dlfd-fleet", version.version, "dlfd.revoked", "it was wrong")
    with pytest.raises(TrackingError, match="was revoked: it was wrong"):
        import_model(settings, f"models:/dlfd-fleet/{version.version}", silent)
    result = run(settings, tmp_path, "registry", "import", "models:/dlfd-fleet/99")
    assert result.exit_code != 0
    assert Store(settings.state_folder).champions.current().job == second.job


@pytest.mark.parametrize("spoil", ["nothing there", "the card of another model"])
def test_what_is_no_model_is_one_sentence_and_leaves_nothing(fleet, tmp_path, silent, spoil):
    settings, model = fleet
    source = tmp_path / "source"
    if spoil == "the card of another model":
        shutil.copytree(model, source)
        card = json.loads((source / "card.json").read_text())
        (source / "card.json").write_text(json.dumps(card | {"classes": [*card["classes"], "perhaps"]}))
    with pytest.raises(Exception, match=r"Cannot read the model|cannot be used"):
        import_model(settings, str(source), silent)
    store = Store(settings.state_folder)
    assert (store.jobs(), store.champions.current()) == ([], None)
