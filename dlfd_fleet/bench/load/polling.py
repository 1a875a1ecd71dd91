"""How many devices one server carries: real TUF clients that poll, download and report, against the server's process.

The devices' own work, of which checking signatures is the most, is done on this machine too, and is in the times.
"""

from __future__ import annotations

import csv
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import urllib3
from rich.console import Console
from rich.table import Table
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner

from dlfd_fleet.delivery import releases, rollout
from dlfd_fleet.delivery.delivery import Delivery, opened
from dlfd_fleet.device.contract import REPORT_TYPE, REPORTS_PATH, DeviceReport, Release, SelfTest
from dlfd_fleet.device.update import UpdateClient
from dlfd_fleet.exceptions import DeliveryError, DeviceError
from dlfd_fleet.progress import ConsoleProgress, ProgressDisplay
from dlfd_fleet.settings import Settings

_PATIENCE = 60.0
_ACCEPTED = 204
_LAST_EPOCH = 2


@dataclass(frozen=True)
class PollTimes:
    """One round in which every device polled once.

    Attributes
    ----------
    what
        What the devices found.
    failed
        Polls that ended in an error.
    seconds
        Of the whole round.
    median_seconds, p95_seconds, longest_seconds
        Of one device's poll: metadata, a new model if there is one, and its report.
    """

    what: str
    devices: int
    at_once: int
    failed: int
    seconds: float
    median_seconds: float
    p95_seconds: float
    longest_seconds: float


class _Device:
    """A device without a model runtime: everything that a server sees of one."""

    def __init__(self, folder: Path, url: str, root: bytes, signer: CryptoSigner) -> None:
        self._folder, self._url, self._signer = folder, url, signer
        self._client = UpdateClient(folder / "tuf", url, root)
        self._http = urllib3.PoolManager()
        self._release: Release | None = None
        self._digest = self._nonce = ""

    def poll(self) -> float:
        """Do what a device does now and then; return how long it took, seconds."""
        started = time.perf_counter()
        self._client.refresh()
        name, release = self._client.releases()[0]
        self._client.rollout()
        if release != self._release:
            self._client.download(name, self._folder / "model.onnx")
            self._client.download(release.self_test.target, self._folder / "reference.npz")
            self._release, self._digest = release, self._client.sha256(name)
        self._report(release)
        return time.perf_counter() - started

    def _report(self, release: Release) -> None:
        nonce = secrets.token_hex(16)
        report = DeviceReport(
            device=self._signer.public_key.keyid,
            time=datetime.now(UTC),
            nonce=nonce,
            follows=(self._nonce,) if self._nonce else (),
            failed=(),
            sequence=release.sequence,
            version=release.version,
            epoch=release.epoch,
            floor=release.minimum_epoch,
            healthy=True,
            installed=(self._digest,),
            purged=(),
            attacks=(),
            lease_until=None,
        )
        envelope = Envelope(report.model_dump_json().encode(), REPORT_TYPE, {})
        envelope.sign(self._signer)
        answer = self._http.request("POST", self._url + REPORTS_PATH, json=envelope.to_dict(), timeout=_PATIENCE)
        if answer.status != _ACCEPTED:
            raise DeviceError(f"The report was refused: {answer.data.decode()}.")
        self._nonce = nonce


def measure_delivery(
    folder: Path, devices: int, progress: ProgressDisplay, *, model_bytes: int = 1_000_000, at_once: int = 100
) -> list[PollTimes]:
    """Let devices poll a server: for their first model, for nothing new, and while another model is published.

    Parameters
    ----------
    folder
        New folder for the repository and the devices.
    at_once
        Devices that poll at the same time.
    """
    settings = Settings(state_folder=folder / "state")
    with opened(settings, create=True) as delivery:
        delivery.repository.create(delivery.repository.folder / "keys")
        root = (delivery.repository.folder / "root.json").read_bytes()
        _publish(delivery, 1, model_bytes)
        with _served(settings.state_folder) as url, ThreadPoolExecutor(at_once) as pool:
            fleet = []
            with progress.phase("Enrolling devices", devices) as advance:
                for number in range(devices):
                    signer = CryptoSigner.generate_ed25519()
                    delivery.devices.enroll(signer.public_key, f"device-{number}", datetime.now(UTC))
                    fleet.append(_Device(folder / "devices" / str(number), url, root, signer))
                    advance()
            times = [_round("a first model", fleet, pool, at_once, progress)]
            times.append(_round("nothing new", fleet, pool, at_once, progress))
            pool.submit(_publish, delivery, _LAST_EPOCH, model_bytes)
            times.append(_round("a model that is published meanwhile", fleet, pool, at_once, progress))
            times.append(_round("what they had missed", fleet, pool, at_once, progress))
            behind = [
                device.name for device in delivery.devices.devices() if not device.report or device.report.epoch != 2
            ]
    if behind:
        raise DeliveryError(f"{len(behind)} devices did not get the new model.")
    return times


def polling_command(devices: int, folder: Path, console: Console) -> None:
    """Measure, print a table, and write ``delivery.csv`` into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as fresh:
        times = measure_delivery(Path(fresh), devices, ConsoleProgress(console))
    table = Table("the devices found", "devices", "at once", "failed", "seconds", "median s", "p95 s", "longest s")
    for row in times:
        spent = (row.seconds, row.median_seconds, row.p95_seconds, row.longest_seconds)
        table.add_row(row.what, *map(str, (row.devices, row.at_once, row.failed)), *(f"{value:.2f}" for value in spent))
    console.print(table)
    with (folder / "delivery.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(PollTimes.__dataclass_fields__))
        writer.writeheader()
        writer.writerows(map(asdict, times))


def _round(
    what: str, fleet: Sequence[_Device], pool: ThreadPoolExecutor, at_once: int, progress: ProgressDisplay
) -> PollTimes:
    started, times, failed = time.perf_counter(), [], 0
    with progress.phase(f"Devices poll: {what}", len(fleet)) as advance:
        polls = [pool.submit(device.poll) for device in fleet]
        try:
            for poll in as_completed(polls):
                try:
                    times.append(poll.result())
                except DeviceError as error:
                    failed += 1
                    progress.say(str(error))
                advance()
        finally:
            for poll in polls:
                poll.cancel()  # a signal may end the round before all have begun
    seconds = time.perf_counter() - started
    median, p95, longest = (float(value) for value in np.quantile(times or [0.0], [0.5, 0.95, 1.0]))
    return PollTimes(what, len(fleet), at_once, failed, seconds, median, p95, longest)


def _publish(delivery: Delivery, epoch: int, size: int) -> None:
    """Sign random bytes as a model; the server and the clients do not know the difference."""
    repository, name = delivery.repository, f"models/{epoch}-{epoch}/model.onnx"
    with repository.lock():
        contents = repository.read()
        content = np.random.default_rng(epoch).bytes(size)
        model, answers = repository.store(name, content), repository.store(f"{name}.selftest.npz", content[:10_000])
        release = Release(
            version=f"{epoch}-bench",
            format="fp32",
            epoch=epoch,
            minimum_epoch=epoch,
            sequence=epoch,
            self_test=SelfTest(target=answers.path, tolerance=1.0),
        )
        releases.add(contents, model, release, answers)
        releases.raise_floor(contents, epoch)
        rollout.put(repository, contents, rollout.for_everybody(epoch))
        repository.commit(contents, ("targets", "rollout"))


@contextmanager
def _served(state_folder: Path) -> Iterator[str]:
    """Run the server as an operator does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "dlfd_fleet", "delivery", "serve", "--port", str(port)]
    server = subprocess.Popen(  # noqa: S603 - our own words
        [*command, "--set", f"state_folder={state_folder}"], stdout=subprocess.DEVNULL
    )
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + _PATIENCE
    try:
        while not _answers(url):
            if server.poll() is not None or time.monotonic() > deadline:
                raise DeliveryError("The server did not start.")
            time.sleep(0.1)
        yield url
    finally:
        server.terminate()
        server.wait()


def _answers(url: str) -> bool:
    try:
        return urllib3.request("GET", f"{url}/metadata/timestamp.json", retries=False, timeout=_PATIENCE).status == 200
    except urllib3.exceptions.HTTPError:
        return False
