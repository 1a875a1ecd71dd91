"""Open a site's folder: its card, manifest, ledger and keys. Only the site's own processes use it."""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Self

import filelock
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from dlfd_fleet.components import Component
from dlfd_fleet.data import Links, Manifest, canonical, read_manifest, refuse_wrong_classes, returned_images
from dlfd_fleet.data.classes import too_few
from dlfd_fleet.data.decoded import DecodedRows
from dlfd_fleet.data.loaded import LoadedRows
from dlfd_fleet.data.manifest import site_name
from dlfd_fleet.exceptions import ConfigurationError, LedgerError
from dlfd_fleet.ledger.entries import ForgetRequest
from dlfd_fleet.ledger.ledger import Ledger
from dlfd_fleet.ledger.references import ReferenceFiles
from dlfd_fleet.ledger.states import DROPPED, FORGOTTEN, TO_PURGE
from dlfd_fleet.model_input import ModelInput
from dlfd_fleet.passwords import WHY_REFUSED, holds_password

CARD_FILE, LEDGER_FILE, KEY_FILE, FLEET_SECRET_FILE = "site.json", "ledger.db", "site.key", "fleet.secret"
HELD_MODEL_FILE = "held-model.safetensors"
LOG_FILE = "site.log"
_STORAGE_LOCK = "storage.lock"
_SHORTEST_SECRET = 16  # bytes
SHORTEST_ID = 8
"""Fewest digits of an id by which a request can be named."""
MOST_MARKS = 16
"""Most marks of earlier jobs that a site sends for one request."""


class SiteCard(BaseModel):
    """The content of ``site.json``: what the site is and where its rows are.

    Attributes
    ----------
    name
        Name of the site; only the site knows it.
    id
        Random id of the site for the coordinator, made with the folder.
    input
        Input of the fleet's models: shape, range, and how image files are converted.
    networks
        Factories of networks, with arguments, that this site builds if a message names them.
    multi_label
        Whether the classes are labels, several of which may apply to an image.
    classes
        Names of the classes in the order of the fleet.
    manifest, root
        Manifest and image folder, relative to the site's folder.
    links
        Images that are links out of the image folder: "refuse", or "follow"; then a purge also deletes the linked file.
    data
        The loader whose rows the manifest lists, and its arguments; without it the manifest lists image files.
    ledger
        A SQLite file under the site's folder, or the URL of a PostgreSQL database without a password (libpq takes it
        from ``PGPASSFILE`` or ``PGPASSWORD``).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, AfterValidator(site_name)]
    id: str = Field(default_factory=lambda: secrets.token_hex(4), pattern="^[0-9a-f]{8}$")
    input: ModelInput
    multi_label: bool = False
    classes: tuple[str, ...]
    manifest: Path = Path("manifest.csv")
    root: Path = Path()
    links: Links = "refuse"
    ledger: str = LEDGER_FILE
    networks: tuple[Component, ...] = ()
    data: Component | None = None

    @field_validator("classes")
    @classmethod
    def _one_name_each(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        multi_label = bool(info.data.get("multi_label"))
        if why := too_few(value, multi_label=multi_label):
            raise ValueError(why)
        try:
            refuse_wrong_classes(value, multi_label=multi_label)
        except ConfigurationError as error:
            raise ValueError(str(error).rstrip(".")) from error
        return value

    @field_validator("ledger")
    @classmethod
    def _no_password(cls, value: str) -> str:
        if holds_password(value):
            raise ValueError(WHY_REFUSED)
        return value

    def ledger_location(self, folder: Path) -> Path | str:
        """Return the location of the ledger of a site in this folder."""
        return self.ledger if "://" in self.ledger else folder / self.ledger


class Site:
    """An open site folder; close it, or use it as a context.

    Raises
    ------
    ConfigurationError
        If the folder is not a site's, or its card is not valid.
    LedgerError
        If its ledger cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.card = _read_card(folder / CARD_FILE)
        self.manifest_file = folder / self.card.manifest
        self.image_root = folder / self.card.root
        self.ledger = Ledger(self.card.ledger_location(folder), self._key)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.ledger.close()

    def manifest(self) -> Manifest:
        """Read the site's manifest; a :class:`~dlfd_fleet.exceptions.DataError` names a problem."""
        table = read_manifest(self.manifest_file, self.image_root, self.card.links, may_be_empty=True)
        return replace(table, loaded=self.loaded)

    @property
    def loaded(self) -> LoadedRows | None:
        """The site's loader; None if its rows are image files."""
        if self.card.data is None:
            return None
        return LoadedRows(
            self.card.data, self.card.input, self.card.classes, self.folder.absolute(), self.card.multi_label
        )

    @contextmanager
    def storage_lock(self) -> Iterator[None]:
        """Lock the loader's storage and rows for this process; the lock ends with the process."""
        with filelock.FileLock(self.folder / _STORAGE_LOCK):
            yield

    @property
    def decoded(self) -> DecodedRows:
        """The file of the site's decoded rows."""
        return DecodedRows(self.folder, self.card.input)

    @property
    def references(self) -> ReferenceFiles:
        """The stored answers of reference models."""
        return ReferenceFiles(self.folder)

    @property
    def own_answers(self) -> ReferenceFiles:
        """The stored answers of the model that an erasure began with: to images, and to changed copies of them."""
        return ReferenceFiles(self.folder, "own-answers")

    def purge_references(self) -> None:
        """Overwrite stored answers for purged images, and whether these people were trained on.

        Raises
        ------
        DataError
            If the disk refuses.
        """
        people = self.ledger.request_of_people(*TO_PURGE, *FORGOTTEN)
        for answers in (self.references, self.own_answers):
            answers.purge(self.ledger.tombstones(), people.keys())

    def usable_manifest(self) -> Manifest:
        """Read the manifest without images that were purged and came back, under any name."""
        manifest, tombstones = self.manifest(), self.ledger.tombstones()
        if not tombstones:
            return manifest
        returned = returned_images(manifest, tombstones)
        return replace(manifest, rows=tuple(row for row in manifest.rows if row not in returned))

    def drop_held_model(self) -> None:
        """Delete the held model, which may remember forgotten people."""
        for file in self.folder.glob(f"{HELD_MODEL_FILE}*"):  # and what was being written when a process was killed
            file.unlink(missing_ok=True)

    def raise_epoch(self, epoch: int) -> int:
        """Note a release and delete the held model; return the fleet's erasure epoch, which never falls."""
        if epoch > self.ledger.epoch():
            self.drop_held_model()  # first: whoever is killed before the epoch is written is told again
        return self.ledger.raise_epoch(epoch)

    def person_digest(self, identity: str) -> str:
        """Return the keyed digest of a name: HMAC-SHA-256 of its canonical form under the site's key."""
        return hmac.digest(self._key, canonical(identity).encode(), "sha256").hex()

    def fleet_pseudonym(self, identity: str, job: str) -> str | None:
        """Return a person's pseudonym in one job; None without the fleet's secret.

        It is HMAC-SHA-256 of the canonical identity and the job under a secret that the coordinator does not have. So
        the coordinator cannot test a guess or follow a person from job to job.
        """
        if self._fleet_secret is None:
            return None
        return hmac.digest(self._fleet_secret, f"{job}\n{canonical(identity)}".encode(), "sha256").hex()

    def job_request_id(self, request: str, job: str) -> str:
        """Return the id of a request for the coordinator in one job.

        It differs in each job, so nobody outside this site can follow a request from job to job.
        """
        return hmac.digest(self._key, f"\0request\0{job}\0{request}".encode(), "sha256").hex()[:16]

    def place_in_halves(self, identity: str, job: str, pair: int) -> bytes:
        """Return a secret sort key of a person for the halves of a job's reference models."""
        return hmac.digest(self._key, f"\0half\0{job}\0{pair}\0{canonical(identity)}".encode(), "sha256")

    def find_request(self, named: str) -> ForgetRequest:
        """Return a request by its id, the beginning of that, the id that it had in a job, or the person's name.

        For a person's name it is the valid request, or the last one.

        Raises
        ------
        LedgerError
            If there is no request, or more than one.
        """
        for event in self.ledger.history():
            if event.job and self.job_request_id(event.request, event.job) == named:
                return self.ledger.get(event.request)
        of_person = self.ledger.requests_of(self.person_digest(named))
        standing = [request for request in of_person if request.state not in DROPPED]
        found = {request.id: request for request in (standing or of_person)[-1:]}
        if len(named) >= SHORTEST_ID:
            found |= {request.id: request for request in self.ledger.requests() if request.id.startswith(named)}
        if not found:
            raise LedgerError(
                f"There is no request {named} in {self.ledger.name}, and nobody of that name has asked; "
                "see: dlfd-fleet forget list."
            )
        if len(found) > 1:
            raise LedgerError(f"'{named}' may be any of the requests {', '.join(sorted(found))}; write one of these.")
        return next(iter(found.values()))

    def job_marks(self, identity: str, job: str, taken_by: Sequence[str]) -> tuple[str, ...]:
        """Return marks of the jobs that a person's request was in; sites compare them in another job.

        They are keyed like :meth:`fleet_pseudonym`. There are always as many, filled up at random and shuffled.
        """
        if self._fleet_secret is None:
            return ()
        marks = [
            hmac.digest(self._fleet_secret, f"{job}\nhad asked in\n{taken}\n{canonical(identity)}".encode(), "sha256")
            for taken in taken_by[-MOST_MARKS:]
        ]
        marks += [secrets.token_bytes(32) for _ in range(MOST_MARKS - len(marks))]
        return tuple(sorted(mark.hex() for mark in marks))

    def gone(self, identities: Iterable[str]) -> frozenset[str]:
        """Return those of these people who ever asked to be forgotten; nobody may train on them."""
        asked = self.ledger.person_digests()
        return frozenset(identity for identity in set(identities) if self.person_digest(identity) in asked)

    def note_trained(self, identities: Iterable[str]) -> None:
        """Note that a model was trained on these people; they never count as unseen again."""
        self.ledger.note_trained({self.person_digest(identity) for identity in set(identities)})

    def trained(self, identities: Iterable[str]) -> frozenset[str]:
        """Return those of these people on whom a model is known to be trained."""
        digests = {identity: self.person_digest(identity) for identity in set(identities)}
        known = self.ledger.trained(set(digests.values()))
        return frozenset(identity for identity, digest in digests.items() if digest in known)

    @cached_property
    def _key(self) -> bytes:
        try:
            return bytes.fromhex((self.folder / KEY_FILE).read_text(encoding="ascii"))
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"The key {self.folder / KEY_FILE} cannot be read ({type(error).__name__}); restore it from a backup: "
                "without it nobody who was forgotten can be recognised."
            ) from error

    @cached_property
    def _fleet_secret(self) -> bytes | None:
        file = self.folder / FLEET_SECRET_FILE
        return read_secret(file) if file.exists() else None


def read_secret(file: Path) -> bytes:
    """Read a fleet's secret, at least 32 hexadecimal digits.

    Raises
    ------
    ConfigurationError
        If the file cannot be read or holds less.
    """
    try:
        secret = bytes.fromhex(file.read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"The fleet's secret {file} cannot be read ({type(error).__name__}); it holds hexadecimal digits, such as "
            "openssl rand -hex 32 makes."
        ) from error
    if len(secret) < _SHORTEST_SECRET:
        raise ConfigurationError(f"The fleet's secret {file} has {len(secret)} bytes, fewer than {_SHORTEST_SECRET}.")
    return secret


def create_site(folder: Path, card: SiteCard, fleet_secret: bytes | None = None) -> None:
    """Make a site's card, keys and empty ledger in a folder that holds its faces.

    Raises
    ------
    ConfigurationError
        If the folder is a site's already; with a new key it could not recognise forgotten people.
    """
    if (folder / CARD_FILE).exists():
        raise ConfigurationError(f"{folder} is a site's folder already; name another one.")
    folder.mkdir(parents=True, exist_ok=True)
    key = secrets.token_bytes(32)
    _write_secret(folder / KEY_FILE, key)
    if fleet_secret is not None:
        _write_secret(folder / FLEET_SECRET_FILE, fleet_secret)
    Ledger(card.ledger_location(folder), key, create=True).close()
    (folder / CARD_FILE).write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")


def _write_secret(file: Path, secret: bytes) -> None:
    file.touch(mode=0o600)
    file.write_text(secret.hex(), encoding="ascii")


def site_folders(state_folder: Path) -> list[Path]:
    """Return the folders of the simulated sites, in order.

    Raises
    ------
    ConfigurationError
        If there is none.
    """
    folder = state_folder / "sites"
    found = [path for path in folder.iterdir() if (path / CARD_FILE).exists()] if folder.is_dir() else []
    if not found:
        raise ConfigurationError(f"There are no sites in {folder}; make them with: dlfd-fleet data deal.")
    return sorted(found, key=lambda path: [int(part) if part.isdigit() else part for part in _parts(path.name)])


def _parts(name: str) -> list[str]:
    """Split a name into texts and numbers, so that site-10 comes after site-9."""
    return re.split(r"(\d+)", name)


def _read_card(file: Path) -> SiteCard:
    try:
        card = SiteCard.model_validate_json(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{file.parent} is no site's folder: {file.name}: {error.strerror}.") from error
    except (ValidationError, UnicodeDecodeError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        key = ".".join(map(str, first["loc"])) or "the whole file"
        raise ConfigurationError(f"{file}, '{key}': {first['msg']}.") from error
    if "id" not in card.model_fields_set:
        raise ConfigurationError(f"{file} has no 'id'; add 8 hexadecimal digits of the site's own, at random.")
    return card
