"""Names of classes as people list them, and weights that make classes of different sizes count the same."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence

from dlfd_fleet.data.identity import canonical
from dlfd_fleet.exceptions import ConfigurationError


def class_names(lists: Sequence[str] | None) -> tuple[str, ...] | None:
    """Return the names in lists such as ``glasses,no glasses``, in order; None if there is no list.

    A name that holds a comma stands in quotation marks: ``"hat, red",none``. Blanks around names go.

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
    refuse_wrong_classes(names)
    return tuple(names)


def refuse_wrong_classes(names: Sequence[str]) -> None:
    """Raise a :class:`~dlfd_fleet.exceptions.ConfigurationError` if a class has no name, or two have one name."""
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
        if spelling in first:
            raise ConfigurationError(f"The classes '{first[spelling]}' and '{name}' are one name; list it once.")
        first[spelling] = name


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
