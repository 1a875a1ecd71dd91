"""The folder of a device: settings, key, trusted root, and paths of everything else."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from filelock import FileLock, Timeout
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from securesystemslib.signer import CryptoSigner

from dlfd_fleet.device.download import sync_folder
from dlfd_fleet.device.durable import read_copies, sync_tree, write_twice
from dlfd_fleet.device.floor import Floor
from dlfd_fleet.device.state import DeviceState, read_state
from dlfd_fleet.device.update import UpdateClient
from dlfd_fleet.exceptions import DeviceError
from dlfd_fleet.passwords import holds_password
from dlfd_fleet.registry import name_in

Format = Annotated[
    str, name_in("dlfd_fleet.formats:FORMATS", "the package of another format must be installed on this device")
]


def _address(url: str) -> str:
    """Refuse an address that is not valid, or that contains a password, because logs would show it."""
    if holds_password(url):
        raise ValueError("it holds a password, which `status` and logs would show; leave it out")
    try:
        parts = urlsplit(url)
        is_one = bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_one = False
    if not is_one:
        raise ValueError("it is no address; write http://HOST:PORT or https://HOST")
    return url


class DeviceSettings(BaseModel):
    """The content of ``settings.json``, which the owner may change.

    Attributes
    ----------
    url
        Address of the coordinator's repository; reports go there too.
    formats
        File formats that this device takes, best first.
    lease_days
        Days that it answers without contact to the coordinator; None: no limit.
    threads
        Threads of one prediction.
    poll_seconds
        Mean seconds between polls.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: Annotated[str, Field(pattern=r"^https?://[^\s?#]+$", max_length=2000), AfterValidator(_address)]
    formats: Annotated[tuple[Format, ...], Field(min_length=1)] = ("int8", "fp32")
    lease_days: Annotated[float, Field(gt=0.0, le=36_500.0)] | None = None
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    poll_seconds: Annotated[float, Field(gt=0.0, le=604_800.0)] = 600.0


class DeviceFolder:
    """An existing device's folder.

    Parameters
    ----------
    path
        Made by :func:`init_device`.

    Raises
    ------
    DeviceError
        If it is no device's folder, or its settings or key cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings = _read_settings(path / "settings.json")
        self.signer = _read_key(self.key)
        self.root = _read(path / "root.json")
        self.floor = Floor(path / "floor")

    @property
    def device(self) -> str:
        """The device's id: the TUF key id of its public key."""
        return str(self.signer.public_key.keyid)

    @property
    def key(self) -> Path:
        """The private key, PEM, readable by the owner only."""
        return self.path / "device.key"

    @property
    def models(self) -> Path:
        """Installed models, each in a folder named by its digest."""
        return self.path / "models"

    @property
    def staging(self) -> Path:
        """Downloads that have not passed all checks."""
        return self.path / "staging"

    @property
    def waiting_report(self) -> Path:
        """The signed report that the coordinator has not acknowledged."""
        return self.path / "report.json"

    @property
    def chain(self) -> Path:
        """Which of its reports the coordinator has acknowledged; stored twice."""
        return self.path / "chain"

    @property
    def reserve(self) -> Path:
        """Disk space reserved for erasures."""
        return self.path / "reserve"

    @property
    def clock(self) -> Path:
        """The greatest time seen."""
        return self.path / "clock"

    def client(self) -> UpdateClient:
        """Return a client of the repository."""
        return UpdateClient(self.path / "tuf", self.settings.url, self.root)

    def read_state(self) -> DeviceState:
        """Return the device's state."""
        return read_state(read_copies(self.path / "state.json"))

    def write_state(self, state: DeviceState) -> None:
        """Write the device's state; after a power cut it is the old or the new one."""
        write_twice(self.path / "state.json", state.model_dump_json().encode())

    @contextmanager
    def only_agent(self) -> Iterator[None]:
        """Lock the folder for one agent.

        Raises
        ------
        DeviceError
            If another process has the lock.
        """
        lock = FileLock(self.path / "agent.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout as error:
            raise DeviceError(f"Another agent works on {self.path}: one folder is for one agent.") from error
        except OSError as error:
            raise DeviceError(f"Cannot use {self.path}: {error.strerror}.") from error
        try:
            yield
        finally:
            lock.release()


def init_device(path: Path, settings: DeviceSettings, root: Path) -> DeviceFolder:
    """Make the folder of a new device, whole or not at all.

    Parameters
    ----------
    path
        A path that does not exist, or an empty folder.
    root
        The coordinator's ``root.json``, from a source that the owner trusts.

    Raises
    ------
    DeviceError
        If the path exists, the root is not valid, or the disk refuses.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise DeviceError(f"{path} exists and is not empty: give a new folder.")
    trusted = _read(root)
    signer = CryptoSigner.generate_ed25519()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))  # for the owner's eyes alone
    except OSError as error:
        raise DeviceError(f"Cannot make {path}: {error.strerror}.") from error
    try:
        (new / "device.key").touch(mode=0o600)
        (new / "device.key").write_bytes(signer.private_bytes)
        (new / "device.pub").write_bytes(_public_pem(signer))
        (new / "root.json").write_bytes(trusted)
        (new / "settings.json").write_text(settings.model_dump_json(indent=2) + "\n", "utf-8")
        Floor(new / "floor").create()
        DeviceFolder(new).client()  # a root that is none is refused here
        sync_tree(new)
        new.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise DeviceError(f"Cannot make {path}: {error.strerror}.") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return DeviceFolder(path)


def _public_pem(signer: CryptoSigner) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

    public = load_pem_private_key(signer.private_bytes, None).public_key()
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DeviceError(f"Cannot read {file}: {error.strerror}.") from error


def _read_settings(file: Path) -> DeviceSettings:
    if not file.is_file():
        raise DeviceError(f"{file.parent} is no device's folder: make one with 'dlfd-fleet-device init'.")
    try:
        return DeviceSettings.model_validate_json(_read(file))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise DeviceError(f"{file}: {where}: {first['msg']}.") from error


def _read_key(file: Path) -> CryptoSigner:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        private = load_pem_private_key(_read(file), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise DeviceError(f"The key {file} is damaged: restore it, or make the device anew.") from error
    if not isinstance(private, Ed25519PrivateKey):
        raise DeviceError(f"The key {file} is not an ed25519 key: restore it, or make the device anew.")
    return CryptoSigner(private)
