"""Read the rows of a loader: check them, convert them to inputs, and name them by their content.

A loader is a callable ``package.module:callable`` that returns a :class:`~dlfd_fleet.data.people.PersonDataset`. It is
called with the arguments in ``site.json``. If it has a parameter ``site_folder``, it also gets the site's folder.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from dlfd_fleet.answers import NO_LABEL, SEPARATOR
from dlfd_fleet.components import Component
from dlfd_fleet.data.classes import unknown_label
from dlfd_fleet.data.identity import canonical
from dlfd_fleet.data.manifest import Row, cell_problems
from dlfd_fleet.data.people import PersonDataset
from dlfd_fleet.exceptions import DataError, ImageError
from dlfd_fleet.images import pixels_of
from dlfd_fleet.model_input import ModelInput

_KEY = re.compile(r"row-(\d+)-([0-9a-f]{64})")
_PIXELS = 255.0


def key_of(number: int, digest: str) -> str:
    """Return the key of a loader's row in a manifest: its number when the site was made, and its SHA-256."""
    return f"row-{number:06d}-{digest}"


def digest_of_key(key: str) -> str | None:
    """Return the SHA-256 in a row's key; None if it is no key."""
    found = _KEY.fullmatch(key)
    return found[2] if found else None


def number_of_key(key: str) -> int:
    """Return the number in a row's key; -1 if it is no key."""
    found = _KEY.fullmatch(key)
    return int(found[1]) if found else -1


@dataclass(frozen=True)
class LoadedRow:
    """One row of a loader: its decoded input, its SHA-256, and its manifest row."""

    content: NDArray[Any]
    digest: str
    row: Row


@dataclass(frozen=True)
class LoadedRows:
    """A loader with the input and classes that its rows must fit.

    Attributes
    ----------
    loader
        The callable and its arguments.
    model_input
        What the models take.
    classes
        Allowed labels. If empty, those of the loader.
    folder
        The site's folder, for a loader that takes it.
    multi_label
        Whether rows have labels: names as in a manifest, or 0 and 1 for each label.
    """

    loader: Component
    model_input: ModelInput
    classes: tuple[str, ...] = ()
    folder: Path | None = None
    multi_label: bool = False

    def __str__(self) -> str:
        return f"the loader {self.loader.name}"

    def open(self, *, may_be_empty: bool = False) -> PersonDataset:
        """Call the loader.

        Raises
        ------
        DataError
            If it cannot be imported, fails, or returns no data set with a person for each row.
        """
        try:
            function = self.loader.resolve()
        except ImportError as error:
            raise DataError(
                f"{self._sentence()} cannot be imported ({error}); install its package, or correct its name."
            ) from error
        given = dict[str, Any](self.loader.arguments)
        try:
            if self.folder is not None and "site_folder" in inspect.signature(function).parameters:
                given["site_folder"] = self.folder
            found = function(**given)
        except DataError:
            raise
        except Exception as error:  # whatever a user's own code raises
            raise DataError(f"{self._sentence()} failed: {type(error).__name__}: {error}.") from error
        return self._checked(found, may_be_empty=may_be_empty)

    def rows(self, *, may_be_empty: bool = False) -> Iterator[LoadedRow]:
        """Yield every row, in order and in bounded memory.

        Raises
        ------
        DataError
            At the first row that cannot be used.
        """
        yield from self._rows(self.open(may_be_empty=may_be_empty))

    def _rows(self, opened: PersonDataset) -> Iterator[LoadedRow]:
        for number in range(len(opened.dataset)):
            try:
                item = opened.dataset[number]
                given, label = self._parts(item, opened)
            except (DataError, ImageError):
                raise
            except Exception as error:  # whatever a user's own code raises
                raise self._wrong(number, f"it cannot be read ({type(error).__name__}: {error})") from error
            content, person = self._input(number, given), str(opened.people[number])
            digest = _digest(content, person, self.model_input)
            split = "" if opened.splits is None else str(opened.splits[number])
            row = Row(key_of(number, digest), person, self._label(number, label, opened), split=split)
            cells = {"image": row.image, "identity": row.identity, "label": row.label, "split": row.split}
            for column, sentence in cell_problems(cells):
                raise self._wrong(number, f"{column}: {sentence}")
            yield LoadedRow(content, digest, row)

    def find(self, rows: Iterable[Row]) -> Iterator[tuple[str, NDArray[Any]]]:
        """Yield the contents of some rows of a manifest, each once, wherever the loader has them now.

        Raises
        ------
        DataError
            If the loader no longer has one of them, or a row cannot be used.
        """
        wanted = {digest_of_key(row.image): row.image for row in rows}
        for loaded in self.rows(may_be_empty=True) if wanted else ():
            if wanted.pop(loaded.digest, None):
                yield loaded.digest, loaded.content
        if wanted:
            raise DataError(
                f"{self._sentence()} has {len(wanted)} rows of the site's manifest no more, the first of them "
                f"{next(iter(wanted.values()))}; a loader must give the same content each time, without augmentation."
            )

    def delete(self, people: Callable[[str], bool], digests: Container[str] = (), *, others: bool) -> tuple[int, str]:
        """Delete rows from the loader's own storage; return how many are still there, and why.

        Parameters
        ----------
        people, digests
            People whose rows are deleted, and contents that are deleted for anybody.
        others
            Whether the site has rows of others. If so, a storage without rows counts as not answering.

        Raises
        ------
        DataError
            If the loader does not answer.
        """
        opened = self.open(may_be_empty=not others)
        if not (indices := self._indices(opened, people, digests)):
            return 0, ""
        if opened.delete is None:
            return len(indices), "it has no delete: delete them there by hand"
        why = "its delete left them"
        try:
            opened.delete(indices)  # of the very storage that was read
        except Exception as error:  # whatever a user's own code raises
            why = f"its delete failed ({type(error).__name__})"  # its words may name a person
        return len(self._indices(self.open(may_be_empty=not others), people, digests)), why

    def _indices(self, opened: PersonDataset, people: Callable[[str], bool], digests: Container[str]) -> list[int]:
        """Return the indices of rows of these people, and of rows with these contents of anybody."""
        chosen = {name for name in {str(name) for name in opened.people} if people(name)}
        found = {number for number, name in enumerate(opened.people) if str(name) in chosen}
        if digests:
            found |= {number for number, loaded in enumerate(self._rows(opened)) if loaded.digest in digests}
        return sorted(found)

    def _sentence(self) -> str:
        return f"The loader '{self.loader.name}'"

    def _wrong(self, number: int, sentence: str) -> DataError:
        return DataError(f"{self._sentence()}, row {number}: {sentence}.")

    def _checked(self, found: object, *, may_be_empty: bool) -> PersonDataset:
        if not isinstance(found, PersonDataset):
            raise DataError(f"{self._sentence()} returned a {type(found).__name__}; return a PersonDataset.")
        for what, listed in (("data set", found.dataset), ("people", found.people), ("splits", found.splits)):
            if listed is not None and not (isinstance(listed, Sized) and hasattr(listed, "__getitem__")):
                raise DataError(
                    f"{self._sentence()} gives {what} by a {type(listed).__name__}, whose rows have no length or no "
                    "index; give a map-style data set, and lists."
                )
        count = len(found.dataset)
        if not count and may_be_empty:
            return found
        if not count:
            raise DataError(f"{self._sentence()} has no rows.")
        if found.people is None or not len(found.people):
            raise DataError(f"{self._sentence()} names no people; name one for each of its {count} rows.")
        for what, listed in (("people", found.people), ("splits", found.splits)):
            if listed is not None and len(listed) != count:
                raise DataError(f"{self._sentence()} names {len(listed)} {what} for {count} rows; name one for each.")
        return found

    def _parts(self, item: Any, opened: PersonDataset) -> tuple[Any, Any]:
        if isinstance(item, Mapping):
            missing = [name for name in (opened.input_name, opened.label_name) if name not in item]
            if missing:
                raise DataError(
                    f"{self._sentence()} has no column '{missing[0]}'; it has {', '.join(map(str, item))}: name the "
                    "right one as input_name or label_name."
                )
            return item[opened.input_name], item[opened.label_name]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise DataError(f"{self._sentence()} gives a {type(item).__name__}; give (input, label), or a mapping.")
        return item[0], item[1]

    def _label(self, number: int, label: Any, opened: PersonDataset) -> str:
        if self.multi_label:
            return self._labels(number, label, tuple(self.classes or opened.classes or ()))
        if hasattr(label, "item") and not isinstance(label, str):
            label = label.item()
        names = tuple(opened.classes or ()) or self.classes
        if isinstance(label, int):
            if names and not 0 <= label < len(names):
                raise self._wrong(number, f"the label {label} is outside the {len(names)} classes")
            if label < 0:
                raise self._wrong(number, f"the label {label} is outside the classes, which begin at 0")
            label = names[label] if names else str(int(label))
        if not isinstance(label, str):
            raise self._wrong(number, f"the label is a {type(label).__name__}; give the index or the name of a class")
        allowed = self.classes or names
        if allowed and canonical(label) not in {canonical(name) for name in allowed}:
            raise self._wrong(number, f"the label '{label}' is outside the classes {', '.join(allowed)}")
        return label

    def _labels(self, number: int, given: Any, names: tuple[str, ...]) -> str:
        """Return the labels of a row as a manifest writes them."""
        if isinstance(given, str):
            unknown = unknown_label(given, {canonical(name) for name in names}, multi_label=True) if names else None
            if unknown is not None:
                raise self._wrong(number, f"the label '{unknown}' is outside the labels {', '.join(names)}")
            return given
        applies = np.asarray(given.detach().cpu() if hasattr(given, "detach") else given)
        if not names or applies.shape != (len(names),) or not np.isin(applies, (0, 1)).all():
            raise self._wrong(
                number, f"its labels are no names, and no 0 and 1 of each of the {len(names)} labels that are listed"
            )
        return SEPARATOR.join(name for name, has in zip(names, applies, strict=True) if has) or NO_LABEL

    def _input(self, number: int, given: Any) -> NDArray[Any]:
        """Return an input as data sets hold it: uint8 pixels ``(C, H, W)``, or float32 numbers in [0, 1]."""
        wanted = self.model_input
        if isinstance(given, (bytes, Image)):
            if not wanted.of_files:
                raise self._wrong(number, f"it is a grey or RGB image, and the site takes {wanted.sentence()}")
            try:
                return pixels_of(given, wanted, f"row {number}").transpose(2, 0, 1)
            except ImageError as error:
                raise self._wrong(number, f"the image cannot be used: {error.reason}") from error
        array = np.asarray(given.detach().cpu() if hasattr(given, "detach") else given)
        if array.shape != wanted.shape:
            takes = f"{wanted.shape}{', channels first' if wanted.is_image else ''}"
            raise self._wrong(number, f"the input has the shape {array.shape}, and the site takes {takes}")
        if wanted.is_image and array.dtype == np.uint8:
            return array
        kinds = "f" if wanted.is_image else "fiub"
        if array.dtype.kind not in kinds:
            what = "uint8 pixels, or floats" if wanted.is_image else "numbers"
            raise self._wrong(number, f"the input is of {array.dtype}; give {what}")
        low, high = np.float32(wanted.low), np.float32(wanted.high)
        values = array.astype(np.float64)
        outside = ~((np.minimum(low, wanted.low) <= values) & (values <= np.maximum(high, wanted.high)))
        if outside.any():
            value = values[outside].flat[0]
            raise self._wrong(
                number, f"the value {value:g} is outside the declared range from {wanted.low:g} to {wanted.high:g}"
            )
        shares = ((values - wanted.low) / (wanted.high - wanted.low)).clip(0.0, 1.0)
        return (shares * _PIXELS).round().astype(np.uint8) if wanted.is_image else shares.astype(np.float32)


def classes_of(rows: Sequence[Row], classes: Sequence[str]) -> tuple[str, ...]:
    """Return the classes of a loader's rows: those listed, or indices in order; empty if neither.

    Parameters
    ----------
    classes
        Those that the user, or the loader, lists.
    """
    indices = tuple(str(index) for index in range(len({row.label for row in rows})))
    return tuple(classes) or (indices if {row.label for row in rows} == set(indices) else ())


def _digest(content: NDArray[Any], person: str, model_input: ModelInput) -> str:
    """Return the SHA-256 of a row's decoded bytes.

    For numbers the digest covers the person, too, because two people can have the same few numbers.
    """
    sha = hashlib.sha256() if model_input.is_image else hashlib.sha256(f"{canonical(person)}\0".encode())
    sha.update(np.ascontiguousarray(content).data)
    return sha.hexdigest()
