"""Decide what each image may be used for: training, forgetting, as unseen, or nothing.

Sites and ``dlfd-fleet unlearn`` use the same rule. A person who is trained on, by name or by an image with the same
bytes, does not count as unseen. Images of a person who asked, and their copies, are used only for forgetting.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from dlfd_fleet.data.identity import canonical
from dlfd_fleet.data.manifest import SPLITS, Manifest, Row
from dlfd_fleet.data.site_images import image_digest
from dlfd_fleet.exceptions import DataError


class Use(StrEnum):
    """The use of an image."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"
    FORGET = "forget"
    """The image was trained on and its person asked to be forgotten, or it is a copy of such an image."""
    NOTHING = ""


class LeftOut(StrEnum):
    """Why an image is not used for its split."""

    ASKED = "of people who asked to be forgotten"
    RETURNED = "with the bytes of images that were purged"
    COPIED = "with the bytes of images of people who asked to be forgotten"
    SAME_PERSON = "of people who are in another split, too"
    SAME_BYTES = "with the bytes of images of another split"
    TRAINED = "of people whom a model was trained on before they were in this split"


@dataclass(frozen=True, slots=True)
class ImageUse:
    """An image's use; if it is not that of its split, the reason and the row with the same person or bytes."""

    use: Use
    why: LeftOut | None = None
    other: Row | None = None


def whole_splits(rows: Sequence[Row]) -> tuple[str, ...]:
    """Return the split of each row: its own, or its person's, or ``train``."""
    known: dict[str, str] = {}
    for row in rows:
        if row.split and SPLITS.index(row.split) <= SPLITS.index(known.get(row.identity, SPLITS[-1])):
            known[row.identity] = row.split
    return tuple(row.split or known.get(row.identity, SPLITS[0]) for row in rows)


def with_whole_splits(manifest: Manifest) -> Manifest:
    """Return a manifest in which every row has a split, by the rule of :func:`whole_splits`."""
    rows = zip(manifest.rows, whole_splits(manifest.rows), strict=True)
    return replace(manifest, rows=tuple(replace(row, split=split) for row, split in rows))


def image_digests(manifest: Manifest) -> tuple[str | None, ...]:
    """Return the SHA-256 of each row's file; None where there is no file."""
    return tuple(image_digest(manifest, row) for row in manifest.rows)


def image_uses(
    rows: Sequence[Row],
    digests: Sequence[str | None],
    asked: Collection[str] = frozenset(),
    tombstones: Container[str] = frozenset(),
    trained: Collection[str] = frozenset(),
) -> tuple[ImageUse, ...]:
    """Return what each image may be used for.

    Parameters
    ----------
    rows
        Rows of one manifest.
    digests
        SHA-256 of each row's file.
    asked
        Everybody who asked to be forgotten, in any spelling.
    tombstones
        Tells whether a SHA-256 is that of a purged image.
    trained
        Everybody on whom a model was ever trained. They are not unseen, and if they ask there is something to forget.
    """
    people, members = ({canonical(identity) for identity in some} for some in (asked, trained))
    gone = [canonical(row.identity) in people for row in rows]
    written = whole_splits(rows)
    splits = [
        SPLITS[0] if canonical(row.identity) in members else split for row, split in zip(rows, written, strict=True)
    ]
    asked_for, forget = dict[str, Row](), set[str]()
    for row, digest, is_gone, split in zip(rows, digests, gone, splits, strict=True):
        if is_gone and digest is not None:
            asked_for.setdefault(digest, row)
            if split == "train":
                forget.add(digest)
    uses: list[ImageUse | None] = [None] * len(rows)
    seen_people, seen_bytes = dict[str, tuple[str, Row]](), dict[str, tuple[str, Row]]()
    # Who is in several splits is in the first: trained on, or seen by a gate.
    order = sorted(range(len(rows)), key=lambda number: (SPLITS.index(splits[number]), SPLITS.index(written[number])))
    for number in order:
        row, digest, split = rows[number], digests[number], splits[number]
        if digest in tombstones:
            uses[number] = ImageUse(Use.NOTHING, LeftOut.RETURNED)
        elif gone[number]:
            uses[number] = ImageUse(Use.FORGET if split == "train" else Use.NOTHING, LeftOut.ASKED)
        elif digest in asked_for:
            # Trained on under another name only: then this is the image of theirs that a model may remember.
            use = Use.FORGET if split == "train" and digest not in forget else Use.NOTHING
            uses[number] = ImageUse(use, LeftOut.COPIED, asked_for[digest])
        else:
            uses[number] = _of_split(split, row, digest, seen_people, seen_bytes)
            if split != written[number]:
                uses[number] = _of_moved(row, *seen_people[row.identity])
    return tuple(use or ImageUse(Use.NOTHING) for use in uses)


def of_who_asked(row: Row, use: ImageUse) -> Row:
    """Return a row under the name of the person who asked for its image to be forgotten, if it is another person."""
    return replace(row, identity=use.other.identity) if use.use is Use.FORGET and use.other else row


def refuse_leaks(manifest: Manifest) -> None:
    """Refuse people in two splits, and images whose bytes are in two splits.

    Raises
    ------
    DataError
        At the first one, naming both images.
    """
    rows = with_whole_splits(manifest).rows
    for row, use in zip(rows, image_uses(rows, image_digests(manifest)), strict=True):
        if use.other is not None:
            raise DataError(leak_sentence(row, use.other, use.why))


def leak_sentence(row: Row, other: Row, why: LeftOut | None) -> str:
    """Return a sentence: what two rows must not have in common, and what to do."""
    if why is LeftOut.SAME_PERSON:
        return (
            f"'{row.identity}' is in the split '{row.split}' with {row.image} and in '{other.split}' with "
            f"{other.image}; use one split a person."
        )
    same = f"{row.image} of '{row.identity}' has the same bytes as {other.image} of '{other.identity}'"
    if why is LeftOut.COPIED:
        return f"{same}, who asked to be forgotten: it is not used, and will be purged with that image."
    return (
        f"{same}, in the split '{row.split}' here and in '{other.split}' there; remove one of the two, or put both "
        "people in one split."
    )


def _of_moved(row: Row, _: str, first: Row) -> ImageUse:
    """Use an image for nothing whose person was trained on and is in another split now."""
    if first.split in ("", SPLITS[0]) and first is not row:
        return ImageUse(Use.NOTHING, LeftOut.SAME_PERSON, first)
    return ImageUse(Use.NOTHING, LeftOut.TRAINED)


def _of_split(
    split: str,
    row: Row,
    digest: str | None,
    seen_people: dict[str, tuple[str, Row]],
    seen_bytes: dict[str, tuple[str, Row]],
) -> ImageUse:
    """Use an image for its split, unless its person or its bytes are in an earlier one."""
    first, other = seen_people.setdefault(row.identity, (split, row))
    if first != split:
        return ImageUse(Use.NOTHING, LeftOut.SAME_PERSON, other)
    if digest is not None:
        first, other = seen_bytes.setdefault(digest, (split, row))
        if first != split:
            return ImageUse(Use.NOTHING, LeftOut.SAME_BYTES, other)
    return ImageUse(Use(split))
