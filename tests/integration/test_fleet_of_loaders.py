"""A fleet whose sites read numbers from databases of their own: it trains, forgets, purges, and ships a file."""

import json

import numpy as np
import pytest

from dlfd_fleet.components import Component
from dlfd_fleet.configuration import load_settings
from dlfd_fleet.data import SOURCES
from dlfd_fleet.data.loaders import write_npz
from dlfd_fleet.demo import device_table
from dlfd_fleet.device.cli import main as device_command
from dlfd_fleet.device.inference import DeviceModel
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.ledger import RequestState, Site, init_site, site_folders
from dlfd_fleet.ledger.site_setup import deal_to_sites
from dlfd_fleet.model_input import ModelInput
from tests.integration.fleet_in_process import a_person_asks_at_each_site, run_job, small_settings
from tests.loaders import CLASSES, VALUES, Visits, patients, write_database

NUMBERS = ModelInput(shape=(VALUES,), low=-4.0, high=4.0)
NETWORK = Component(name="tests.loaders:VisitNet", arguments={"width": 16})


def settings_of(state, **data):
    settings = small_settings(state, state)
    model = settings.model.model_copy(update={"architecture": NETWORK.name, "arguments": NETWORK.arguments})
    return settings.model_copy(update={"model": model, "data": settings.data.model_copy(update=data)})


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """Settings of a fleet of two hospitals that has trained, and forgotten a person of each."""
    state = tmp_path_factory.mktemp("hospitals") / "state"
    for number in (1, 2):
        folder = state / "sites" / f"site-{number}"
        folder.mkdir(parents=True)
        write_database(folder / "visits.db", seed=number, prefix=f"{number}-")
        loader = Component(name="tests.loaders:database", arguments={"file": "visits.db"})
        init_site(
            folder,
            name=f"hospital-{number}",
            loader=loader,
            model_input=NUMBERS,
            networks=(NETWORK,),
            validation_people=2,
            test_people=2,
            seed=number,
        ).ledger.close()
    settings = settings_of(state)
    run_job(settings, "train")
    asked = [request.identity for request in a_person_asks_at_each_site(settings)]
    return settings, asked, run_job(settings, "erase")


def test_people_of_databases_are_forgotten_and_purged(fleet):
    settings, asked, record = fleet
    assert record.released, record.verdict
    assert record.requests == 2
    for number, (folder, person) in enumerate(zip(site_folders(settings.state_folder), asked, strict=True), 1):
        with Site(folder) as site:
            (request,) = site.ledger.requests()
            assert (request.state, request.identity) == (RequestState.COMPLETE, None)
            assert (site.ledger.count_purged(), site.ledger.leftovers()) == (4, [])
            assert person not in site.manifest().identities
        assert person not in Visits(folder / "visits.db").people()
        names, values, _ = patients(seed=number, prefix=f"{number}-")
        content = b"".join(file.read_bytes() for file in folder.iterdir())
        held = {name for name, value in zip(names, values, strict=True) if value.tobytes() in content}
        assert held == set(names) - {person}
        shares = ((values.astype(np.float64) + 4.0) / 8.0).astype(np.float32)
        decoded = {name for name, share in zip(names, shares, strict=True) if share.tobytes() in content}
        assert decoded == set(names) - {person}


def test_a_device_answers_for_numbers_in_their_own_range(fleet):
    settings, _, record = fleet
    model = DeviceModel(Store(settings.state_folder).folders.model(record.job) / "model.onnx")
    _, values, labels = patients(seed=1, prefix="1-")
    said = model.predict(values)
    assert model.classes == CLASSES
    assert np.mean(said.argmax(axis=1) == labels) > 0.7


@pytest.fixture
def exported(fleet):
    settings, _, record = fleet
    return Store(settings.state_folder).folders.model(record.job) / "model.onnx"


def test_the_devices_command_takes_rows_of_numbers(exported, tmp_path, capfd):
    _, values, _ = patients(seed=1, prefix="1-")
    expected = DeviceModel(exported).predict(values[:3])
    (tmp_path / "rows.json").write_text(json.dumps(values[:2].tolist()))
    header = ",".join(f"value {number}" for number in range(VALUES))
    (tmp_path / "rows.csv").write_text(f"{header}\n{','.join(map(str, values[2].tolist()))}\n")
    with pytest.raises(SystemExit) as ended:
        device_command(["predict", *map(str, (exported, tmp_path / "rows.json", tmp_path / "rows.csv")), "--json"])
    said = json.loads(capfd.readouterr().out)["predictions"]
    assert ended.value.code == 0
    assert [(row["file"], row["row"]) for row in said] == [
        (str(tmp_path / "rows.json"), 1),
        (str(tmp_path / "rows.json"), 2),
        (str(tmp_path / "rows.csv"), 1),
    ]
    for row, probabilities in zip(said, expected, strict=True):
        assert tuple(row["probabilities"]) == CLASSES
        np.testing.assert_allclose(list(row["probabilities"].values()), probabilities, atol=1e-6)
        assert row["class"] == CLASSES[probabilities.argmax()]


def test_people_of_a_loader_are_dealt_to_sites_each_with_a_copy_of_its_own(tmp_path, silent):
    names, values, labels = patients()
    arrays = {"inputs": values, "labels": np.array(labels), "people": np.array(names), "classes": np.array(CLASSES)}
    write_npz(tmp_path / "all.npz", arrays)
    settings = settings_of(
        tmp_path / "state", source="npz", manifest=tmp_path / "all.npz", numbers=(VALUES,), value_range=(-4.0, 4.0)
    )
    assert deal_to_sites(settings, silent) == ["site-1", "site-2"]
    run_job(settings, "train")
    asked = [request.identity for request in a_person_asks_at_each_site(settings)]
    assert run_job(settings, "erase").requests == 2
    for folder, person in zip(site_folders(settings.state_folder), asked, strict=True):
        card = json.loads((folder / "site.json").read_text())
        assert card["data"] == {"name": "dlfd_fleet.data.loaders:npz", "arguments": {"file": "rows.npz"}}
        assert person not in np.load(folder / "rows.npz")["people"]
    assert set(np.load(tmp_path / "all.npz")["people"]) == set(names)  # the source keeps what it has


@pytest.mark.parametrize("name", ["image-folders", "parquet", "npz", "loader"])
def test_a_source_without_what_it_requires_is_one_sentence(name):
    (required,) = SOURCES.find(name).requires
    with pytest.raises(Exception, match=rf"data\.{required} must name a .* when data\.source is '{name}'"):
        load_settings(overrides={"data.source": name}, environment={})


def test_the_demos_table_has_rows_that_are_no_files(fleet):
    settings, _, record = fleet
    table = device_table(Store(settings.state_folder).folders.model(record.job) / "model.onnx", settings)
    keys, labels, answers, probabilities = (list(column.cells) for column in table.columns)
    assert all(key.startswith("row-") and len(key) == 10 for key in keys)
    assert {*labels, *answers} <= set(CLASSES)
    assert all(0.5 <= float(probability) <= 1.0 for probability in probabilities)
