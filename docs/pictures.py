"""Make the pictures of the docs from a real run: ``python docs/pictures.py STATE_FOLDER``, after ``dlfd-fleet demo``.

Needs Chromium (Debian's package ``chromium``), which draws the erasure report, the desks and the run in MLflow as a
reader sees them. For the desk of a site, more people ask in a copy of its folder.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from mlflow import MlflowClient
from PIL import Image

from dlfd_fleet.desk.access import rules_of
from dlfd_fleet.desk.coordinator_desk import CoordinatorDesk
from dlfd_fleet.desk.serving import LIMITS, guarded
from dlfd_fleet.desk.site_desk import SiteDesk
from dlfd_fleet.desk.starts import Starts
from dlfd_fleet.device.connections import Server, listening
from dlfd_fleet.ledger import Ground, Site, extend, refuse, request_forgetting, site_folders
from dlfd_fleet.ledger.dates import site_day
from dlfd_fleet.settings import Settings

IMAGES = Path(__file__).parent / "images"
WIDTH, HEIGHT = 1000, 750
MLFLOW_SIZE, MLFLOW_WIDTH = (1280, 960), 944  # to the right of that MLflow shows its assistant
COLOURS = 64
FIGURES = ("losses",)


def main(state: Path) -> None:
    """Picture the beginning of the last erasure's report, the desks and its run; keep two of the report's figures."""
    chromium = shutil.which("chromium")
    reports = sorted(state.glob("coordinator/jobs/erase-*/report.html"))
    if chromium is None:
        sys.exit("There is no Chromium: apt-get install chromium.")
    if not reports:
        sys.exit(f"There is no erasure in {state}: dlfd-fleet demo makes one.")
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        picture(chromium, reports[-1].resolve().as_uri(), "erasure-report")
        settings, site = Settings(state_folder=state), ask_more(site_folders(state)[0], Path(folder) / "site")
        for name, desk, path in (
            ("desk-site", SiteDesk(site, settings), "/"),
            ("desk-lineage", CoordinatorDesk(settings, Starts(Path(folder) / "starts")), "/lineage"),
        ):
            with served(desk, settings) as address:
                picture(chromium, address + path, name)
    with mlflow_of(state) as address:
        picture(chromium, address + run_of(state, reports[-1].parent.name), "mlflow-run", MLFLOW_SIZE, MLFLOW_WIDTH)
    for figure in FIGURES:
        keep(reports[-1].with_name(f"{figure}.png"), figure)


def picture(
    chromium: str, address: str, name: str, size: tuple[int, int] = (WIDTH, HEIGHT), width: int = WIDTH
) -> None:
    """Keep what a browser's window of a size shows of an address, up to a width."""
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        options = ["--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={size[0]},{size[1]}"]
        options += ["--virtual-time-budget=30000"]  # MLflow's page asks its server for what it shows
        command = [chromium, *options, f"--screenshot={shot}", address]
        subprocess.run(command, check=True, capture_output=True)  # noqa: S603 - our own words and files
        keep(shot, name, width)


def ask_more(folder: Path, copy: Path) -> Path:
    """Let four more people of a site ask in a copy of its folder, and return that."""
    shutil.copytree(folder, copy)
    today = site_day(datetime.now(UTC))
    with Site(copy) as site:
        people = sorted(set(site.manifest().identities) - site.gone(site.manifest().identities))
        asked = [
            request_forgetting(
                site,
                person,
                deadline_days=28,
                received=today - timedelta(days),
                verified_by="passport",
                done_by="M. Ode",
            )
            for person, days in zip(people, (31, 24, 9, 2), strict=False)
        ]
        extend(site, asked[2].id, months=1, reason="Many requests came at once.", noticed=today, done_by="M. Ode")
        refuse(site, asked[3].id, Ground.LEGAL_CLAIMS, reason="A court case.", done_by="M. Ode")
    return copy


@contextmanager
def served(desk: SiteDesk | CoordinatorDesk, settings: Settings) -> Iterator[str]:
    """Serve a desk, and give its address."""
    rules = rules_of(settings.desk, "127.0.0.1", "M. Ode", over_tls=False)
    with listening("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        server = Server(guarded(desk.application(), rules, desk.pages, port), LIMITS)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        yield f"http://127.0.0.1:{port}"
        server.should_exit = True
        thread.join()


def run_of(state: Path, job: str) -> str:
    """Return the path of a job's run on MLflow's pages."""
    client = MlflowClient(tracking_uri=f"sqlite:///{state.resolve()}/mlflow.db")
    experiment = client.get_experiment_by_name("dlfd-fleet").experiment_id
    (run,) = client.search_runs([experiment], f"attributes.run_name = '{job}'")
    return f"/#/experiments/{experiment}/runs/{run.info.run_id}"


@contextmanager
def mlflow_of(state: Path) -> Iterator[str]:
    """Serve the MLflow store of a state folder, and give its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{state.resolve()}/mlflow.db"]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with subprocess.Popen(command, start_new_session=True, env=os.environ | quiet) as server:  # noqa: S603 - as above
        try:
            while True:
                if server.poll() is not None:
                    sys.exit("MLflow's server has ended; it says why above.")
                with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                    break
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)


def keep(picture: Path, name: str, width: int | None = None) -> None:
    """Write a picture to the folder of images, in few colours: a repository keeps it for ever."""
    whole = Image.open(picture)
    small = whole.crop((0, 0, min(whole.width, width or whole.width), whole.height)).convert(
        "P", palette=Image.Palette.ADAPTIVE, colors=COLOURS
    )
    small.save(IMAGES / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "dlfd-fleet-state"))
