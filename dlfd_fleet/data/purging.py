"""Delete image files with all their names and rows, and report what remains."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dlfd_fleet.data.image_files import Links, is_inside, names_of
from dlfd_fleet.data.manifest import Manifest, Row

_OUTSIDE = (
    'it is outside the image folder, and links are not followed: delete it yourself, or write "links": "follow" into '
    "site.json"
)
_AWAY = "the folder {} is missing or empty: mount its disk, or put a file into it if the image was deleted by hand"


@dataclass(frozen=True)
class PurgePlan:
    """The rows and files that a purge will delete.

    Attributes
    ----------
    rows
        The rows that were asked for, and every other row of the same files.
    files
        The files and the links to them, resolved, each with the SHA-256 of its content; None if it cannot be read.
    """

    rows: frozenset[Row]
    files: Mapping[Path, str | None]


@dataclass(frozen=True)
class Purge:
    """The result of a purge: what was deleted and what was not.

    Attributes
    ----------
    deleted
        Files that were deleted; links are not counted.
    kept
        Files and links that could not be deleted, with the reason.
    copies
        Other files under the image folder with the same content, each with its SHA-256, and what they are.
    unknown_names
        Number of hard links of the deleted files outside the image folder; their content still exists.
    stored
        A sentence about what a loader's storage still holds; empty if nothing.
    """

    deleted: int
    kept: Mapping[Path, str]
    copies: Mapping[Path, tuple[str, str]]
    unknown_names: int
    stored: str = ""


def plan_purge(manifest: Manifest, rows: Collection[Row], files: Collection[Path] = ()) -> PurgePlan:
    """Return all rows and files to delete with these: a file that has two rows is deleted with both.

    Parameters
    ----------
    files
        Resolved paths that an earlier purge could not delete.
    """
    folders = dict[Path, Path]()
    names = {row: names_of(manifest.root, row.image, folders) for row in manifest.rows}
    wanted = {*files, *(name for row in rows for name in names_of(manifest.root, row.image, folders))}
    gone = frozenset(row for row, own in names.items() if row in rows or not wanted.isdisjoint(own))
    going = sorted(wanted | {name for row in gone for name in names[row]})
    readable = (file for file in going if manifest.links == "follow" or is_inside(manifest.root, file))
    digests = {file: file_digest(file) for file in readable}
    return PurgePlan(gone, {file: digests.get(file) for file in going})


def delete_files(root: Path, plan: PurgePlan, links: Links) -> Purge:
    """Delete the files of a plan; an error with one file does not stop the others.

    A missing file is no error, unless no purge ever read it and its folder or the image folder is missing or empty: the
    disk may not be mounted.
    """
    if plan.files and _is_empty(root):
        reason = f"the image folder {root} is missing or empty: mount its disk, or put a file into it if that is right"
        return Purge(0, dict.fromkeys(plan.files, reason), {}, 0)
    found = {file: status for file in plan.files if (status := _status(file)) is not None}
    never_seen = {file for file, sha256 in plan.files.items() if sha256 is None and file not in found}
    away = {file for file in never_seen if _is_empty(file.parent)}
    kept, deleted = dict[Path, str](), 0
    for file in plan.files:
        refused = file in found and links == "refuse" and not is_inside(root, file)
        why = _OUTSIDE if refused else _delete(file) or (_AWAY.format(file.parent) if file in away else None)
        if why:
            kept[file] = why
        elif file in found:
            deleted += stat.S_ISREG(found[file].st_mode)
    gone = {file: status for file, status in found.items() if file not in kept and stat.S_ISREG(status.st_mode)}
    copies, linked = _copies(root, plan, gone)
    own = Counter((status.st_dev, status.st_ino) for status in found.values())
    names = {(status.st_dev, status.st_ino): status.st_nlink for status in gone.values()}
    return Purge(deleted, kept, copies, sum(count - own[key] - linked[key] for key, count in names.items()))


def file_digest(file: Path) -> str | None:
    """Return the SHA-256 of a file; None if it cannot be read."""
    try:
        with file.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError:
        return None


def _copies(
    root: Path, plan: PurgePlan, gone: Mapping[Path, os.stat_result]
) -> tuple[dict[Path, tuple[str, str]], Counter[tuple[int, int]]]:
    """Return other files under the image folder with the content of deleted ones, and how many are their hard links."""
    copies, linked = dict[Path, tuple[str, str]](), Counter[tuple[int, int]]()
    digests = {plan.files[file] for file in gone} - {None}
    sizes = {status.st_size for status in gone.values()}
    inodes = {(status.st_dev, status.st_ino) for status in gone.values() if status.st_nlink > 1}
    if not digests:
        return copies, linked
    for file, status in _files_under(root):
        if file in plan.files or status.st_size not in sizes:
            continue
        sha256 = file_digest(file)
        if sha256 is not None and sha256 in digests:
            key = (status.st_dev, status.st_ino)
            is_link = key in inodes
            linked[key] += is_link
            copies[file] = (
                sha256,
                "another name (hard link) of a purged image" if is_link else "a copy of a purged image",
            )
    return copies, linked


def _files_under(root: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for folder, _, names in os.walk(os.path.realpath(root)):
        for name in names:
            file = Path(folder, name)
            status = _status(file)
            if status is not None and stat.S_ISREG(status.st_mode):
                yield file, status


def _delete(file: Path) -> str | None:
    """Delete a file; return why it is still there, or None."""
    try:
        file.unlink()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return error.strerror or type(error).__name__
    return None


def _status(file: Path) -> os.stat_result | None:
    try:
        return os.lstat(file)
    except OSError:
        return None


def _is_empty(root: Path) -> bool:
    try:
        return next(os.scandir(root), None) is None
    except OSError:
        return True
