"""A disk that is really full: a job stops with one sentence, and goes on when there is room.

Coordinator and sites share the disk. Whoever may not mount a small one skips these tests.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import closing

import pytest

from dlfd_fleet.data import site_images
from dlfd_fleet.exceptions import ExportError, FleetError, OutboxError
from dlfd_fleet.export import prepare
from dlfd_fleet.federation.jobs import command, releaser
from dlfd_fleet.federation.jobs.releaser import FleetReleaser
from dlfd_fleet.federation.records.steps import Steps
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.ledger import RequestState, Site, site_folders
from dlfd_fleet.settings import TrackingSettings
from dlfd_fleet.tracking import open_tracker
from dlfd_fleet.tracking.outbox import Outbox
from tests.integration.fleet_in_process import a_person_asks_at_each_site, run_job, trained_fleet
from tests.mlflow_client import client_of
from tests.small_disk import fill, make_room

SENTENCE = r"Cannot write .*outbox\.db: .*full; check space and rights\.$"


def metrics(step):
    return {"metrics": {"mia_auc": 0.5}, "step": step, "site": "", "attempt": "", "at": 0}


def put_until_full(outbox):
    """Tell things until the disk has no room for another one, and return how many it took."""
    for step in range(1000):
        try:
            outbox.put_metrics("job-1", metrics(step))
        except OutboxError:
            return step
    raise AssertionError("the disk is not full")


def test_an_outbox_on_a_full_disk_says_so_and_loses_nothing(mount_disk):
    disk = mount_disk(2)
    with closing(Outbox(disk / "outbox.db")) as outbox:
        outbox.put("job-1", "start", {})
        fill(disk)
        taken = put_until_full(outbox)
        with pytest.raises(OutboxError, match=SENTENCE):
            outbox.put("job-1", "artifact", {"folder": "", "name": "a"}, bytes(100_000))
        assert outbox.waiting() == 1 + taken
        make_room(disk)
        for step in (*range(taken + 1), taken):  # a step that is gone over again is told once, the lost one now
            outbox.put_metrics("job-1", metrics(step))
        assert outbox.waiting() == 2 + taken


def test_an_outbox_that_cannot_be_made_says_so(mount_disk):
    disk = mount_disk(1)
    fill(disk)
    with pytest.raises(OutboxError, match=SENTENCE):
        Outbox(disk / "outbox.db")
    (disk / "file").touch()
    with pytest.raises(OutboxError, match=r"Cannot make .*file"):
        Outbox(disk / "file" / "outbox.db")


def test_what_waits_is_sent_when_there_is_room_again(mount_disk, tmp_path):
    """Nothing is set aside as refused only because the note that it was sent cannot be written."""
    state, settings = mount_disk(2), TrackingSettings(uri=f"sqlite:///{tmp_path}/mlflow.db")
    with closing(Outbox(state / "coordinator" / "outbox.db")) as outbox:
        outbox.put("job-1", "start", {"parameters": {"seed": "0"}, "tags": {}})
        fill(state)
        taken = put_until_full(outbox)
        with open_tracker(settings, state) as tracker:
            assert tracker.flush(120.0) == 1 + taken
            make_room(state)
            while tracker.flush(120.0):
                pass
            assert tracker.refused == 0
    client = client_of(settings.uri)
    (run,) = client.search_runs([client.get_experiment_by_name("dlfd-fleet").experiment_id])
    assert len(client.get_metric_history(run.info.run_id, "mia_auc")) == taken


def test_an_export_that_has_no_room_for_its_scratch_files_says_so(mount_disk, monkeypatch):
    disk = mount_disk(1)
    fill(disk)
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    with pytest.raises(ExportError, match=r"Cannot write under .*: No space left on device; check space and rights"):
        prepare(bytes(100_000))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A fleet with a champion, and one person at each of its sites who asks to be forgotten."""
    settings = trained_fleet(tmp_path_factory.mktemp("full"))
    a_person_asks_at_each_site(settings)
    return settings


MOMENTS = {
    "the job's first words": (Outbox, "put", 1),
    "metrics of a round": (Outbox, "put_metrics", 5),
    "a finished step": (Steps, "finish", 2),
    "the released model": (releaser, "save_model", 1),
    "its registration": (FleetReleaser, "register", 1),
    "the sites' manifests": (site_images, "write_manifest", 1),
    "the figures": (FleetReleaser, "draw", 1),
    "the report": (releaser, "record_report", 1),
}
"""In the order of a job: what is written on a disk that is full from the n-th call on."""


def stop(settings, disk, monkeypatch, owner, name, number):
    """Run a job whose disk is full from this call on; what was half written then is gone."""
    write, calls = getattr(owner, name), iter(range(1, 1000))

    def on_a_full_disk(*arguments, **named):
        if next(calls) >= number:
            fill(disk)
        return write(*arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, on_a_full_disk)
        with pytest.raises(FleetError, match=r"check space and rights"):
            run_job(settings, "erase")
    assert not list((settings.state_folder / "coordinator").rglob("*.new"))
    make_room(disk)


def test_an_erasure_that_a_full_disk_stops_again_and_again_comes_to_its_end(trained, mount_disk, monkeypatch):
    disk = mount_disk(200)
    settings = trained.model_copy(update={"state_folder": disk / "state"})
    shutil.copytree(trained.state_folder, settings.state_folder)
    jobs = set()
    for moment in MOMENTS.values():
        stop(settings, disk, monkeypatch, *moment)
        with closing(Store(settings.state_folder)) as store:
            jobs.add(command.reopen(store, None).job)  # as `dlfd-fleet job resume` does
    record = run_job(settings, "erase")
    assert jobs == {record.job}
    assert (record.step, record.released, record.requests) == ("settled", True, 2)
    # One site could not write its manifest, and then the other one not even its ledger; the next job ends what this one
    # began.
    folders = site_folders(settings.state_folder)
    logs = [(folder / "site.log").read_text() for folder in folders]
    assert "manifest.csv: No space left on device; check space and rights." in logs[0]
    assert "ledger.db cannot be used: database or disk is full" in logs[1]
    assert run_job(settings, "erase").note == "nobody asks to be forgotten"
    for folder in folders:
        with Site(folder) as site:
            site.ledger.verify()
            (request,) = site.ledger.requests()
            assert (request.state, request.epoch) == (RequestState.COMPLETE, 1)
            assert len(site.ledger.tombstones()) == 3
    with closing(Outbox(settings.state_folder / "coordinator" / "outbox.db")) as outbox:
        assert outbox.holds(record.job, "model")
        assert outbox.holds(record.job, "finish")
