"""The verified metadata of a repository, as its writer works on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from tuf.api.exceptions import RepositoryError, UnsignedMetadataError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from dlfd_fleet.device.contract import ROLLOUT_ROLE
from dlfd_fleet.exceptions import DeliveryError

S = TypeVar("S", Timestamp, Snapshot, Targets)
RoleName = Literal["root", "targets", "snapshot", "timestamp", "rollout"]
ROLES: tuple[RoleName, ...] = ("root", "targets", "snapshot", "timestamp", "rollout")
OFFLINE: tuple[RoleName, ...] = ("root", "targets")
"""Roles whose keys may be kept away from the coordinator; those of the others sign every day."""


@dataclass
class Contents:
    """The verified metadata of a repository; change what is ``signed`` and commit it."""

    root: Metadata[Root]
    targets: Metadata[Targets]
    rollout: Metadata[Targets]
    snapshot: Metadata[Snapshot]
    timestamp: Metadata[Timestamp]

    def of(self, role: RoleName) -> Metadata[Any]:
        """Return a role's metadata."""
        return cast("Metadata[Any]", getattr(self, role))

    def target_files(self) -> dict[str, TargetFile]:
        """Return every target that is listed."""
        return self.targets.signed.targets | self.rollout.signed.targets


def as_role(name: str) -> RoleName:
    """Return a role by its name, or raise a :class:`DeliveryError` that names them all."""
    if name not in ROLES:
        raise DeliveryError(f"There is no role '{name}'; there are {', '.join(ROLES)}.")
    return name


def read_contents(served: Path, trusted: bytes, mended: RoleName | None = None) -> Contents:
    """Read and verify everything, from the trusted root on.

    Parameters
    ----------
    served
        Folder of ``metadata/``.
    trusted
        The root that is trusted; newer ones that it leads to are followed.
    mended
        A role that is about to get new keys: it may be signed as the root before the newest demands. So it is when
        a process died while lost keys were replaced.

    Raises
    ------
    RepositoryError, KeyError
        If something is damaged, or was not signed by the keys of the repository.
    OSError
        If something is missing.
    """
    folder = served / "metadata"
    roots = _roots(folder, Metadata[Root].from_bytes(trusted))
    newest = [roots[-1].signed]
    judges = dict.fromkeys(ROLES, newest)
    if mended is not None:
        judges[mended] = [root.signed for root in roots[-2:]]
    timestamp = _verified(Timestamp, folder, "timestamp", None, judges["timestamp"])
    snapshot = _verified(Snapshot, folder, "snapshot", timestamp.signed.snapshot_meta, judges["snapshot"])
    meta = snapshot.signed.meta
    targets = _verified(Targets, folder, "targets", meta["targets.json"], judges["targets"])
    rollout = _verified(Targets, folder, "rollout", meta[f"{ROLLOUT_ROLE}.json"], [targets.signed])
    return Contents(roots[-1], targets, rollout, snapshot, timestamp)


def _roots(folder: Path, root: Metadata[Root]) -> list[Metadata[Root]]:
    root.signed.verify_delegate("root", root.signed_bytes, root.signatures)
    roots = [root]
    while (file := folder / f"{roots[-1].signed.version + 1}.root.json").exists():
        new = Metadata[Root].from_bytes(file.read_bytes())
        for judge in (roots[-1].signed, new.signed):
            judge.verify_delegate("root", new.signed_bytes, new.signatures)
        if new.signed.version != roots[-1].signed.version + 1:
            raise RepositoryError(f"{file.name} has version {new.signed.version}")
        roots.append(new)
    return roots


def _verified(
    kind: type[S], folder: Path, role: RoleName, meta: MetaFile | None, judges: Sequence[Root | Targets]
) -> Metadata[S]:
    """Read a role's file; one judge must find it well signed."""
    file = folder / (f"{meta.version}.{role}.json" if meta else f"{role}.json")
    content = file.read_bytes()
    if meta:
        meta.verify_length_and_hashes(content)
    metadata = Metadata[S].from_bytes(content)
    if not isinstance(metadata.signed, kind):
        raise RepositoryError(f"{file.name} is of another role")
    results = [judge.get_verification_result(role, metadata.signed_bytes, metadata.signatures) for judge in judges]
    if not any(result.verified for result in results):
        raise UnsignedMetadataError(f"{file.name} was signed by {len(results[-1].signed)} of its keys")
    return metadata
