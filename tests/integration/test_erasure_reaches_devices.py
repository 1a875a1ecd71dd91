"""From a request at a site to the last device: a request is complete when no device can run a model that remembers."""

from __future__ import annotations

import io
import socket
import threading

import pytest
import uvicorn
from rich.console import Console

from dlfd_fleet.data import synthesize
from dlfd_fleet.delivery.delivery import KEYS, opened
from dlfd_fleet.delivery.keys import read_public_key
from dlfd_fleet.delivery.publish import ReleasedModel, publish
from dlfd_fleet.delivery.server import application
from dlfd_fleet.device.agent import Agent
from dlfd_fleet.device.folder import DeviceSettings, init_device
from dlfd_fleet.device.inference import DeviceModel
from dlfd_fleet.federation.jobs.reporting import write_report
from dlfd_fleet.federation.records.job_folders import ONNX_FILE
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.ledger import RequestState, Site, request_forgetting, site_folders
from dlfd_fleet.ledger.site_setup import deal_to_sites
from dlfd_fleet.progress import ConsoleProgress
from tests.integration.fleet_in_process import run_job, small_settings


@pytest.fixture
def settings(tmp_path):
    progress = ConsoleProgress(Console(file=io.StringIO()))
    manifest = synthesize(
        tmp_path / "faces", people=14, images_per_person=3, image_size=32, classes=2, seed=0, progress=progress
    )
    made = small_settings(tmp_path / "state", manifest)
    few_keys = {"root_keys": 1, "root_threshold": 1, "targets_keys": 1, "targets_threshold": 1}
    made = made.model_copy(
        update={
            "delivery": made.delivery.model_copy(update=few_keys),
            "erasure": made.erasure.model_copy(update={"rounds": 1, "relearning_rounds": 0}),
        }
    )
    deal_to_sites(made, progress)
    return made


@pytest.fixture
def delivery(settings):
    with opened(settings, create=True) as made:
        made.repository.create(made.repository.folder / KEYS)
        yield made


@pytest.fixture
def camera(delivery, tmp_path):
    """A device of the fleet, with its own folder, over real HTTP."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(application(delivery, 3600.0), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        path = tmp_path / "camera"
        made = init_device(path, DeviceSettings(url=url, formats=("fp32",)), delivery.repository.folder / "root.json")
        delivery.devices.enroll(read_public_key(path / "device.pub"), "camera", delivery.clock())
        yield Agent(made)
        server.should_exit = True
        thread.join()


def publish_model_of(record, settings, delivery):
    store = Store(settings.state_folder)
    file = store.folders.model(record.job) / ONNX_FILE
    store.close()
    model = ReleasedModel(DeviceModel(file).version, record.epoch, {"fp32": file})
    publish(delivery.repository, delivery.devices, model)


def state_of_the_request(settings):
    with Site(site_folders(settings.state_folder)[0]) as site:
        (request,) = site.ledger.requests()
        site.ledger.verify()
        return request.state, site.ledger.history(request.id)[-1].reason


def page_of(record, settings):
    return (settings.state_folder / "coordinator" / "jobs" / record.job / "report.html").read_text()


def test_a_request_is_complete_when_the_last_device_has_purged(settings, delivery, camera, tmp_path):
    publish_model_of(run_job(settings, "train"), settings, delivery)
    camera.poll()
    assert camera.answering.loaded().release.epoch == 0
    with Site(site_folders(settings.state_folder)[0]) as site:
        person = next(row.identity for row in site.manifest().rows if row.split == "train")
        request_forgetting(site, person, deadline_days=30)

    record = run_job(settings, "erase")
    assert record.released
    assert state_of_the_request(settings)[0] is RequestState.ROLLING_OUT
    assert "1 device may run an older one and keep the requests open" in page_of(record, settings)
    publish_model_of(record, settings, delivery)
    run_job(settings, "erase")  # nobody asks; it tells the sites how far devices are
    state, _ = state_of_the_request(settings)
    assert state is RequestState.ROLLING_OUT
    store = Store(settings.state_folder)
    page, _ = write_report(store, record.job, tmp_path / "open.html", settings)
    assert "waiting for camera" in page.read_text()

    away = settings.delivery.model_copy(update={"database": "postgresql+psycopg://127.0.0.1:1/devices"})
    said = io.StringIO()
    run_job(settings.model_copy(update={"delivery": away}), "erase", out=said)
    assert "no request is closed" in said.getvalue()
    assert state_of_the_request(settings)[0] is RequestState.ROLLING_OUT

    camera.poll()
    assert camera.answering.loaded().release.epoch == 1
    run_job(settings, "erase")
    state, reason = state_of_the_request(settings)
    assert state is RequestState.COMPLETE
    assert "1 have purged" in reason
    page, _ = write_report(store, record.job, tmp_path / "over.html", settings)
    assert "waiting for camera" not in page.read_text()
    store.close()
    # So says the page that the erasure itself left: the job after it drew it again.
    assert "have purged every older model; no device is left to come" in page_of(record, settings)
    assert "keep the requests open" not in page_of(record, settings)
