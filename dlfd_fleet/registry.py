"""Registries of what users add: built-in entries, those of other packages, and those of the running process."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import entry_points, version
from pkgutil import resolve_name
from typing import Annotated, Protocol, TypeVar

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from dlfd_fleet.exceptions import ConfigurationError

_DISTRIBUTION = "dlfd-fleet"
ENTRY_NAME = "^[a-z0-9][a-z0-9_-]{0,31}$"
EntryName = Annotated[str, Field(pattern=ENTRY_NAME)]
"""A name as files and messages hold it: of an entry that need not be registered where they are read."""


class Named(Protocol):
    """An entry; its name is what settings, commands and files call it."""

    @property
    def name(self) -> str:
        """The name."""


_Entry = TypeVar("_Entry", bound=Named)


class Registry(Mapping[str, _Entry]):
    """Entries by name: the built-in ones first, then those of other packages.

    Other packages add an entry by an entry point of its name. They are loaded when somebody first looks.

    Parameters
    ----------
    what
        What an entry is called in messages, such as ``"method"``.
    kind
        Type of the entries.
    group
        Entry point group; each entry point names an object of that type.
    builtin
        The built-in entries, in order.
    name
        Pattern of a name.

    Raises
    ------
    ConfigurationError
        On first use, if the entry of another package cannot be loaded, has another type, has another name than its
        entry point, has no plain name, or has a name that is taken.
    """

    def __init__(
        self, what: str, kind: type[_Entry], group: str, builtin: Iterable[_Entry], *, name: str = ENTRY_NAME
    ) -> None:
        self._what, self._kind, self._group, self._builtin, self._name = what, kind, group, tuple(builtin), name
        self._known: dict[str, _Entry] | None = None
        self._packages: dict[str, str] = {}

    def __getitem__(self, name: str) -> _Entry:
        return self._entries()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries())

    def __len__(self) -> int:
        return len(self._entries())

    def names(self) -> Iterator[str]:
        """Yield the names, the built-in ones first; nothing of another package is loaded for it."""
        if self._known is not None:
            yield from self._known
            return
        yield from (entry.name for entry in self._builtin)
        yield from (point.name for point in entry_points(group=self._group))

    def find(self, name: str) -> _Entry:
        """Return the entry of this name.

        Raises
        ------
        ConfigurationError
            If there is none; the sentence names those there are.
        """
        if name not in self:
            raise ConfigurationError(f"There is no {self._what} '{name}'; there are {', '.join(self)}.")
        return self[name]

    def package_of(self, name: str) -> str:
        """Return the name and the version of the package that an entry comes from."""
        entry = self.find(name)
        if any(entry is one for one in self._builtin):
            return f"{_DISTRIBUTION} {version(_DISTRIBUTION)}"
        return self._packages.get(name, "registered by the running process")

    def register(self, entry: _Entry) -> None:
        """Add an entry for the running process; one that is there already may be added again.

        Raises
        ------
        ConfigurationError
            If it has another type or no plain name, or its name is taken by another entry.
        """
        self._add(self._entries(), entry, f"this {type(entry).__name__}")

    def reload(self) -> None:
        """Drop what the process has registered, and read entry points again on next use."""
        self._known, self._packages = None, {}

    def _entries(self) -> dict[str, _Entry]:
        if self._known is None:
            known = {entry.name: entry for entry in self._builtin}
            for point in entry_points(group=self._group):
                try:
                    entry = point.load()
                except Exception as error:  # whatever the other package's import raises
                    raise ConfigurationError(
                        f"The {self._what} '{point.name}' of {point.value} cannot be loaded: "
                        f"{type(error).__name__}: {error}."
                    ) from error
                self._add(known, entry, point.value)
                if point.dist is not None:
                    self._packages[entry.name] = f"{point.dist.name} {point.dist.version}"
                if entry.name != point.name:
                    raise ConfigurationError(
                        f"The entry point '{point.name}' of {point.value} is the {self._what} '{entry.name}'; "
                        "give them one name."
                    )
            self._known = known
        return self._known

    def _add(self, known: dict[str, _Entry], entry: object, source: str) -> None:
        if not isinstance(entry, self._kind):
            raise ConfigurationError(
                f"A {self._what} is wanted, and {source} is no {self._kind.__module__}.{self._kind.__name__}."
            )
        if not re.fullmatch(self._name, str(entry.name)):
            raise ConfigurationError(
                f"'{entry.name}' cannot be the name of a {self._what}: take up to 32 lower-case letters, digits, '-' "
                "and '_'."
            )
        if entry.name in known and known[entry.name] != entry:
            raise ConfigurationError(
                f"The name '{entry.name}' is taken by another {self._what}; give {source} another name."
            )
        known.setdefault(entry.name, entry)


def name_in(registry: str, advice: str = "") -> AfterValidator:
    """Return what refuses a setting that is no name of a registry.

    Parameters
    ----------
    registry
        ``module:NAME``. It is imported when a value is first checked: what users add takes settings, so registries are
        above the settings.
    advice
        What the sentence ends with.
    """

    def check(name: str) -> str:
        known: Registry[Named] = resolve_name(registry)
        if name not in known.names():
            *others, last = (repr(one) for one in known.names())
            shown = f"{', '.join(others)} or {last}{advice and f'; {advice}'}"
            raise PydanticCustomError("name", "Input should be {known}", {"known": shown})
        return name

    return AfterValidator(check)
