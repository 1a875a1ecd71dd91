"""The other side of a device: a real TUF repository that signs anything it is asked to, behind a server with faults."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from dlfd_fleet.delivery import releases
from dlfd_fleet.delivery.contents import Contents, RoleName
from dlfd_fleet.delivery.keys import KeyRing
from dlfd_fleet.delivery.repository import Repository
from dlfd_fleet.delivery.rollout import put
from dlfd_fleet.device.contract import Release, Rollout, SelfTest
from dlfd_fleet.settings import DeliverySettings
from tests.tuf_repository import QuietServer

ONE_KEY_EACH = DeliverySettings(root_keys=1, root_threshold=1, targets_keys=1, targets_threshold=1)


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.now

    def move(self, **by: float) -> None:
        self.now += timedelta(**by)


class SimulatedRepository:
    """A repository whose every key is at hand; no rule of ours stands between a test and what it signs."""

    def __init__(self, folder: Path, settings: DeliverySettings = ONE_KEY_EACH) -> None:
        self.clock = Clock()
        self.repository = Repository(folder, KeyRing([folder / "keys"]), settings, self.clock)
        self.repository.create(folder / "keys")

    @property
    def root(self) -> bytes:
        """The root that a device would be given now."""
        return (self.repository.folder / "root.json").read_bytes()

    @property
    def served(self) -> Path:
        return self.repository.served

    def sign(self, change: Callable[[Contents], None], roles: Iterable[RoleName] = ("targets",)) -> None:
        """Change anything, and sign it."""
        with self.repository.lock():
            contents = self.repository.read()
            change(contents)
            self.repository.commit(contents, roles)

    def release(
        self,
        content: bytes,
        *,
        epoch: int,
        sequence: int,
        minimum_epoch: int = 0,
        version: str = "v",
        form: str = "fp32",
        self_test: bytes = b"answers",
        file: str = "model.onnx",
    ) -> str:
        """Sign any bytes as a release of any epoch, and return the target's name."""
        folder = f"models/{epoch}-{sequence}"

        def change(contents: Contents) -> None:
            target = self.repository.store(f"{folder}/{file}", content)
            answers = self.repository.store(f"{folder}/{file}.selftest.npz", self_test)
            release = Release(
                version=version,
                format=form,
                epoch=epoch,
                minimum_epoch=minimum_epoch,
                sequence=sequence,
                self_test=SelfTest(target=answers.path, tolerance=1e-3),
            )
            releases.add(contents, target, release, answers)

        self.sign(change)
        return f"{folder}/{file}"

    def roll_out(self, rollout: Rollout) -> None:
        self.sign(lambda contents: put(self.repository, contents, rollout), ("rollout",))

    def rollback_point(self, folder: Path) -> Callable[[], None]:
        """Keep what is served now, and return what serves it again."""
        shutil.copytree(self.served, folder)

        def go_back() -> None:
            shutil.rmtree(self.served)
            shutil.copytree(folder, self.served)

        return go_back


class Server(QuietServer):
    """A static file server that breaks off, goes on for ever, or falls silent, as it is told."""

    request_queue_size = 1024

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.ranges = True
        self.breaks_off: dict[str, int] = {}
        """Bytes after which it ends, by the end of a path; once each."""
        self.endless: set[str] = set()
        self.silent: set[str] = set()
        self.asked: Counter[str] = Counter()
        self.ranges_asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serving(folder: Path):
    """Serve a folder on a free port."""
    server = Server(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        server, file = self.server, self.server.folder / self.path.lstrip("/")
        server.asked[self.path] += 1
        if any(self.path.endswith(end) for end in server.silent):
            threading.Event().wait(5)
            return
        if not file.is_file():
            self._send(404, b"", 0)
            return
        content = file.read_bytes()
        wanted = self.headers.get("Range")
        start = 0
        if wanted:
            server.ranges_asked.append(wanted)
        if wanted and server.ranges:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        if start and start >= len(content):
            self._send(416, b"", 0)
        elif start:
            self._send(206, content[start:], start, len(content))
        else:
            self._send(200, content, 0)

    def _send(self, status: int, content: bytes, start: int, whole: int = 0) -> None:
        endless = any(self.path.endswith(end) for end in self.server.endless)
        self.send_response(status)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
        if not endless:
            self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        for end in list(self.server.breaks_off):
            if self.path.endswith(end):
                content = content[: self.server.breaks_off.pop(end)]
        try:
            self.wfile.write(content)
            while endless:
                self.wfile.write(b"\0" * 2**16)
        except OSError:
            pass  # the other side has had enough

    def log_message(self, *_: object) -> None:
        pass
