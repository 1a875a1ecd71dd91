"""Find all problems of a data set at once, each with its row."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dlfd_fleet.data.classes import labels_in, listed
from dlfd_fleet.data.identity import canonical, told_apart, without_typography
from dlfd_fleet.data.image_files import Links, image_file
from dlfd_fleet.data.manifest import cell_problems, read_cells
from dlfd_fleet.exceptions import DataError, ImageError
from dlfd_fleet.images import read_pixels
from dlfd_fleet.model_input import image_input
from dlfd_fleet.progress import ProgressDisplay

_ANY_INPUT = image_input(32)
_MANY_ROWS = 10  # of fewer, each is named


@dataclass(frozen=True, order=True)
class Problem:
    """A problem and its row; the header is row 1."""

    row: int
    column: str
    sentence: str
    notice: bool = False
    """Whether it is only a notice, such as spellings that are read as one name."""


def check_manifest(
    file: Path,
    root: Path | None,
    classes: Collection[str] | None,
    progress: ProgressDisplay,
    links: Links = "refuse",
    *,
    multi_label: bool = False,
) -> list[Problem]:
    """Return every problem of a manifest and of its images, by row.

    Parameters
    ----------
    root
        Folder that image paths start from. Default: the manifest's folder.
    classes
        Allowed labels. Default: any.
    links
        Whether images may be links that leave the folder.
    multi_label
        Whether a cell may hold several labels.

    Raises
    ------
    DataError
        If the table itself cannot be read, or none of its many images is there.
    """
    folder = (root or file.parent).absolute()
    rows = list(read_cells(file, folder))
    if not rows:
        return [Problem(1, "image", "no rows follow the header; list at least one image")]
    if not folder.is_dir():
        raise DataError(f"There is no image folder {folder}; name the right one with --root.")
    if len(rows) >= _MANY_ROWS and not any(_is_there(folder, cells["image"]) for _, cells in rows):
        raise DataError(f"None of the {len(rows)} images of {file} is in {folder}; name their folder with --root.")
    problems = []
    images: dict[str, int] = {}
    contents: dict[str, tuple[int, str]] = {}
    splits: dict[str, tuple[int, str]] = {}
    spelled: dict[tuple[str, str], dict[str, int]] = {}
    known = None if classes is None else {canonical(name) for name in classes}
    with progress.phase(f"Checking {len(rows)} images", len(rows)) as advance:
        for number, cells in rows:
            own = [Problem(number, column, sentence) for column, sentence in cell_problems(cells)]
            if not any(problem.column == "label" for problem in own):
                own += _label_problems(number, cells, classes, known, multi_label=multi_label)
            own += _person_problems(number, cells, splits) + _spelling_notices(number, cells, spelled)
            if not any(problem.column == "image" for problem in own):
                own += _link_problems(number, cells["image"], folder, links) or _image_problems(
                    number, cells, folder, images, contents
                )
            problems += own
            advance()
    return sorted(problems)


def _is_there(folder: Path, image: str) -> bool:
    try:
        return bool(image) and (folder / image).exists()
    except (OSError, ValueError):  # no name of a file
        return False


def _label_problems(
    number: int,
    cells: Mapping[str, str],
    classes: Collection[str] | None,
    known: Collection[str] | None,
    *,
    multi_label: bool,
) -> list[Problem]:
    try:
        names = labels_in(cells["label"], multi_label=multi_label)
    except DataError as error:
        return [Problem(number, "label", str(error).removesuffix("."))]
    unknown = next((name for name in names if known is not None and canonical(name) not in known), None)
    if unknown is None or classes is None:
        return []
    return [Problem(number, "label", f"'{unknown}' is no class; the classes are {listed(sorted(classes))}")]


def _person_problems(number: int, cells: Mapping[str, str], splits: dict[str, tuple[int, str]]) -> list[Problem]:
    identity, split = canonical(cells["identity"]), cells.get("split", "")
    if not identity:
        return []
    first, known = splits.setdefault(identity, (number, split))
    if known == split:
        return []
    here, there = (f"in split '{name}'" if name else "in no split" for name in (split, known))
    return [Problem(number, "split", f"the person is {here} here and {there} in row {first}; use one split")]


def _spelling_notices(
    number: int, cells: Mapping[str, str], spelled: dict[tuple[str, str], dict[str, int]]
) -> list[Problem]:
    """Name each further spelling of a person or a class once: two people with such names would be one here."""
    notices = []
    for column, kind in (("identity", "person"), ("label", "class")):
        name = cells[column]
        rows = spelled.setdefault((column, canonical(name)), {})
        if rows and name not in rows:
            first, row = next(iter(rows.items()))
            ours, theirs = told_apart((name, first))
            sentence = (
                f"{ours} is read as {theirs} of row {row}: one {kind}; if they are two, give them different names"
            )
            notices.append(Problem(number, column, sentence, notice=True))
        elif not rows:
            notices += _nearly_alike(number, column, name, kind, spelled)
        rows.setdefault(name, number)
    return notices


def _nearly_alike(
    number: int, column: str, name: str, kind: str, spelled: dict[tuple[str, str], dict[str, int]]
) -> list[Problem]:
    """Name a new person or class whose name differs from an earlier one by accents, dashes or apostrophes alone."""
    before = spelled.setdefault((f"{column}, nearly", without_typography(name)), {})
    first = next(iter(before.items()), None)
    before.setdefault(name, number)
    if first is None:
        return []
    ours, theirs = told_apart((name, first[0]))
    sentence = f"{ours} is another {kind} than {theirs} of row {first[1]}; if they are one, spell the name alike"
    return [Problem(number, column, sentence, notice=True)]


def _link_problems(number: int, name: str, folder: Path, links: Links) -> list[Problem]:
    try:
        image_file(folder.absolute(), name, links)
    except DataError as error:
        return [Problem(number, "image", str(error).removesuffix("."))]
    return []


def _image_problems(
    number: int,
    cells: Mapping[str, str],
    folder: Path,
    images: dict[str, int],
    contents: dict[str, tuple[int, str]],
) -> list[Problem]:
    name, identity = cells["image"], canonical(cells["identity"])
    first = images.setdefault(str(PurePosixPath(name)), number)
    if first != number:
        return [Problem(number, "image", f"'{name}' is listed in row {first} already; remove one of the rows")]
    file = folder / name
    try:
        read_pixels(file, _ANY_INPUT)
    except ImageError as error:
        missing = isinstance(error.__cause__, FileNotFoundError)
        return [Problem(number, "image", f"there is no file {file}" if missing else f"{file}: {error.reason}")]
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    row, person = contents.setdefault(digest, (number, identity))
    if person != identity:
        return [Problem(number, "image", f"'{name}' is the same image as row {row} under another person")]
    return []
