"""A head of several labels in the whole fleet: trained, asked, forgotten, judged, exported, and named on a device."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from dlfd_fleet.data import Row, read_manifest, synthesize, write_manifest
from dlfd_fleet.device.cli import app as device
from dlfd_fleet.device.inference import DeviceModel
from dlfd_fleet.exceptions import ConfigurationError
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.ledger.site_setup import deal_to_sites
from dlfd_fleet.models import CARD_FILE, ModelCard
from dlfd_fleet.progress import ConsoleProgress
from dlfd_fleet.single import unlearn_people
from dlfd_fleet.tracking import open_registry
from tests.integration.fleet_in_process import (
    InProcessGrid,
    a_person_asks_at_each_site,
    by_the_fleets_gate,
    run_job,
    small_settings,
)
from tests.small_networks import small_networks

LABELS = {"class-0": "none", "class-1": "glasses", "class-2": "glasses;hat", "class-3": "Hat; scarf"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A fleet of two sites whose faces wear nothing, glasses, a hat or a scarf, or some of them."""
    silent = ConsoleProgress(Console(file=io.StringIO()))
    folder = tmp_path_factory.mktemp("labels")
    file = synthesize(
        folder / "faces", people=16, images_per_person=3, image_size=32, classes=4, seed=0, progress=silent
    )
    rows = [Row(row.image, row.identity, LABELS[row.label]) for row in read_manifest(file).rows]
    write_manifest(rows, file)
    settings = by_the_fleets_gate(small_settings(folder / "state", file))
    settings = settings.model_copy(
        update={
            "data": settings.data.model_copy(update={"multi_label": True}),
            "export": settings.export.model_copy(update={"formats": ("fp32", "fp16", "int8"), "int8_agreement": 0.5}),
            "tracking": settings.tracking.model_copy(update={"uri": None}),
        }
    )
    deal_to_sites(settings, silent)
    run_job(settings, "train")
    return settings


@pytest.fixture(scope="module")
def erased(trained):
    a_person_asks_at_each_site(trained)
    return run_job(trained, "erase")


def test_a_fleet_of_labels_trains_and_forgets_by_the_audit_of_whole_images(trained, erased):
    record = erased
    assert record.released, record.verdict
    store = Store(trained.state_folder)
    card = ModelCard.model_validate_json((store.folders.model(record.job) / CARD_FILE).read_text(encoding="utf-8"))
    assert (card.classes, card.multi_label, card.epoch) == (("glasses", "hat", "scarf"), True, 1)
    assert set(record.formats) == {"fp32", "fp16", "int8"}
    scores = record.models["unlearned"].scores
    assert (scores.unseen_classes, scores.unseen_images) == (2, 6)
    page = (store.folders.made(record.job) / "report.html").read_text(encoding="utf-8")
    assert "balanced accuracy" in page


def test_a_method_of_one_class_is_refused_before_a_site_is_asked(trained, erased):
    method = trained.erasure.model_copy(update={"method": "bad-teacher"})
    grid = InProcessGrid(trained)
    with pytest.raises(ConfigurationError, match="'bad-teacher' is defined for one class an image, and the model has"):
        run_job(trained.model_copy(update={"erasure": method}), "erase", grid)
    assert grid.seen == []


def test_a_device_names_the_labels_that_apply(trained, erased, tmp_path):
    folder = Store(trained.state_folder).folders.model(erased.job)
    model = DeviceModel(folder / "model.onnx")
    image = next((trained.state_folder / "sites").glob("*/images/images/*/*.png"))
    said = CliRunner().invoke(device, ["predict", str(folder / "model.onnx"), str(image), "--json"])
    (row,) = json.loads(said.stdout)["predictions"]
    assert list(row["probabilities"]) == ["glasses", "hat", "scarf"]
    assert row["labels"] == [name for name, value in row["probabilities"].items() if value >= 0.5]
    assert model.named(np.array([[0.9, 0.2, 0.5], [0.1, 0.2, 0.3]])) == ["glasses;scarf", "none"]
    table = CliRunner().invoke(device, ["predict", str(folder / "model.int8.onnx"), str(image)])
    assert "labels" in table.stdout


def test_mlflow_names_the_labels_too(trained, erased):
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{trained.state_folder / 'mlflow.db'}")
    model = mlflow.pyfunc.load_model("models:/dlfd-fleet@champion")
    assert model.metadata.metadata == {"classes": ["glasses", "hat", "scarf"], "multi_label": True}
    said = model.predict(np.zeros((2, 32, 32, 3), np.uint8))
    shown = [
        name for name, value in zip(["glasses", "hat", "scarf"], said["probabilities"][0], strict=True) if value >= 0.5
    ]
    assert said["answer"].tolist() == [";".join(shown) or "none"] * 2


def test_one_machine_forgets_with_a_model_of_labels(trained, erased, tmp_path):
    site = trained.state_folder / "sites" / "site-1"
    manifest, model = site / "manifest.csv", Store(trained.state_folder).folders.model(erased.job)
    person = next(row.identity for row in read_manifest(manifest).rows if row.split == "train")
    silent = ConsoleProgress(Console(file=io.StringIO()))
    quick = trained.unlearning.model_copy(update={"epochs": 1.0, "max_rounds": 1, "batch_size": 8})
    settings = trained.model_copy(update={"unlearning": quick})
    with small_networks():
        result = unlearn_people(model, manifest, None, [person], tmp_path / "new", settings, silent)
        with pytest.raises(ConfigurationError, match="'scrub' is defined for one class an image"):
            unlearn_people(model, manifest, None, [person], tmp_path / "other", settings, silent, "scrub")
    assert (result.unlearned.unseen_classes, result.forgotten_people) == (2, 1)


def test_a_fleet_of_a_thousand_classes_trains_exports_and_registers(tmp_path):
    silent = ConsoleProgress(Console(file=io.StringIO()))
    file = synthesize(
        tmp_path / "faces", people=24, images_per_person=50, image_size=32, classes=2, seed=0, progress=silent
    )
    rows = [
        # Of one class, so that a model that has learnt nothing yet is no worse than chance.
        Row(row.image, row.identity, "class 000", split="test" if row.identity < "person-00002" else "validation")
        if row.identity < "person-00004"
        else Row(row.image, row.identity, f"class {number - 200:03d}", split="train")
        for number, row in enumerate(read_manifest(file).rows)
    ]
    write_manifest(rows, file)
    settings = small_settings(tmp_path / "state", file)
    training = settings.training.model_copy(update={"rounds": 1, "batch_size": 64})
    tracking = settings.tracking.model_copy(update={"uri": None})
    settings = settings.model_copy(update={"training": training, "tracking": tracking})
    deal_to_sites(settings, silent)
    out = io.StringIO()
    record = run_job(settings, "train", out=out)
    assert record.released, record.verdict
    folder = Store(settings.state_folder).folders.model(record.job)
    assert len(DeviceModel(folder / "model.onnx").classes) == 1000
    assert max(map(len, out.getvalue().splitlines())) < 500
    with open_registry(settings.tracking, settings.state_folder) as registry:
        assert registry.champion().job == record.job
