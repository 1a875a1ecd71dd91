"""Test whether a model gives the same answers on this device as at the coordinator."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dlfd_fleet.device.inference import DeviceModel
from dlfd_fleet.exceptions import DeviceError

LARGEST = 64 * 2**20
"""Most bytes of the file, and of its unpacked arrays."""


def run_self_test(model: DeviceModel, file: Path, tolerance: float) -> None:
    """Compare a model's answers with the reference answers.

    Parameters
    ----------
    file
        ``.npz`` with ``images``, uint8 ``(N, S, S, 3)``, and ``probabilities``, float32 ``(N, C)``; N is at least 1.
    tolerance
        Largest difference of a probability.

    Raises
    ------
    DeviceError
        If they differ by more, or the file is not such a file.
    """
    images, expected = _read(file)
    found = model.predict(images)
    if found.shape != expected.shape or not len(images):
        raise DeviceError(
            f"The self-test's answers have shape {expected.shape}, and the model's {found.shape}: it is not this "
            "model's self-test."
        )
    difference = float(np.abs(found - expected).max())
    if not difference <= tolerance:  # not a number is a failure too
        raise DeviceError(
            f"The model {model.version} failed its self-test: a probability differs by {difference:.3g}, and at most "
            f"{tolerance:.3g} is allowed."
        )


def _read(file: Path) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    try:
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > LARGEST:
            raise DeviceError(f"The self-test unpacks to {unpacked} bytes; at most {LARGEST} are taken.")
        with np.load(file, allow_pickle=False) as arrays:
            return arrays["images"], arrays["probabilities"]
    except (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise DeviceError("The self-test that came with the model is damaged.") from error
