"""A job releases the formats that were asked for: calibrated at the sites, attacked there, each judged alone."""

from __future__ import annotations

import hashlib
import io
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Message
from PIL import Image
from rich.console import Console

from dlfd_fleet.audit import Outcome
from dlfd_fleet.data import synthesize
from dlfd_fleet.delivery.delivery import opened
from dlfd_fleet.delivery.publish import publish
from dlfd_fleet.delivery.releases import listed
from dlfd_fleet.device.folder import DeviceSettings
from dlfd_fleet.device.inference import DeviceModel
from dlfd_fleet.device.rules import choose
from dlfd_fleet.exceptions import JobError
from dlfd_fleet.export import calibrate, calibrated_tensors, merge_ranges, prepare
from dlfd_fleet.federation.jobs.releaser import FleetReleaser
from dlfd_fleet.federation.jobs.reporting import report_of
from dlfd_fleet.federation.protocol.messages import CalibrateResult, CalibrateTask, PendingQuery
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.federation.release.publication import released_model
from dlfd_fleet.federation.rounds.erasure import Erasure
from dlfd_fleet.federation.site.audits import run_calibration
from dlfd_fleet.federation.site.requests import answer_pending
from dlfd_fleet.formats import FORMATS, ByClasses
from dlfd_fleet.ledger import Site, request_forgetting, site_folders
from dlfd_fleet.ledger.site_setup import deal_to_sites
from dlfd_fleet.model_input import image_input
from dlfd_fleet.models import ModelCard, load_model
from dlfd_fleet.progress import ConsoleProgress
from dlfd_fleet.report.page import render
from dlfd_fleet.settings import ExportSettings, TrackingSettings
from tests.integration.fleet_in_process import InProcessGrid, run_job, small_settings
from tests.mlflow_client import client_of
from tests.small_networks import small_networks


@pytest.fixture(scope="module", autouse=True)
def networks():
    with small_networks():
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the settings of a fleet with a model, made without other formats."""
    folder, progress = tmp_path_factory.mktemp("formats"), ConsoleProgress(Console(file=io.StringIO()))
    manifest = synthesize(
        folder / "faces", people=36, images_per_person=2, image_size=32, classes=2, seed=0, progress=progress
    )
    # What int8 makes of a network that hardly learned anything is chance; trained ones are in the benchmark.
    export = ExportSettings(formats=("fp32", "int8", "ort"), int8_agreement=0.0, int8_accuracy_drop=1.0)
    settings = small_settings(folder / "state", manifest)
    erasure = settings.erasure.model_copy(update={"rounds": 1, "relearning_rounds": 0})
    settings = settings.model_copy(update={"export": export, "erasure": erasure})
    deal_to_sites(settings, progress)
    run_job(settings.model_copy(update={"export": ExportSettings()}), "train")
    return settings


@pytest.fixture
def fleet(trained, tmp_path):
    """Return a copy of that fleet in which somebody asks to be forgotten."""
    settings = trained.model_copy(update={"state_folder": tmp_path / "state"})
    shutil.copytree(trained.state_folder, settings.state_folder)
    with Site(site_folders(settings.state_folder)[0]) as site:
        train = [row for row in site.manifest().rows if row.split == "train"]
        commonest = Counter(row.label for row in train).most_common(1)[0][0]
        person = next(row.identity for row in train if row.label == commonest)
        request_forgetting(site, person, deadline_days=30)
    return settings


@pytest.fixture(autouse=True)
def fresh_registry():
    yield
    FORMATS.reload()


@pytest.fixture
def outcomes(monkeypatch):
    """Let a toy's files pass or fail by format: the attacks are real, what they can show of a dozen drawings is not."""
    chosen, judge_file = {"fp32": Outcome.PASS, "int8": Outcome.PASS, "ort": Outcome.PASS}, FleetReleaser.judge_file

    def judged(releaser, card, arrays, file, form="fp32"):
        verdict = judge_file(releaser, card, arrays, file, form)
        assert verdict is not None
        return verdict.model_copy(update={"outcome": chosen[form]})

    run = Erasure.run

    def unlearned(erasure, original):
        result = run(erasure, original)
        return replace(result, verdict=result.verdict.model_copy(update={"outcome": Outcome.PASS}))

    monkeypatch.setattr(FleetReleaser, "judge_file", judged)
    monkeypatch.setattr(Erasure, "run", unlearned)
    monkeypatch.setattr("dlfd_fleet.federation.jobs.erase.may_release", lambda verdict, settings: True)
    return chosen


def files_of(settings, record):
    folder = Store(settings.state_folder).folders.model(record.job)
    files = [file for file in folder.iterdir() if file.suffix in (".onnx", ".ort")]
    return {DeviceModel(file).metadata["dlfd.format"]: file for file in files}


def test_a_job_releases_every_format_with_its_own_verdict(fleet, outcomes):
    grid, out = InProcessGrid(fleet), io.StringIO()
    record = run_job(fleet.model_copy(update={"tracking": TrackingSettings()}), "erase", grid, out)
    assert record.released, record.verdict
    for name in ("model.onnx", "model.int8.onnx", "model.ort"):
        assert f"Attacking {name} ..." in out.getvalue().splitlines()
    assert record.formats == ("fp32", "int8", "ort")
    assert record.file_verdicts.keys() == {"int8", "ort"}
    files = files_of(fleet, record)
    assert files.keys() == {"fp32", "int8", "ort"}
    assert {DeviceModel(file).epoch for file in files.values()} == {1}
    # MLflow has how near to torch each file is, on the sites' images, and how accurate, beside torch.
    client = client_of(f"sqlite:///{fleet.state_folder / 'mlflow.db'}")
    (experiment,) = (one for one in client.search_experiments() if one.name == fleet.tracking.experiment)
    logged = [run.data.metrics for run in client.search_runs([experiment.experiment_id])]
    (metrics,) = (one for one in logged if "onnx_int8.mia_auc" in one)
    for name, form in (("onnx", "fp32"), ("onnx_int8", "int8"), ("onnx_ort", "ort")):
        assert metrics[f"{name}_size_bytes"] == files[form].stat().st_size
        assert metrics[f"{name}_accuracy"] == metrics[f"{name}.test_accuracy"]
        assert metrics[f"{name}_torch_accuracy"] == metrics["unlearned.test_accuracy"]
        assert metrics[f"{name}_max_abs_difference"] >= 0.0
        assert 0.0 < metrics[f"{name}_agreement"] <= 1.0
    # Each file was attacked at each site, and both sites calibrated; nothing but numbers came back for it.
    kinds = [message.metadata.message_type for message in grid.seen if message.has_content()]
    assert kinds.count("evaluate.calibrate") == 4
    assert kinds.count("evaluate.file") == 12
    replies = [
        m for m in grid.seen if m.metadata.message_type == "evaluate.calibrate" and m.metadata.reply_to_message_id
    ]
    assert len(replies) == 2
    assert all(list(reply.content) == ["body"] for reply in replies)
    # The files that were attacked go to devices, and no others in their place.
    without_registry = fleet.model_copy(update={"tracking": TrackingSettings()})
    model = released_model(Store(fleet.state_folder), without_registry, "champion")
    assert model.digests == {form: hashlib.sha256(file.read_bytes()).hexdigest() for form, file in files.items()}
    with opened(fleet, create=True) as delivery:
        delivery.repository.create(delivery.repository.folder / "keys")
        publish(delivery.repository, delivery.devices, model)
        assert {file.sha256 for file in delivery.devices.files()} == set(model.digests.values())


def test_a_format_of_another_package_is_attacked_registered_and_delivered_like_any_other(
    fleet, outcomes, install_how_to
):
    install_how_to("format.md")
    FORMATS.reload()
    # What 8 bits make of a network that hardly learned anything is chance.
    loose = replace(FORMATS.find("weights8"), name="loose8", nearness=ByClasses(agreement=0.0, accuracy_drop=1.0))
    FORMATS.register(loose)
    outcomes["loose8"] = Outcome.PASS
    export = ExportSettings(formats=("fp32", "loose8"))
    fleet = fleet.model_copy(update={"export": export, "tracking": TrackingSettings()})
    grid = InProcessGrid(fleet)
    record = run_job(fleet, "erase", grid)
    assert record.formats == ("fp32", "loose8"), record.proceedings.refused_files
    assert record.file_verdicts.keys() == {"loose8"}
    files = files_of(fleet, record)
    assert files["loose8"].name == "model.loose8.onnx"
    # It needs no ranges, so no site is asked for any; the report has its row, and the step that attacked it.
    assert not [message for message in grid.seen if message.metadata.message_type == CalibrateTask.TYPE]
    store = Store(fleet.state_folder)
    page = render(report_of(store, record).to_json())
    assert "model.loose8.onnx (loose8)" in page
    assert "attacking the exported loose8 file" in page
    model = released_model(store, fleet, "champion")
    with opened(fleet, create=True) as delivery:
        delivery.repository.create(delivery.repository.folder / "keys")
        publish(delivery.repository, delivery.devices, model)
        offers = [*listed(delivery.repository.read()).items()]
    wanted = DeviceSettings(url="http://x", formats=("loose8", "fp32")).formats
    _, taken = choose(offers, None, device="0" * 64, formats=wanted, floor=0, current=None)
    assert (taken.format, taken.self_test.tolerance) == ("loose8", 1e-3)


class SpoilsRanges(InProcessGrid):
    """One site sends ranges that are none."""

    def answer(self, message, context):
        reply = super().answer(message, context)
        if message.metadata.message_type != CalibrateTask.TYPE or message.metadata.dst_node_id != 1:
            return reply
        result = CalibrateResult.from_records(reply.content, "test")
        wrong = result.model_copy(update={"ranges": dict.fromkeys(result.ranges, (1.0, -1.0))})
        return Message(wrong.to_records(), reply_to=message)


def test_a_file_that_leaks_again_is_not_released_and_the_others_are(fleet, outcomes):
    outcomes["int8"] = Outcome.FAIL
    out = io.StringIO()
    record = run_job(fleet, "erase", SpoilsRanges(fleet), out)
    assert record.released
    assert record.formats == ("fp32", "ort")
    assert {form: verdict.outcome.value for form, verdict in record.file_verdicts.items()} == {
        "int8": "FAIL",
        "ort": "PASS",
    }
    assert files_of(fleet, record).keys() == {"fp32", "ort"}
    assert "No int8 file is released" in out.getvalue()
    # The site that sent nonsense was left out of the ranges, and named.
    assert any("it must be finite and rise" in reason for reason in record.absent.values())


# ------------------------------------------------------------------ retain images only


def test_the_forgotten_persons_images_change_no_range(fleet):
    """Their images are made black and white; the ranges stay what they were, although those images go beyond them."""
    store = Store(fleet.state_folder)
    folder = store.folders.model(store.champions.current().job)
    (_, card), prepared = load_model(folder), prepare((folder / "model.onnx").read_bytes())
    task = CalibrateTask(job="job-1", card=card, images=1000, seed=0)
    with Site(site_folders(fleet.state_folder)[0]) as site:
        (request,) = site.ledger.requests()
        before = run_calibration(site, task, prepared)
        manifest = site.manifest()
        mine = [row for row in manifest.rows if row.identity == request.identity]
        for row, brightness in zip(mine, (0, 255), strict=True):
            Image.fromarray(np.full((32, 32, 3), brightness, dtype=np.uint8)).save(manifest.root / row.image)
        site.manifest_file.touch()
        answer_pending(site, PendingQuery(job="job-1", take=True))
        after = run_calibration(site, task, prepared)
        trained_on = sum(row.split == "train" and row.identity != request.identity for row in manifest.rows)
    assert after.images == before.images == trained_on
    assert after.ranges == before.ranges
    theirs = calibrate(prepared, np.stack([np.full((32, 32, 3), value, dtype=np.uint8) for value in (0, 255)]))
    assert theirs.keys() == before.ranges.keys() == calibrated_tensors(prepared)
    assert merge_ranges([theirs, before.ranges]) != before.ranges


def test_a_site_calibrates_no_model_under_the_fleets_epoch(fleet):
    with Site(site_folders(fleet.state_folder)[0]) as site:
        card = ModelCard(architecture="mobilenet_v3_small", classes=site.card.classes, input=image_input(32))
        site.ledger.raise_epoch(3)
        with pytest.raises(JobError, match="under the fleet's 3"):
            run_calibration(site, CalibrateTask(job="job-1", card=card, images=1, seed=0), b"")
