"""What options say of a model, its input and its factory, and of where a site's rows come from."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import cast, get_args

from pydantic import ValidationError

from dlfd_fleet.components import Component
from dlfd_fleet.data import Manifest
from dlfd_fleet.data.folders import FolderOrder, folders_manifest
from dlfd_fleet.exceptions import ConfigurationError
from dlfd_fleet.model_input import ModelInput


def input_of(size: str, channels: int, fit: str, value_range: str, numbers: str | None = None) -> ModelInput:
    """Return the input that options describe: an image, or numbers.

    Raises
    ------
    ConfigurationError
        If one of them cannot be used.
    """
    if numbers is not None and not re.fullmatch(r"\d{1,7}(x\d{1,7})*", numbers.strip()):
        raise ConfigurationError(f"--numbers {numbers} is not a shape; write 30, or 8x8 for a table.")
    sides = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", size.strip())
    if not sides:
        raise ConfigurationError(f"--image-size {size} is not a size; write 64, or 48x64 for height and width.")
    ends = value_range.split(",")
    try:
        low, high = (float(end) for end in ends)
    except ValueError as error:
        raise ConfigurationError(
            f"--value-range {value_range} is not a range; write two numbers, such as -1,1."
        ) from error
    try:
        if numbers is not None:
            shape = tuple(int(side) for side in numbers.strip().split("x"))
            return ModelInput.model_validate({"shape": shape, "kind": "numbers", "low": low, "high": high})
        return ModelInput.model_validate(
            {
                "shape": (channels, int(sides[1]), int(sides[2] or sides[1])),
                "fit": fit,
                "low": low,
                "high": high,
            }
        )
    except ValidationError as error:
        raise ConfigurationError(_sentence(error, "The model's input")) from error


def rows_of(
    manifest: Path | None,
    loader: str | None,
    loader_arguments: str,
    parquet: Path | None,
    npz: Path | None,
    image_folders: Path | None,
    folders: str,
    *,
    follow_links: bool,
) -> Path | Manifest | Component:
    """Return where a site's rows come from: its manifest, or its loader.

    Raises
    ------
    ConfigurationError
        Unless exactly one of the options says it.
    DataError
        If there are no images in the folders.
    """
    given = [one for one in (manifest, loader, parquet, npz, image_folders) if one is not None]
    if len(given) != 1:
        raise ConfigurationError(
            "Name the site's rows in exactly one way: --manifest, --image-folders, --parquet, --npz or --loader."
        )
    if manifest is not None:
        return manifest
    if image_folders is not None:
        if folders not in get_args(FolderOrder):
            raise ConfigurationError(f"--folders {folders} is not valid; write {' or '.join(get_args(FolderOrder))}.")
        return folders_manifest(image_folders, cast("FolderOrder", folders), "follow" if follow_links else "refuse")
    if loader is not None:
        return component(loader, loader_arguments)
    kind, file = ("parquet", parquet) if parquet is not None else ("npz", npz)
    given_too = component(f"dlfd_fleet.data.loaders:{kind}", loader_arguments)
    file_argument = {"file": str(Path(file or "").absolute())}
    return component(given_too.name, json.dumps(given_too.model_dump(mode="json")["arguments"] | file_argument))


def component(name: str, arguments: str) -> Component:
    """Return the factory, or the loader, that options name.

    Raises
    ------
    ConfigurationError
        If it is no name of one, or its arguments are no table in JSON.
    """
    try:
        table = json.loads(arguments)
    except ValueError as error:
        raise ConfigurationError(f'{arguments} is not a JSON table; write, for example, {{"width": 32}}.') from error
    except RecursionError as error:
        raise ConfigurationError(
            f"The arguments of '{name}' nest lists or tables too deeply; write a flat table, for example, "
            '{"width": 32}.'
        ) from error
    try:
        return Component.model_validate({"name": name, "arguments": table})
    except ValidationError as error:
        raise ConfigurationError(_sentence(error, f"'{name}'")) from error


def _sentence(error: ValidationError, what: str) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    said = first["msg"].removeprefix("Value error, ")
    return f"{what}{f', {where}' if where else ''}: {said}."
