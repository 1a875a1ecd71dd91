"""Decide what a site may use each image for, and report remarks for its operator."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain

from dlfd_fleet.data import ImageUse, LeftOut, Manifest, Row, Use, canonical, image_uses, labels_in
from dlfd_fleet.data.identity import told_apart
from dlfd_fleet.data.manifest import SPLITS
from dlfd_fleet.data.uses import leak_sentence, with_whole_splits
from dlfd_fleet.ledger.entries import ForgetRequest
from dlfd_fleet.ledger.site import Site

FEWEST_TO_TRAIN = 2
"""Fewest images to train on; batch norm cannot train on one."""
_MOST_NAMED = 10


def site_uses(site: Site, rows: Sequence[Row], digests: Sequence[str | None]) -> tuple[ImageUse, ...]:
    """Return the current use of each image, given the SHA-256 of each row's file."""
    asked = site.gone({row.identity for row in rows})
    trained = site.trained({row.identity for row in rows if row.split not in ("", SPLITS[0])})
    return image_uses(rows, digests, asked, site.ledger.tombstones(), trained)


def note_trained(site: Site, rows: Sequence[Row], uses: Sequence[ImageUse]) -> None:
    """Note on whom a site trains or has trained, so that they never count as unseen."""
    site.note_trained(row.identity for row, use in zip(rows, uses, strict=True) if use.use in (Use.TRAIN, Use.FORGET))


def remarks(manifest: Manifest, uses: Sequence[ImageUse], *, multi_label: bool = False) -> tuple[str, ...]:
    """Return sentences about the manifest for the site's operator."""
    return (
        *_of_the_table(manifest),
        *_of_clashes(manifest, uses),
        *_of_moved_people(manifest, uses),
        *_of_training(manifest, uses, multi_label=multi_label),
    )


def what_a_request_means(site: Site, request: ForgetRequest) -> tuple[str, ...]:
    """Return sentences: how many images a new request covers, and what is left to train on."""
    manifest = site.manifest()
    uses = site_uses(site, manifest.rows, [None] * len(manifest.rows))
    person = canonical(request.identity or "")
    own = Counter(use.use for row, use in zip(manifest.rows, uses, strict=True) if canonical(row.identity) == person)
    taken = f"The request is about {own.total()} images, {own[Use.FORGET]} of them trained on here."
    return (taken, *_of_training(manifest, uses, multi_label=site.card.multi_label))


def _of_the_table(manifest: Manifest) -> Iterator[str]:
    for names in manifest.spellings():
        yield f"These spellings are read as one name: {', '.join(told_apart(names))}."
    unsaid = sum(not row.split for row in manifest.rows)
    if unsaid:
        yield f"{unsaid} images have no split; each gets its person's split, or 'train' if the person has none."


def _of_clashes(manifest: Manifest, uses: Sequence[ImageUse]) -> Iterator[str]:
    rows = with_whole_splits(manifest).rows
    clashes = [(row, use.other, use.why) for row, use in zip(rows, uses, strict=True) if use.other is not None]
    for row, other, why in clashes[:_MOST_NAMED]:
        yield leak_sentence(row, other, why)
    if len(clashes) > _MOST_NAMED:
        more = len(clashes) - _MOST_NAMED
        yield f"{more} more images are left out for such reasons; dlfd-fleet data check names them."


def _of_moved_people(manifest: Manifest, uses: Sequence[ImageUse]) -> Iterator[str]:
    moved = sorted({row.identity for row, use in zip(manifest.rows, uses, strict=True) if use.why is LeftOut.TRAINED})
    if moved:
        names = ", ".join(f"'{name}'" for name in moved[:_MOST_NAMED]) + (", ..." if len(moved) > _MOST_NAMED else "")
        yield (
            f"{len(moved)} people of the splits validation and test were trained on before, so they are not unseen and "
            f"their images are left out of every audit: {names}."
        )


def _of_training(manifest: Manifest, uses: Sequence[ImageUse], *, multi_label: bool) -> Iterator[str]:
    kept, leaving = (
        [labels_in(row.label, multi_label=multi_label) for row, use in pairs if use.use is part]
        for part, pairs in ((part, zip(manifest.rows, uses, strict=True)) for part in (Use.TRAIN, Use.FORGET))
    )
    if len(kept) < FEWEST_TO_TRAIN:
        yield (
            f"{len(kept)} images are left to train on: this site takes part in audits, and other sites do the "
            "unlearning; add people to train on, or retire the site."
        )
        return
    lost = sorted(set(chain.from_iterable(leaving)) - set(chain.from_iterable(kept)))
    for label in lost[:_MOST_NAMED]:
        yield f"No image of the class '{label}' is left to train on here."
    if len(lost) > _MOST_NAMED:
        yield f"Nor of {len(lost) - _MOST_NAMED} more classes."
