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
from tests.integration.fleet_in_process import InProcessGrid, a_person_asks_at_each_site, run_job, small_settings

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
    settings = small_settings(folder / "state", file)
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
