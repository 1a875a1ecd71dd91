"""Read settings from defaults, a file, the environment and flags; later ones win.

The file is TOML (``--config PATH``, or ``DLFD_FLEET_CONFIG``); an environment variable is the dotted key in capitals
with two underscores for each dot (``DLFD_FLEET_TRAINING__ROUNDS=8``); a flag is ``--set training.rounds=8``.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from dlfd_fleet.exceptions import ConfigurationError
from dlfd_fleet.passwords import without_passwords
from dlfd_fleet.settings import Settings

ENVIRONMENT_PREFIX = "DLFD_FLEET_"
CONFIG_VARIABLE = "DLFD_FLEET_CONFIG"
MLFLOW_VARIABLE = "MLFLOW_TRACKING_URI"
OPEN_TABLES = ("model.arguments", "data.loader_arguments")
"""Settings that are tables of keys which their users choose."""
_DEEPEST = 8  # tables and lists in each other; the tree has 3
_LONGEST_SHOWN = 80
_TOO_DEEP = (
    f"The settings file {{file}} holds more than {_DEEPEST} tables or lists in each other; `dlfd-fleet config show` "
    "lists every setting."
)


@dataclass(frozen=True)
class LoadedSettings:
    """Effective settings and where each dotted key came from."""

    settings: Settings
    origins: Mapping[str, str]

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """Yield ``(dotted key, value, origin)`` for every setting, in the order of the tree."""
        for key, value in flatten(self.settings.model_dump(mode="json")).items():
            shown = value if isinstance(value, str) else json.dumps(value)
            yield key, shown, self.origins.get(key, "default")


def descriptions(section: type[BaseModel] = Settings, prefix: str = "") -> dict[str, str]:
    """Return what each setting is, by dotted key."""
    said: dict[str, str] = {}
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            said |= descriptions(inner, f"{prefix}{name}.")
        else:
            said[prefix + name] = field.description or ""
    return said


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested mappings into one mapping of dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and f"{prefix}{key}" not in OPEN_TABLES:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def load_settings(
    file: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> LoadedSettings:
    """Merge defaults, file, environment and flags, the later over the earlier.

    Parameters
    ----------
    file
        TOML or JSON file; ``DLFD_FLEET_CONFIG`` names it when omitted.
    overrides
        Dotted keys and values given as flags.
    environment
        Variables to read; the process's own when omitted.

    Raises
    ------
    ConfigurationError
        For an unreadable file, an unknown key or a wrong value, naming the key and where it came from.
    """
    environment = os.environ if environment is None else environment
    named = environment.get(CONFIG_VARIABLE)
    file = file or (Path(named) if named else None)
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    layers: list[tuple[str, dict[str, Any]]] = []
    if file is not None:
        layers.append((f"file {file}", flatten(_read_file(file))))
    layers.append(("environment", _read_environment(environment)))
    layers.append(("flag", dict(overrides or {})))
    known = set(flatten(Settings().model_dump(mode="json")))
    for origin, values in layers:
        for key, value in values.items():
            if key not in known:
                raise ConfigurationError(
                    f"Unknown setting '{_shown(key)}' ({origin}): {_suggestion(_shown(key), known)}."
                )
            if _is_too_deep(value):
                raise ConfigurationError(
                    f"Setting '{key}' ({origin}) holds more than {_DEEPEST} tables or lists in each other."
                )
            merged[key] = value
            origins[key] = origin
    return LoadedSettings(_validate(merged, origins), origins)


def write_settings(settings: Settings, file: Path) -> None:
    """Write the effective settings as JSON, for the processes of one run to read back."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(settings.model_dump_json(indent=2) + "\n", encoding="utf-8")


def _read_file(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
        tree = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise ConfigurationError(f"Cannot read the settings file {file}: {error.strerror}.") from error
    except (ValueError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"The settings file {file} cannot be parsed: {error}.") from error
    except RecursionError as error:
        raise ConfigurationError(_TOO_DEEP.format(file=file)) from error
    if _is_too_deep(tree):
        raise ConfigurationError(_TOO_DEEP.format(file=file))
    if not isinstance(tree, dict):
        raise ConfigurationError(f"The settings file {file} must hold a table of settings.")
    # A null stands for "unset" in the JSON that write_settings makes.
    return {key: value for key, value in tree.items() if value is not None}


def _read_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if environment.get(MLFLOW_VARIABLE):
        values["tracking.uri"] = environment[MLFLOW_VARIABLE]
    for name, text in environment.items():
        if name.startswith(ENVIRONMENT_PREFIX) and name != CONFIG_VARIABLE:
            key = name.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".")
            values[key] = text
    return values


def _validate(merged: Mapping[str, Any], origins: Mapping[str, str]) -> Settings:
    tree: dict[str, Any] = {}
    for key, value in merged.items():
        *parents, leaf = key.split(".")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[leaf] = value
    try:
        return Settings(**tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"] if isinstance(part, str))
        origin = origins.get(key, "default")
        given = first["input"]
        shown = repr(_shown(given)) if isinstance(given, str) else _shown(repr(given))
        raise ConfigurationError(
            f"Setting '{key}' ({origin}) is {shown}: {first['msg'].removeprefix('Value error, ')}."
        ) from None  # the error it was has the value, and that may hold a password


def _shown(text: str) -> str:
    """Return a text as a message may repeat it: nothing secret, and not a page of it."""
    text = without_passwords(text)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"


def _is_too_deep(value: object) -> bool:
    """Tell whether tables and lists are nested deeper than any setting; without recursion, which has an end itself."""
    level: list[object] = [value]
    for _ in range(_DEEPEST):
        level = [part for one in level for part in _parts(one)]
        if not level:
            return False
    return True


def _parts(value: object) -> Iterable[object]:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def _suggestion(key: str, known: set[str]) -> str:
    from difflib import get_close_matches

    close = get_close_matches(key, sorted(known), n=1)
    return f"did you mean '{close[0]}'" if close else "`dlfd-fleet config show` lists them all"
