"""Download files with limits of size and time, resume after breaks, and store them whole or not at all."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from tuf.api.exceptions import DownloadHTTPError, LengthOrHashMismatchError, SlowRetrievalError
from tuf.api.metadata import TargetFile
from tuf.ngclient import FetcherInterface

from dlfd_fleet.exceptions import UpdateRefusedError, UpdateUnreachableError

PART_SUFFIX = ".part"
"""Suffix of an incomplete file."""
_CHUNK = 2**16
_RETRIES = 2
_PARTIAL, _NOT_SATISFIABLE, _FIRST_ERROR = 206, 416, 400


@dataclass(frozen=True)
class UpdateLimits:
    """Limits for a repository that a device does not trust.

    Attributes
    ----------
    silence_seconds
        Longest wait for the next byte.
    file_seconds
        Longest time for one file in one attempt; the next attempt continues.
    root_bytes, timestamp_bytes, snapshot_bytes, targets_bytes, rollout_bytes
        Largest metadata files.
    root_rotations
        Most new roots in one refresh.
    clock_slack_seconds
        How far the clock may be set back, for example by a time server.
    """

    silence_seconds: float = 30.0
    file_seconds: float = 3600.0
    root_bytes: int = 512_000
    timestamp_bytes: int = 16_384
    snapshot_bytes: int = 2_000_000
    targets_bytes: int = 5_000_000
    rollout_bytes: int = 5_000_000
    root_rotations: int = 256
    clock_slack_seconds: float = 300.0


class Fetcher(FetcherInterface):
    """HTTP client for TUF metadata and targets; proxies are those of the environment."""

    def __init__(self, limits: UpdateLimits) -> None:
        self._limits = limits
        self._pools: dict[str | None, urllib3.PoolManager] = {}

    def _fetch(self, url: str) -> Iterator[bytes]:
        return self.chunks(self.open(url))

    def open(self, url: str, start: int = 0) -> urllib3.BaseHTTPResponse:
        """Request a file from this byte on.

        Raises
        ------
        SlowRetrievalError, DownloadHTTPError, urllib3.exceptions.HTTPError
            If there is no answer, or an answer other than the file.
        """
        headers = {"Accept-Encoding": "identity"}  # what is signed is what is sent; and nothing swells on arrival
        if start:
            headers["Range"] = f"bytes={start}-"
        try:
            response = self._pool(url).request(
                "GET",
                url,
                headers=headers,
                preload_content=False,
                decode_content=False,
                timeout=urllib3.Timeout(self._limits.silence_seconds),
                retries=_RETRIES,
            )
        except urllib3.exceptions.MaxRetryError as error:
            if isinstance(error.reason, urllib3.exceptions.TimeoutError):
                raise SlowRetrievalError(f"{url}: no answer in {self._limits.silence_seconds:.0f} s") from error
            raise
        if response.status >= _FIRST_ERROR and not (start and response.status == _NOT_SATISFIABLE):
            response.close()
            raise DownloadHTTPError(f"{url}: HTTP status {response.status}", response.status)
        return response

    def chunks(self, response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
        """Yield data as they arrive, with deadlines against slow servers."""
        deadline = time.monotonic() + self._limits.file_seconds
        with closing(response):
            while chunk := response.read1(_CHUNK):
                yield chunk
                if time.monotonic() > deadline:
                    raise SlowRetrievalError(f"not whole after {self._limits.file_seconds:.0f} s")

    def _pool(self, url: str) -> urllib3.PoolManager:
        parts, proxies = urlsplit(url), getproxies()
        proxy = None if proxy_bypass(parts.hostname or "") else proxies.get(parts.scheme) or proxies.get("all")
        if proxy not in self._pools:
            self._pools[proxy] = urllib3.ProxyManager(proxy) if proxy else urllib3.PoolManager()
        return self._pools[proxy]


def download(fetcher: Fetcher, url: str, target: TargetFile, to: Path) -> None:
    """Download a target to a file; after a break the next call continues.

    Parameters
    ----------
    url
        URL of the target.
    target
        Its signed length and digests.
    to
        Path of the file; its folder is made if needed.

    Raises
    ------
    UpdateRefusedError
        If the bytes are more than or different from those signed.
    DownloadError, urllib3.exceptions.HTTPError
        If the server does not answer or breaks off.
    OSError
        If the disk refuses.
    """
    part = to.with_name(to.name + PART_SUFFIX)
    to.parent.mkdir(parents=True, exist_ok=True)
    resumed = part.exists()
    try:
        _receive(fetcher, url, target, part)
        try:
            _check(target, part)
        except LengthOrHashMismatchError:
            part.unlink()
            if not resumed:
                raise
            # What lay there may have been of another file, or torn by a power cut.
            _receive(fetcher, url, target, part)
            _check(target, part)
        part.replace(to)
        sync_folder(to.parent)
    except LengthOrHashMismatchError as error:
        part.unlink(missing_ok=True)
        raise UpdateRefusedError(
            f"The bytes that the repository sends as {target.path} are not those that were signed: a tampered target."
        ) from error
    except OSError:
        with suppress(OSError):
            part.unlink()  # a full disk is worse than a download from the start
        raise


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to disk."""
    if os.name == "nt":
        return  # Windows opens no folders
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _receive(fetcher: Fetcher, url: str, target: TargetFile, part: Path) -> None:
    done = part.stat().st_size if part.exists() else 0
    if done == target.length and part.exists():
        return
    room = shutil.disk_usage(part.parent).free + done
    if room < target.length:
        raise UpdateUnreachableError(
            f"{target.path} has {target.length} bytes, and {part.parent} has room for {room}: make room on the disk."
        )
    if done > target.length:
        done = 0
    response = fetcher.open(url, done)
    if response.status == _NOT_SATISFIABLE:
        response.close()
        done, response = 0, fetcher.open(url)
    begins = response.headers.get("Content-Range", "").startswith(f"bytes {done}-")
    if not (response.status == _PARTIAL and begins):
        done = 0  # the server sends the whole file
    with part.open("r+b" if part.exists() else "wb") as file:
        file.seek(done)
        file.truncate()
        for chunk in fetcher.chunks(response):
            done += len(chunk)
            if done > target.length:
                file.truncate(0)
                raise UpdateRefusedError(f"{target.path} goes on after its {target.length} signed bytes: endless data.")
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    if done < target.length:
        raise UpdateUnreachableError(
            f"{target.path} broke off after {done} of {target.length} bytes; the next attempt goes on from there."
        )


def _check(target: TargetFile, file: Path) -> None:
    with file.open("rb") as content:
        target.verify_length_and_hashes(content)
