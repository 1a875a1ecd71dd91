"""A coordinator as its desk sees it: a champion, a failed erasure, one that runs, and a camera with an old model."""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing
from datetime import UTC, date, datetime, timedelta

from securesystemslib.signer import CryptoSigner

from dlfd_fleet.audit import Outcome, Verdict
from dlfd_fleet.delivery.delivery import opened
from dlfd_fleet.delivery.devices import PublishedFile
from dlfd_fleet.delivery.publish import ReleasedModel, publish
from dlfd_fleet.desk.access import rules_of
from dlfd_fleet.desk.coordinator_desk import CoordinatorDesk
from dlfd_fleet.desk.serving import guarded
from dlfd_fleet.desk.starts import Starts
from dlfd_fleet.federation.records.job_record import Champion
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.report.contents import AskedRequest
from dlfd_fleet.settings import Settings
from tests.unit.delivery.conftest import small_model
from tests.unit.delivery.test_devices import signed_report

HOSTILE = "<script>document.title='gone'</script>\u202e"
DUE = date(2026, 12, 20)
# Nobody listens there; few keys are made quickly.
QUICK = {
    "tracking": {"uri": "http://127.0.0.1:9"},
    "delivery": {"root_keys": 1, "root_threshold": 1, "targets_keys": 1, "targets_threshold": 1},
}
PROGRAM = """import sys
print("asked for", *sys.argv[2:], flush=True)
open(sys.argv[1]).read()
print("Error: there is no site.")
"""


def fleet_settings(folder) -> Settings:
    return Settings(state_folder=folder, **QUICK)


def make_fleet(settings: Settings) -> Store:
    """Fill a state folder, and return its store."""
    store = Store(settings.state_folder)
    _note(store, settings, "train-1", "train", step="settled", released=True, note="trained", seconds=90.0)
    store.champions.move(Champion(job="train-1", epoch=0), "job train-1", "a training job")
    asked = [("a" * 16, DUE), ("b" * 16, DUE - timedelta(400))]
    failed = Verdict(outcome=Outcome.FAIL, reasons=(HOSTILE,), margin=0.1, power=0.9)
    record = _note(
        store, settings, "erase-2", "erase", step="settled", requests=2, verdict=failed, note=HOSTILE, epoch=1
    )
    store.save(
        record.changed(absent={"site-9": f"did not answer {HOSTILE}"}).noted(
            asked=tuple(
                AskedRequest(request=name, site="site-1", asked_at=due - timedelta(28), deadline=due)
                for name, due in asked
            )
        )
    )
    _note(store, settings, "erase-3", "erase", step="started")
    store.activities.note("erase-3", {"site-1": "train.unlearn", HOSTILE[:60]: "query.pending"})
    return store


def _note(store: Store, settings: Settings, job: str, kind: str, **fields):
    """Put a job's record into the store, under a name of ours."""
    made = store.new_job(kind, settings)
    record = made.model_copy(update={"job": job, **fields})
    with closing(sqlite3.connect(store.file)) as database, database:
        database.execute("UPDATE job SET job = ?, record = ? WHERE job = ?", (job, record.model_dump_json(), made.job))
    return record


def add_devices(settings: Settings) -> None:
    """Give the fleet a rollout that runs, a camera with an old model, and one that has never reported."""
    with opened(settings, create=True) as delivery:
        delivery.repository.create(delivery.repository.folder / "keys")
        now = datetime.now(UTC)
        delivery.devices.note_file(PublishedFile("0" * 64, 1, 1, "1-abc", "fp32"), now)
        for name in ("camera-old", "camera-silent"):
            signer = CryptoSigner.generate_ed25519()
            delivery.devices.enroll(signer.public_key, name, now, canary=name == "camera-old")
            if name == "camera-old":
                report = signed_report(
                    signer, now, sequence=1, version="1-abc", epoch=1, floor=1, installed=("0" * 64,)
                )
                delivery.devices.receive(report, now, timedelta(days=1))
        file = small_model(settings.state_folder / "model.onnx", version="2-abc", epoch=2)
        publish(delivery.repository, delivery.devices, ReleasedModel("2-abc", 2, {"fp32": file}), rings=True)
        delivery.change_rollout("start")


def desk_of(settings: Settings, port: int = 8400, waits_for: str = "/dev/null", starts: Starts | None = None):
    """Return the desk of a fleet. By default a small program of ours starts its jobs, and reads a file to its end."""
    program = (sys.executable, "-c", PROGRAM, waits_for)
    starts = starts or Starts(settings.state_folder / "coordinator" / "starts", program=program)
    desk = CoordinatorDesk(settings, starts)
    rules = rules_of(settings.desk, "127.0.0.1", "M. Ode", over_tls=False)
    return guarded(desk.application(), rules, desk.pages, port)
