"""Read and verify releases, the rollout and files from the coordinator's TUF repository.

This is plain TUF; the device's floor is kept elsewhere. TUF alone accepts old model bytes in newer metadata, a deleted
folder, and lower versions after the keys of timestamp and snapshot were replaced together.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import urllib3
from pydantic import ValidationError
from tuf.api import exceptions as tuf
from tuf.api.metadata import Metadata, TargetFile, Targets
from tuf.ngclient import Updater, UpdaterConfig

from dlfd_fleet.device.contract import CUSTOM_KEY, MODELS_FOLDER, ROLLOUT_TARGET, Release, Rollout
from dlfd_fleet.device.download import Fetcher, UpdateLimits, download, sync_folder
from dlfd_fleet.exceptions import UpdateRefusedError, UpdateUnreachableError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")
_LONGEST_NAME = 255
_ALGORITHM = "sha256"
_LIMITS = UpdateLimits()
_NOT_YET = "Nothing of the repository is verified yet: refresh it first."
# Each is said for what it looks like; the most telling class of the library comes first.
_LOOKS_LIKE = (
    (tuf.UnsignedMetadataError, "it lacks signatures of the fleet's keys: tampered metadata, or a wrong key"),
    (
        tuf.ExpiredMetadataError,
        "it has expired: somebody holds newer metadata back (a freeze), the coordinator no longer refreshes it, or "
        "the clock here is wrong",
    ),
    (tuf.BadVersionNumberError, "its version is not the next one: a rollback, or parts that do not belong together"),
    (tuf.LengthOrHashMismatchError, "it is not what was signed: tampered, or parts that do not belong together"),
    (tuf.DownloadLengthMismatchError, "it is longer than allowed: tampered, or endless data"),
    (tuf.RepositoryError, "it is damaged"),
)


class UpdateClient:
    """Reads one repository and verifies everything from the trusted root.

    Parameters
    ----------
    folder
        Folder of verified metadata, made if needed. Only one process at a time may use it.
    url
        Address of the repository, with ``metadata/`` and ``targets/`` under it.
    root
        Bytes of the ``root.json`` that came with the device.
    limits
        Limits of size and time.

    Raises
    ------
    UpdateRefusedError
        If the root is no root.
    UpdateUnreachableError
        If the folder cannot be used, or the address is not valid.
    """

    def __init__(self, folder: Path, url: str, root: bytes, *, limits: UpdateLimits = _LIMITS) -> None:
        if not url.startswith(("http://", "https://")):
            raise UpdateUnreachableError(f"The repository's address '{url}' must begin with http:// or https://.")
        self._folder = folder
        self._url = url.rstrip("/")
        self._root = root
        self._limits = limits
        self._fetcher = Fetcher(limits)
        self._verified: Updater | None = None
        self._updater()

    def refresh(self) -> None:
        """Fetch and verify the current metadata; on an error the earlier metadata stay.

        Raises
        ------
        UpdateRefusedError
            If it is not signed, older than what was seen, expired, or not consistent.
        UpdateUnreachableError
            If it does not answer, or the disk refuses.
        """
        now = _now()
        self._check_clock(now)
        updater = self._updater()
        with self._said("The repository's metadata are refused"):
            updater.refresh()
        self._verified = updater
        self._keep_clock(now)

    def releases(self) -> list[tuple[str, Release]]:
        """Return each model target's name and signed release, newest first.

        Raises
        ------
        UpdateRefusedError
            If one of them is not valid.
        """
        found = []
        for name in self._listed():
            target = self._target(name)
            custom = target.custom
            if isinstance(custom, dict) and CUSTOM_KEY in custom:
                found.append((name, self._release(name, custom[CUSTOM_KEY])))
        return sorted(found, key=lambda pair: (-pair[1].epoch, -pair[1].sequence, pair[0]))

    def floor(self) -> int:
        """Return the lowest epoch that may run, by the releases."""
        return max((release.minimum_epoch for _, release in self.releases()), default=0)

    def rollout(self) -> Rollout | None:
        """Return the rollout of the newest release; None without one. It is fetched if it has changed.

        Raises
        ------
        UpdateRefusedError, UpdateUnreachableError
            As in :meth:`refresh`. Releases and floor stay readable.
        """
        with self._said("The rollout is refused"):
            target = self._updated.get_targetinfo(ROLLOUT_TARGET)
            if target is None:
                return None
            if target.length > self._limits.rollout_bytes:
                raise UpdateRefusedError(f"The rollout has {target.length} bytes: endless data.")
            file = self._folder / "rollout" / "rollout.json"
            if self._updated.find_cached_target(target, str(file)) is None:
                download(self._fetcher, self._address(target), target, file)
            content = file.read_bytes()
            target.verify_length_and_hashes(content)
        try:
            return Rollout.model_validate_json(content)
        except ValidationError as error:
            raise UpdateRefusedError(f"{ROLLOUT_TARGET} is not valid: {_first(error)}.") from error

    def sha256(self, target: str) -> str:
        """Return a target's signed digest."""
        return self._target(target).hashes[_ALGORITHM]

    def size(self, target: str) -> int:
        """Return a target's signed length, bytes."""
        return self._target(target).length

    def download(self, target: str, to: Path) -> None:
        """Download a target to a file, whole and verified.

        An interrupted download continues from ``to`` with the suffix ``.part``. The target's name is never used as a
        path.

        Parameters
        ----------
        to
            The new file; an existing one is replaced atomically.

        Raises
        ------
        UpdateRefusedError
            If the bytes differ from those signed.
        UpdateUnreachableError
            If the repository does not answer or breaks off, or the disk refuses.
        """
        info = self._target(target)
        with self._said(f"{target} is refused"):
            download(self._fetcher, self._address(info), info, to)

    def trust_clock(self) -> None:
        """Forget earlier times, because the clock was ahead; only the device's owner may do this."""
        with self._said("The time cannot be forgotten"):
            self._clock.unlink(missing_ok=True)

    # ------------------------------------------------------------------ TUF

    @property
    def _updated(self) -> Updater:
        if self._verified is None:
            raise UpdateUnreachableError(_NOT_YET)
        return self._verified

    def _updater(self) -> Updater:
        """Return a client at its start: the library's refreshes once in its life."""
        limits = self._limits
        config = UpdaterConfig(
            max_root_rotations=limits.root_rotations,
            max_delegations=1,
            root_max_length=limits.root_bytes,
            timestamp_max_length=limits.timestamp_bytes,
            snapshot_max_length=limits.snapshot_bytes,
            targets_max_length=limits.targets_bytes,
        )
        with self._said("The root that this device trusts cannot be used"):
            self._metadata.mkdir(parents=True, exist_ok=True)
            return Updater(
                str(self._metadata),
                f"{self._url}/metadata/",
                fetcher=self._fetcher,
                config=config,
                bootstrap=self._root,
            )

    @property
    def _metadata(self) -> Path:
        return self._folder / "metadata"

    def _listed(self) -> list[str]:
        """Return the names of the targets; what is signed of each is asked of the verified set, never of this file."""
        if self._verified is None:
            raise UpdateUnreachableError(_NOT_YET)
        with self._said("The list of targets cannot be read"):
            return sorted(Metadata[Targets].from_file(str(self._metadata / "targets.json")).signed.targets)

    def _target(self, name: str) -> TargetFile:
        _check_name(name)
        with self._said(f"{name} is refused"):
            target = self._updated.get_targetinfo(name)
        if target is None:
            raise UpdateRefusedError(f"The repository lists no target {name}.")
        if _ALGORITHM not in target.hashes:
            raise UpdateRefusedError(f"The target {name} is signed without a SHA-256 digest.")
        return target

    def _address(self, target: TargetFile) -> str:
        folder, slash, name = target.path.rpartition("/")
        return f"{self._url}/targets/{folder}{slash}{target.hashes[_ALGORITHM]}.{name}"

    def _release(self, name: str, custom: object) -> Release:
        try:
            release = Release.model_validate(custom)
        except ValidationError as error:
            raise UpdateRefusedError(f"The signed data of {name} are not valid: {_first(error)}.") from error
        if not name.startswith(f"{MODELS_FOLDER}/{release.epoch}-{release.sequence}/"):
            raise UpdateRefusedError(
                f"{name} is signed as epoch {release.epoch}, publication {release.sequence}: it is not what its name "
                "says."
            )
        for needed in (release.self_test.target, *([release.data] if release.data else [])):
            self._target(needed)
        return release

    # ------------------------------------------------------------------ the clock

    def _check_clock(self, now: datetime) -> None:
        """Refuse a clock that was set back, under which metadata that have expired would pass."""
        try:
            seen = datetime.fromisoformat(json.loads(self._clock.read_text("utf-8"))).astimezone(UTC)
        except (OSError, ValueError, TypeError, OverflowError, RecursionError):
            return
        if seen - now > timedelta(seconds=self._limits.clock_slack_seconds):
            raise UpdateRefusedError(
                f"The clock here says {now:%Y-%m-%d %H:%M} UTC, and said {seen:%Y-%m-%d %H:%M} when the repository was "
                "last heard: it was set back, and metadata that have expired would pass; set it right."
            )

    def _keep_clock(self, now: datetime) -> None:
        """Keep the time of an update. Metadata expire within days, so a wrong clock cannot leave a mark far ahead."""
        new = self._clock.with_suffix(".new")
        with self._said("The time cannot be kept"):
            new.write_text(json.dumps(now.isoformat()), "utf-8")
            new.replace(self._clock)
            sync_folder(self._folder)

    @property
    def _clock(self) -> Path:
        return self._folder / "clock.json"

    @contextmanager
    def _said(self, what: str) -> Iterator[None]:
        """Turn every error of the library, the network and the disk into one sentence of ours."""
        try:
            yield
        except (tuf.RepositoryError, tuf.DownloadLengthMismatchError) as error:
            looks = next(words for kind, words in _LOOKS_LIKE if isinstance(error, kind))
            raise UpdateRefusedError(f"{what}: {looks} ({error}).") from error
        except (tuf.DownloadError, urllib3.exceptions.HTTPError) as error:
            raise UpdateUnreachableError(f"{self._url} does not answer: {error.__cause__ or error}.") from error
        except OSError as error:
            where = error.filename or self._folder
            raise UpdateUnreachableError(f"{where} cannot be used: {error.strerror or error}.") from error


def _now() -> datetime:
    return datetime.now(UTC)


def _check_name(name: str) -> None:
    """Refuse a name that could mean another place, in an address or on a disk."""
    if len(name) > _LONGEST_NAME or not _NAME.fullmatch(name):
        raise UpdateRefusedError(f"The repository lists a target {name!r:.80}: a path traversal, or no name of ours.")


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
