"""Read names of classes and labels, and compute weights that balance classes."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterable, Sequence

from dlfd_fleet.answers import NO_LABEL, SEPARATOR
from dlfd_fleet.data.identity import canonical
from dlfd_fleet.exceptions import ConfigurationError, DataError

_SHOWN = 10


def labels_in(cell: str, *, multi_label: bool) -> tuple[str, ...]:
    """Return the classes that a cell names: the cell itself, or the labels in it; none of ``none``.

    Raises
    ------
    DataError
        If a label is empty, or the cell has ``none`` and a label.

    Examples
    --------
    >>> labels_in("hat; glasses", multi_label=True)
    ('hat', 'glasses')
    >>> labels_in("none", multi_label=True)
    ()
    """
    if not multi_label:
        return (cell,)
    names = [name.strip() for name in cell.split(SEPARATOR)]
    spellings = list(map(canonical, names))
    if spellings == [NO_LABEL]:
        return ()
    if "" in spellings or NO_LABEL in spellings:
        raise DataError(
            f"The cell '{cell}' is no list of labels: write one '{SEPARATOR}' between two of them, or '{NO_LABEL}'."
        )
    return tuple(names)


def unknown_label(cell: str, known: Collection[str], *, multi_label: bool) -> str | None:
    """Return a name in a cell that is not among the classes (canonical forms); None if all are known."""
    return next((name for name in labels_in(cell, multi_label=multi_label) if canonical(name) not in known), None)


def listed(names: Sequence[str]) -> str:
    """Return names for a sentence: all of them, or the first ten of a thousand.

    Examples
    --------
    >>> listed(["hat", "glasses"])
    'hat, glasses'
    """
    more = len(names) - _SHOWN
    return ", ".join(names) if more <= 1 else f"{', '.join(names[:_SHOWN])} and {more} more"


def class_names(lists: Sequence[str] | None, *, multi_label: bool = False) -> tuple[str, ...] | None:
    """Return the names in lists such as ``glasses,no glasses``, in order; None if there is no list.

    A name with a comma is in quotation marks: ``"hat, red",none``. Blanks around names are removed.

    Parameters
    ----------
    multi_label
        Whether the names are of labels, of which several may apply to an image.

    Raises
    ------
    ConfigurationError
        If a name is empty or named twice, or a quotation mark is not closed.
    """
    if not lists:
        return None
    names = []
    for text in lists:
        try:
            cells = next(csv.reader([text], strict=True, skipinitialspace=True), []) or [""]
        except csv.Error as error:
            raise ConfigurationError(
                f"--classes {text} cannot be read: close each quotation mark, after the whole name."
            ) from error
        names += [name.strip() for name in cells]
    refuse_wrong_classes(names, multi_label=multi_label)
    return tuple(names)


def refuse_wrong_classes(names: Sequence[str], *, multi_label: bool = False) -> None:
    """Raise a :class:`~dlfd_fleet.exceptions.ConfigurationError` if a name is empty or used twice.

    A label must not be ``none`` or contain the separator of labels.
    """
    first: dict[str, str] = {}
    for number, name in enumerate(names, start=1):
        spelling = canonical(name)
        if not spelling:
            raise ConfigurationError(
                f"Class {number} of {len(names)} has no name; separate names by single commas, and put a name that "
                "holds a comma in quotation marks."
            )
        if not name.isprintable():
            raise ConfigurationError(f"Class {number} of {len(names)} holds a control character; remove it.")
        if multi_label and (spelling == NO_LABEL or SEPARATOR in spelling):
            raise ConfigurationError(
                f"No label can be called '{name}': '{SEPARATOR}' stands between two labels of an image, and "
                f"'{NO_LABEL}' for an image without any; give it another name."
            )
        if spelling in first:
            raise ConfigurationError(f"The classes '{first[spelling]}' and '{name}' are one name; list it once.")
        first[spelling] = name


def too_few(classes: Sequence[str], *, multi_label: bool) -> str | None:
    """Return why there are too few classes for a classifier; None if there are enough. One label is enough."""
    if len(classes) >= (1 if multi_label else 2):
        return None
    return f"a classifier needs two classes or more, or one label, and there are {len(classes)}"


def balanced_weights(counts: Iterable[float]) -> tuple[float, ...]:
    """Return a weight for each class, inverse to its share of the images; 1 for a class without any.

    Images weigh 1 on average.

    Parameters
    ----------
    counts
        Images of each class.
    """
    images = list(counts)
    shown = sum(count > 0 for count in images)
    return tuple(sum(images) / (shown * count) if count else 1.0 for count in images)
