"""What options say of a model: its input, and its factory."""

from __future__ import annotations

import json
import re

from pydantic import ValidationError

from dlfd_fleet.components import Component
from dlfd_fleet.exceptions import ConfigurationError
from dlfd_fleet.model_input import ModelInput


def image_input_of(size: str, channels: int, fit: str, value_range: str) -> ModelInput:
    """Return the input that options describe.

    Raises
    ------
    ConfigurationError
        If one of them cannot be used.
    """
    sides = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", size.strip())
    if not sides:
        raise ConfigurationError(f"--image-size {size} is no size; write 64, or 48x64 for height and width.")
    ends = value_range.split(",")
    try:
        low, high = (float(end) for end in ends)
    except ValueError as error:
        raise ConfigurationError(f"--value-range {value_range} is none; write two numbers, such as -1,1.") from error
    try:
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
        raise ConfigurationError(f'{arguments} is no table in JSON; write, for example, {{"width": 32}}.') from error
    try:
        return Component.model_validate({"name": name, "arguments": table})
    except ValidationError as error:
        raise ConfigurationError(_sentence(error, f"'{name}'")) from error


def _sentence(error: ValidationError, what: str) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    said = first["msg"].removeprefix("Value error, ")
    return f"{what}{f', {where}' if where else ''}: {said}."
