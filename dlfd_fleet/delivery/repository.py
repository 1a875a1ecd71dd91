"""Write and read the signed TUF repository of models that devices may run.

Any static file server can serve its folder, which has only ``metadata/`` and ``targets/``. ``timestamp.json`` is
replaced last. So if a writer dies, devices see the state before or after the change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from pathlib import Path

import filelock
from securesystemslib.signer import Signer
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from dlfd_fleet.delivery.contents import OFFLINE, ROLES, Contents, RoleName, read_contents
from dlfd_fleet.delivery.files import sweep, write_whole
from dlfd_fleet.delivery.keys import KeyRing
from dlfd_fleet.device.contract import ROLLOUT_ROLE
from dlfd_fleet.exceptions import DeliveryError
from dlfd_fleet.settings import DeliverySettings

TRUSTED_ROOT = "root.json"
"""The trusted root, beside the repository, from which everything is verified here and on devices."""
_BELOW_SNAPSHOT: tuple[RoleName, ...] = ("targets", "rollout")
_HASHES = ["sha256"]


def now_utc() -> datetime:
    """Return the time."""
    return datetime.now(UTC)


class Repository:
    """One repository and the available keys.

    Parameters
    ----------
    folder
        Folder of the delivery: ``repository/`` is served, ``root.json`` is trusted.
    keys
        Private keys; reading needs none.
    settings
        Expiries and thresholds.
    clock
        Returns the time.
    """

    def __init__(
        self, folder: Path, keys: KeyRing, settings: DeliverySettings, clock: Callable[[], datetime] = now_utc
    ) -> None:
        self.folder = folder
        self.keys = keys
        self.served = folder / "repository"
        self._settings = settings
        self._clock = clock

    # ------------------------------------------------------------------ making and reading

    def create(self, key_folder: Path) -> None:
        """Make an empty repository and all its keys.

        Raises
        ------
        DeliveryError
            If there is one already, or the disk refuses.
        """
        if (self.folder / TRUSTED_ROOT).exists():
            raise DeliveryError(f"{self.folder} holds a repository already; its keys are changed with `rotate`.")
        settings = self._settings
        root = Root()
        counts = {"root": settings.root_keys, "targets": settings.targets_keys}
        for role in ("root", "targets", "snapshot", "timestamp"):
            for _ in range(counts.get(role, 1)):
                root.add_key(self.keys.make(role, key_folder).public_key, role)
        root.roles["root"].threshold = settings.root_threshold
        root.roles["targets"].threshold = settings.targets_threshold
        key = self.keys.make(ROLLOUT_ROLE, key_folder).public_key
        # Terminating, and of one folder: this key, which is always online, can say nothing of models.
        role_of_rollouts = DelegatedRole(ROLLOUT_ROLE, [key.keyid], 1, True, paths=[f"{ROLLOUT_ROLE}/*"])
        targets = Targets(delegations=Delegations({key.keyid: key}, {ROLLOUT_ROLE: role_of_rollouts}))
        contents = Contents(
            Metadata(root),
            Metadata(targets),
            Metadata(Targets()),
            Metadata(Snapshot(meta={})),
            Metadata(Timestamp()),
        )
        # New metadata begin one version back, for a commit counts on.
        for name in ROLES:
            contents.of(name).signed.version = 0
        with self.lock():
            self._write_root(contents.root, root)
            self.commit(contents, ("targets", "rollout"))
            write_whole(self.folder / TRUSTED_ROOT, contents.root.to_bytes())

    def read(self, mended: RoleName | None = None) -> Contents:
        """Read and verify everything from the trusted root, so that only our own state is ever changed.

        Parameters
        ----------
        mended
            A role that will get new keys.

        Raises
        ------
        DeliveryError
            If there is no repository, or it was tampered with.
        """
        file = self.folder / TRUSTED_ROOT
        if not file.exists():
            raise DeliveryError(f"There is no repository in {self.folder}; make one with `dlfd-fleet delivery init`.")
        try:
            return read_contents(self.served, file.read_bytes(), mended)
        except (RepositoryError, KeyError) as error:
            raise DeliveryError(
                f"The repository in {self.served} is damaged or was tampered with ({error}): restore it from a copy."
            ) from error
        except OSError as error:
            raise DeliveryError(f"The repository in {self.served} cannot be read: {error}.") from error

    @contextmanager
    def lock(self, patience: float = 30.0) -> Iterator[None]:
        """Lock the repository for one writer; the lock ends with the process."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(self.folder / "writer.lock", timeout=patience):
                yield
        except filelock.Timeout as error:
            raise DeliveryError(f"Another process writes the repository in {self.folder}; try again.") from error
        except OSError as error:
            raise DeliveryError(f"The repository in {self.folder} cannot be written: {error}.") from error

    # ------------------------------------------------------------------ changing

    def store(self, name: str, source: Path | bytes) -> TargetFile:
        """Store a target's bytes for devices, and return the data to sign."""
        if isinstance(source, bytes):
            target = TargetFile.from_data(name, source, _HASHES)
        else:
            target = TargetFile.from_file(name, str(source), _HASHES)
        file = self.served / "targets" / target.get_prefixed_paths()[0]
        write_whole(file, source)
        return target

    def commit(
        self,
        contents: Contents,
        changed: Iterable[RoleName] = (),
        roots: Sequence[Root] = (),
    ) -> None:
        """Sign changed metadata, and those above them, with new versions; write the timestamp last.

        Call it under :meth:`lock`.

        Parameters
        ----------
        contents
            From :meth:`read`, and changed.
        changed
            Changed roles among targets, rollout and snapshot; snapshot and timestamp are always signed.
        roots
            Roots that must accept the signatures; two while keys change.

        Raises
        ------
        DeliveryError
            If a key is missing. Nothing is written then.
        """
        changed = set(changed)
        order: list[RoleName] = [role for role in (*_BELOW_SNAPSHOT, "snapshot") if role in changed]
        order += ["timestamp"] if "snapshot" in order or not changed else ["snapshot", "timestamp"]
        signers = {role: self._signers(role, contents, roots) for role in order}
        for role in order:
            metadata = contents.of(role)
            metadata.signed.version += 1
            metadata.signed.expires = self._expiry(role)
            metadata.signatures.clear()
            for signer in signers[role]:
                metadata.sign(signer, append=True)
            content = metadata.to_bytes()
            version = metadata.signed.version
            prefix = "" if role == "timestamp" else f"{version}."
            write_whole(self.served / "metadata" / f"{prefix}{role}.json", content)
            if role == "snapshot":
                contents.timestamp.signed.snapshot_meta = MetaFile.from_data(version, content, _HASHES)
            elif role in _BELOW_SNAPSHOT:
                contents.snapshot.signed.meta[f"{role}.json"] = MetaFile.from_data(version, content, _HASHES)
        sweep(self.served, contents)

    def refresh(self, *, only_due: bool = False) -> list[str]:
        """Renew signatures that would expire, with the available keys.

        Parameters
        ----------
        only_due
            Whether to renew the timestamp only after half of its life.

        Returns
        -------
        list of str
            A sentence for each role that is due but whose keys are missing.
        """
        with self.lock():
            contents = self.read()
            due = [role for role in ROLES if self._is_due(contents.of(role).signed, role)]
            left = []
            for role in OFFLINE:
                if role in due and not self.keys.can_sign(role, contents.root.signed):
                    expires = contents.of(role).signed.expires
                    left.append(f"'{role}' expires on {expires:%Y-%m-%d}: run `refresh` with its keys before.")
                    due.remove(role)
            if only_due and not due:
                return left
            if "root" in due:
                self._write_root(contents.root, contents.root.signed)
                self._trust(contents.root)
            self.commit(contents, [role for role in due if role in (*_BELOW_SNAPSHOT, "snapshot")])
        return left

    def rotate(self, role: RoleName, key_folder: Path) -> None:
        """Replace all keys of a role.

        Metadata are signed by old and new keys before the root names the new ones, so devices accept every state in
        between. If the old keys are lost, the root is changed first.

        Raises
        ------
        DeliveryError
            If keys of the delegating role are missing.
        """
        with self.lock():
            contents = self.read(mended=role)
            old = contents.root.signed
            self.keys.signers("targets" if role == ROLLOUT_ROLE else "root", old)  # before any new key is written
            if role == ROLLOUT_ROLE:
                self._replace_keys(contents.targets.signed, role, key_folder)
                self.commit(contents, ("targets", "rollout"))
                return
            new = deepcopy(old)
            self._replace_keys(new, role, key_folder)
            changed: tuple[RoleName, ...] = (role,) if role in ("targets", "snapshot") else ()
            if role == "root":
                self._write_root(contents.root, new)
            elif self.keys.can_sign(role, old):
                self.commit(contents, changed, roots=(old, new))
                self._write_root(contents.root, new)
            else:
                self._write_root(contents.root, new)
                self.commit(contents, changed)
            self._trust(contents.root)

    def _replace_keys(self, delegator: Root | Targets, role: RoleName, key_folder: Path) -> None:
        old = list(delegator.get_delegated_role(role).keyids)
        for keyid in old:
            delegator.revoke_key(keyid, role)
        for _ in old:
            delegator.add_key(self.keys.make(role, key_folder).public_key, role)

    # ------------------------------------------------------------------ files

    def _signers(self, role: RoleName, contents: Contents, roots: Sequence[Root]) -> Sequence[Signer]:
        if role == ROLLOUT_ROLE:
            return self.keys.signers(role, contents.targets.signed)
        return self.keys.signers(role, *(roots or (contents.root.signed,)))

    def _write_root(self, metadata: Metadata[Root], new: Root) -> None:
        """Write the next root, signed as the last root and the new one require."""
        signers = self.keys.signers("root", metadata.signed, new)
        new.version = metadata.signed.version + 1
        new.expires = self._expiry("root")
        metadata.signed = new
        metadata.signatures.clear()
        for signer in signers:
            metadata.sign(signer, append=True)
        write_whole(self.served / "metadata" / f"{new.version}.root.json", metadata.to_bytes())

    def _trust(self, root: Metadata[Root]) -> None:
        """Trust this root from now on, here and for new devices, because keys of older roots may be lost."""
        write_whole(self.folder / TRUSTED_ROOT, root.to_bytes())

    def _expiry(self, role: RoleName) -> datetime:
        return self._clock() + timedelta(days=self._days(role))

    def _is_due(self, signed: Signed, role: RoleName) -> bool:
        return signed.expires - self._clock() < timedelta(days=self._days(role)) / 2

    def _days(self, role: RoleName) -> float:
        settings = self._settings
        return {
            "root": settings.root_days,
            "targets": settings.targets_days,
            "timestamp": settings.timestamp_days,
        }.get(role, settings.snapshot_days)
