"""Read rows of numbers from JSON or CSV files, for a model without images."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlfd_fleet.exceptions import DeviceError
from dlfd_fleet.model_input import ModelInput
from dlfd_fleet.plain_text import visible

_DELIMITERS = ";\t,"
"""Delimiters, of which the first in the first line is used; with semicolons a comma is a decimal comma."""
_MOST_SHOWN = 40  # characters of a cell in a sentence


def read_rows(file: Path, model_input: ModelInput) -> NDArray[Any]:
    """Read the rows of a file as model inputs, float32 ``(N, *shape)``.

    A ``.json`` file has one row or a list of rows. A ``.csv`` file has one row in each line; a first line without
    numbers is the header.

    Raises
    ------
    DeviceError
        If the file cannot be read, or a row does not have the model's shape and range; the first such row is named.
    """
    readers = {".json": _read_json, ".csv": _read_csv}
    reader = readers.get(file.suffix.lower())
    if reader is None:
        raise DeviceError(f"The model takes {model_input.sentence()}: give {file} as a .json or a .csv file of rows.")
    try:
        text = file.read_text(encoding="utf-8-sig")
        return model_input.batch(reader(text, model_input))
    except OSError as error:
        raise DeviceError(f"Cannot read the rows {file}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DeviceError(f"Cannot read the rows {file}: they are not UTF-8 text.") from error
    except ValueError as error:
        raise DeviceError(f"The rows of {file} cannot be used: {error}.") from error


def _read_json(text: str, _: ModelInput) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno} is no JSON ({error.msg})") from error
    except RecursionError as error:
        raise ValueError("lists are nested too deeply") from error


def _read_csv(text: str, model_input: ModelInput) -> list[NDArray[Any]]:
    first = text.lstrip().partition("\n")[0]
    delimiter = next((one for one in _DELIMITERS if one in first), ",")
    try:
        lines = [[cell.strip() for cell in line] for line in csv.reader(text.splitlines(), delimiter=delimiter)]
    except csv.Error as error:
        raise ValueError(f"they are no CSV ({error})") from error
    lines = [line for line in lines if any(line)]
    if lines and all(_number(cell) is None for cell in lines[0]):
        del lines[0]
    rows, wanted = list[NDArray[Any]](), math.prod(model_input.shape)
    for count, line in enumerate(lines, start=1):
        wrong = next((cell for cell in line if _number(cell) is None), None)
        if wrong is not None:
            raise ValueError(f"row {count}: '{visible(wrong, _MOST_SHOWN)}' is no number")
        numbers = np.array([_number(cell) for cell in line], np.float64)
        if len(numbers) != wanted:
            raise ValueError(f"row {count} has {len(numbers)} numbers, and the model takes {wanted}")
        rows.append(numbers.reshape(model_input.shape))
    return rows


def _number(cell: str) -> float | None:
    try:
        return None if "_" in cell else float(cell)
    except ValueError:
        return None
