"""The whole way on the embedded faces: train, ask to be forgotten, forget, prove, export, predict on a device.

The demo is a small fleet of its own in the state folder. A run that was interrupted goes on where it stood; a finished
one is followed by a new fleet, whose runs stand beside the earlier ones in MLflow.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import filelock
from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.table import Table

from dlfd_fleet.data import Manifest, choose_people_to_forget
from dlfd_fleet.exceptions import ConfigurationError, DeviceError, JobError
from dlfd_fleet.federation.jobs.reporting import said_in_short
from dlfd_fleet.federation.jobs.summary import summarise
from dlfd_fleet.federation.records.job_record import JobRecord
from dlfd_fleet.federation.records.store import LOCK_FILE, Store
from dlfd_fleet.ledger.requests import request_forgetting
from dlfd_fleet.ledger.site import LOG_FILE, Site, site_folders
from dlfd_fleet.ledger.site_setup import deal_to_sites
from dlfd_fleet.plain_text import last_line
from dlfd_fleet.progress import ConsoleProgress
from dlfd_fleet.report import PAGE_FILE
from dlfd_fleet.settings import Settings
from dlfd_fleet.simulation import simulate

if TYPE_CHECKING:
    pass

FORGETTING_SITES, PEOPLE_A_SITE = 2, 2
_SHOWN_FACES = 6
_SEND_PATIENCE = 180.0  # a new store makes its tables first; one that does not answer ends the wait at once
_LOCK_FILE, _HOLDER_FILE = "demo.lock", "demo.running"
Phase = Literal["new", "dealt", "trained", "requested", "erased", "done"]


def run_demo(settings: Settings, console: Console) -> JobRecord:
    """Run the demo, as the only one on its state folder.

    Raises
    ------
    ConfigurationError
        If another demo or job works there; then nothing is touched.
    """
    with _alone(settings.state_folder):
        return Demo(settings, console).run()


@contextmanager
def _alone(state_folder: Path) -> Iterator[None]:
    """Be the one demo of a state folder; the lock goes with the process, however it ends."""
    holder, lock = state_folder / _HOLDER_FILE, filelock.FileLock(state_folder / _LOCK_FILE, timeout=0)
    try:
        state_folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
    except filelock.Timeout as error:
        who = f" ({holder.read_text(encoding='utf-8')})" if holder.exists() else ""
        raise ConfigurationError(
            f"Another demo{who} runs on {state_folder}; wait for its end, or give this one a state folder of its own: "
            "--set state_folder=PATH."
        ) from error
    except OSError as error:
        raise ConfigurationError(
            f"The state folder {state_folder} cannot be written: {error.strerror}; name another one with --set "
            "state_folder=PATH."
        ) from error
    try:
        yield
    finally:
        lock.release()


class DemoState(BaseModel):
    """Progress and settings of the demo."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    phase: Phase
    settings: Settings
    train_job: str = ""
    erase_job: str = ""


class Demo:
    """One run of the demo, on disk after every phase."""

    def __init__(self, settings: Settings, console: Console) -> None:
        self.settings = settings
        self.console = console
        self.progress = ConsoleProgress(console)
        self.file = settings.state_folder / "demo.json"
        self.state = self._resume_or_begin()

    def _resume_or_begin(self) -> DemoState:
        earlier = _read_state(self.file)
        if earlier is not None and earlier.phase not in ("new", "done") and earlier.settings == self.settings:
            self.console.print(f"Going on with the run that was interrupted after the phase '{earlier.phase}'.")
            return earlier
        folders = [self.settings.state_folder / name for name in ("sites", "coordinator")]
        for folder in folders:
            if earlier is None and folder.exists():
                raise ConfigurationError(
                    f"{folder} was not made by the demo, which would overwrite it; give the demo a state folder of its "
                    "own: --set state_folder=PATH."
                )
        _refuse_beside_a_job(folders[1])
        self._put_logs_aside(folders[0])
        shutil.rmtree(folders[0], ignore_errors=True)
        if self._records_wait():
            for file in folders[1].glob("jobs.db*"):
                file.unlink()
        else:
            shutil.rmtree(folders[1], ignore_errors=True)
        return DemoState(phase="new", settings=self.settings)

    def _put_logs_aside(self, sites: Path) -> None:
        """Keep what sites noted in an earlier run: messages of its jobs point there."""
        for log in sites.glob(f"*/{LOG_FILE}"):
            self._logs.mkdir(exist_ok=True)
            log.replace(self._logs / log.parent.name)

    @property
    def _logs(self) -> Path:
        return self.settings.state_folder / "site-logs"

    def _records_wait(self) -> bool:
        """Send what MLflow has missed of earlier runs; if it still does not answer, their jobs are kept for later."""
        if not (self.settings.state_folder / "coordinator" / "outbox.db").exists():
            return False
        from dlfd_fleet.tracking import open_tracker

        with open_tracker(self.settings.tracking, self.settings.state_folder) as tracker:
            tracker.try_again(None)
            kept = tracker.flush(_SEND_PATIENCE) if tracker.waiting else 0
            kept = kept or len(tracker.owed())
        if kept:
            self.console.print(f"MLflow still does not have {kept} records of earlier runs: they are kept.")
        return bool(kept)

    def reach(self, phase: Phase, **changes: str) -> None:
        """Note on disk that a phase is over."""
        self.state = self.state.model_copy(update={"phase": phase, **changes})
        new = self.file.with_suffix(".new")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            new.write_text(self.state.model_dump_json(indent=2), encoding="utf-8")
            new.replace(self.file)
        except OSError as error:
            raise ConfigurationError(
                f"The state folder {self.file.parent} cannot be written: {error.strerror}; name another one with --set "
                "state_folder=PATH."
            ) from error

    def run(self) -> JobRecord:
        """Go through all phases that are still to come, and show the result."""
        started = time.monotonic()
        if self.state.phase == "new":
            self.reach("new")
            self.deal()
        if self.state.phase != "erased":
            self.federate()
        record = Store(self.settings.state_folder).load(self.state.erase_job)
        self.show(record, time.monotonic() - started)
        self.reach("done")
        return record

    def deal(self) -> None:
        """Deal the faces to sites, each with its own copy of its images."""
        names = deal_to_sites(self.settings, self.progress)
        for log in self._logs.glob("*"):
            if log.name in names:  # a new site of the same name goes on with it
                log.replace(self.settings.state_folder / "sites" / log.name / LOG_FILE)
        self.console.print(f"Dealt the faces to {len(names)} sites under {self.settings.state_folder / 'sites'}.")
        self.reach("dealt")

    def federate(self) -> None:
        """Train and erase on the Simulation Runtime, with the requests in between."""
        from dlfd_fleet.federation.jobs.run import run_jobs

        def jobs(grid: object) -> None:
            if self.state.phase == "dealt":
                record = run_jobs(grid, "train", self.settings, self.progress)  # type: ignore[arg-type]
                self.reach("trained", train_job=record.job)
            if self.state.phase == "trained":
                self.ask_to_be_forgotten()
                self.reach("requested")
            record = run_jobs(grid, "erase", self.settings, self.progress)  # type: ignore[arg-type]
            self.reach("erased", erase_job=record.job)

        simulate(self.settings, jobs)

    def ask_to_be_forgotten(self) -> None:
        """Enter requests at two sites, with the code of ``dlfd-fleet forget request``."""
        folders = site_folders(self.settings.state_folder)[:FORGETTING_SITES]
        manifests = []
        for folder in folders:
            with Site(folder) as site:
                manifests.append(site.manifest())
        rows = tuple(row for manifest in manifests for row in manifest.rows)
        chosen = choose_people_to_forget(Manifest(rows, manifests[0].root), [f.name for f in folders], PEOPLE_A_SITE)
        for folder in folders:
            with Site(folder) as site:
                for person in chosen[folder.name]:
                    if site.gone([person]):  # the demo was interrupted between two requests
                        continue
                    request = request_forgetting(site, person, deadline_days=self.settings.erasure.deadline_days)
                    self.console.print(
                        f"{site.card.name}: {person} asks to be forgotten by {request.deadline:%Y-%m-%d} "
                        f"(request {request.id})."
                    )

    def show(self, record: JobRecord, seconds: float) -> None:
        """Classify test faces on the device, then print the table and the paths."""
        store = Store(self.settings.state_folder)
        champion = store.champions.current()
        if champion is None:
            raise JobError("The training job left no champion model.")
        onnx_file = store.folders.model(champion.job) / "model.onnx"
        self.console.print(device_table(onnx_file, self.settings))
        summary = summarise(record, said_in_short(store, record))
        table = Table(*summary.columns, title=summary.title)
        for row in summary.rows:
            table.add_row(*row)
        for line in summary.lead:
            self.console.print(line, soft_wrap=True, highlight=False, markup=False)
        self.console.print(table)
        self.console.print(summary.footer)
        if not record.released:
            self.console.print("Not released: the alias `champion` stays on the original model.")
        uri = self.settings.tracking.uri or f"sqlite:///{self.settings.state_folder / 'mlflow.db'}"
        for name, value in {
            "MLflow": f"mlflow ui --backend-store-uri {uri}",
            "report": str(store.folders.made(record.job) / PAGE_FILE),
            "ONNX file": str(onnx_file),
            "took": f"{seconds:.0f} s",
        }.items():
            self.console.print(f"{name:>10}: {value}", soft_wrap=True, highlight=False)


def device_table(onnx_file: Path, settings: Settings) -> Table:
    """Classify faces of people never trained on, in a process of the device agent (it has no torch)."""
    folder = site_folders(settings.state_folder)[0]
    with Site(folder) as site:
        if site.loaded is not None:
            return _table_of_loaded(onnx_file, site)
        rows = [row for row in site.manifest().rows if row.split == "test"]
        chosen = rows[:: max(1, len(rows) // _SHOWN_FACES)][:_SHOWN_FACES]
        images = [str(site.image_root / row.image) for row in chosen]
    command = [sys.executable, "-m", "dlfd_fleet.device", "predict", "--json", str(onnx_file), *images]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own module, on files of the state folder
    if finished.returncode:
        raise DeviceError(f"The device agent could not classify the test faces: {last_line(finished.stderr)}")
    answers = json.loads(finished.stdout)
    table = Table("test face", "label", "answer", "probability", title="On the device (ONNX Runtime, no torch)")
    for row, answer in zip(chosen, answers["predictions"], strict=True):
        table.add_row(row.image, row.label, answer["class"], f"{answer['probability']:.3f}")
    return table


def _table_of_loaded(onnx_file: Path, site: Site) -> Table:
    """Predict rows that are not files, with the devices' code in this process."""
    from dlfd_fleet.device.inference import DeviceModel
    from dlfd_fleet.federation.site.images import used_images

    unseen = used_images(site).images.of_split("test")
    chosen = unseen.select(range(0, len(unseen), max(1, len(unseen) // _SHOWN_FACES))[:_SHOWN_FACES])
    model = DeviceModel(onnx_file)
    probabilities = model.predict(site.card.input.on_device(chosen.images[:].numpy()))
    table = Table("test row", "label", "answer", "probability", title="On the device (ONNX Runtime)")
    for row, answer, own in zip(chosen.rows, model.named(probabilities), probabilities, strict=True):
        table.add_row(row.image.rpartition("-")[0], row.label, answer, f"{own.max():.3f}")
    return table


def _refuse_beside_a_job(coordinator: Path) -> None:
    """Refuse to begin anew while a job, of ``flwr run`` for example, works on the fleet that would be deleted."""
    if not coordinator.exists():
        return
    try:
        with filelock.FileLock(coordinator / LOCK_FILE, timeout=0):
            pass
    except filelock.Timeout as error:
        raise ConfigurationError(
            f"A job works on {coordinator.parent}, whose fleet this demo would delete; wait for its end, or give the "
            "demo a state folder of its own: --set state_folder=PATH."
        ) from error


def _read_state(file: Path) -> DemoState | None:
    if not file.exists():
        return None
    try:
        return DemoState.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{file} cannot be read ({type(error).__name__}); move the state folder away, or name another one with "
            "--set state_folder=PATH."
        ) from error
