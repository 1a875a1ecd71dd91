"""Keep a site's decoded rows in a file that is mapped into memory and overwritten by a purge.

The file ``decoded-KEY.rows`` holds the inputs of N different contents and then their SHA-256. KEY stands for the input
of the site's models. The file is written whole or not at all. A row is found by its digest, so two rows with the same
content share a place.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import secrets
from collections.abc import Container, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from dlfd_fleet.data.manifest import Manifest, Row
from dlfd_fleet.exceptions import DataError
from dlfd_fleet.images import read_pixels
from dlfd_fleet.model_input import ModelInput

_FORMAT = 1
_DIGEST_BYTES = 32
_AT_ONCE = 256  # rows

Content = tuple[str, NDArray[Any]]
"""The SHA-256 of a row, in hexadecimal digits, and its decoded input."""


class MappedInputs:
    """Inputs in a file; a read takes memory only for its rows.

    Pages that were read are in the kernel's cache and do not count as memory of this process.

    Attributes
    ----------
    places
        Position of each content, by its SHA-256.
    """

    def __init__(self, file: Path, model_input: ModelInput) -> None:
        self.shape, self.dtype = model_input.shape, model_input.dtype
        with file.open("rb") as stream:
            count, self.places = _places(stream, _bytes_of(model_input))
            self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) if count else None
        size = (count, *self.shape)
        self._array: NDArray[Any] = (
            np.zeros(size, self.dtype)
            if self._map is None
            else np.frombuffer(self._map, self.dtype, math.prod(size)).reshape(size)
        )

    def read(self, places: NDArray[np.int64]) -> NDArray[Any]:
        """Return the inputs at these places, ``(N, *shape)``, in memory."""
        inputs = np.empty((len(places), *self.shape), self.dtype)
        for start in range(0, len(places), _AT_ONCE):
            part = places[start : start + _AT_ONCE]
            inputs[start : start + len(part)] = self._array[part]
            if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
                self._map.madvise(mmap.MADV_DONTNEED)  # its pages stay in the kernel's cache
        return inputs


class DecodedRows:
    """The file of a site's decoded rows.

    Parameters
    ----------
    folder
        The site's.
    model_input
        What the site's models take.
    """

    def __init__(self, folder: Path, model_input: ModelInput) -> None:
        self._folder, self._input = folder, model_input
        key = hashlib.sha256(f"{_FORMAT} {model_input.model_dump_json()}".encode()).hexdigest()[:8]
        self.file = folder / f"decoded-{key}.rows"

    def open(self, manifest: Manifest, digests: Sequence[str | None]) -> tuple[MappedInputs, NDArray[np.int64]]:
        """Return the inputs, and the place of each row of a manifest; rows that are not there yet are decoded.

        Contents that are in the file and not in the manifest are overwritten.

        Raises
        ------
        DataError
            If a row cannot be decoded, or the file cannot be written.
        """
        opened = self._opened()
        if opened is None or not opened.places.keys() >= set(digests):
            self.write(self._contents(manifest, digests, opened))
            opened = self._opened() or opened
        if opened is None or not opened.places.keys() >= set(digests):
            raise DataError(f"{self.file} has just been deleted; try again.")
        self.erase(opened.places.keys() - set(digests))
        return opened, np.array([opened.places[str(digest)] for digest in digests], np.int64)

    def write(self, contents: Iterable[Content]) -> None:
        """Replace the file by one with these contents.

        Raises
        ------
        DataError
            If writing fails; then the old file stays.
        """
        # Two jobs may write at once; what a killed process leaves goes with the next purge.
        new = self._folder / f".{self.file.name}.{secrets.token_hex(4)}.new"
        digests = dict[str, None]()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with new.open("wb") as stream:
                for digest, content in contents:
                    if digest not in digests:
                        digests[digest] = None
                        stream.write(np.ascontiguousarray(content, self._input.dtype).data)
                stream.write(b"".join(bytes.fromhex(digest) for digest in digests))
            new.replace(self.file)
        except OSError as error:
            raise DataError(f"Cannot write {self.file}: {error.strerror}; check space and rights.") from error
        finally:
            with suppress(OSError):
                new.unlink(missing_ok=True)

    def erase(self, digests: Container[str]) -> None:
        """Overwrite some contents and their digests with zeros on the disk; missing ones are ignored.

        Raises
        ------
        DataError
            If the disk refuses.
        """
        if not digests or not self.file.exists():
            return
        size = _bytes_of(self._input)
        try:
            with self.file.open("r+b") as stream:
                count, places = _places(stream, size)
                for place in sorted(place for digest, place in places.items() if digest in digests):
                    for start, length in ((place * size, size), (count * size + place * _DIGEST_BYTES, _DIGEST_BYTES)):
                        stream.seek(start)
                        stream.write(bytes(length))
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise DataError(f"Cannot overwrite rows in {self.file}: {error.strerror}; check the disk.") from error

    def purge(self, digests: Container[str]) -> None:
        """Erase some contents, and delete files of killed processes and of models with another input.

        Raises
        ------
        DataError
            If the disk refuses.
        """
        self.erase(digests)
        try:
            for left in (*self._folder.glob(".decoded-*.new"), *self._folder.glob("decoded-*.rows")):
                if left != self.file:
                    left.unlink(missing_ok=True)
        except OSError as error:
            raise DataError(f"Cannot delete decoded rows in {self._folder}: {error.strerror}.") from error

    def _opened(self) -> MappedInputs | None:
        try:
            return MappedInputs(self.file, self._input)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DataError(f"Cannot read {self.file}: {error.strerror}; check the disk.") from error

    def _contents(
        self, manifest: Manifest, digests: Sequence[str | None], opened: MappedInputs | None
    ) -> Iterator[Content]:
        """Yield what the manifest lists: what the file has as it is there, and the rest decoded."""
        places = {} if opened is None else opened.places
        known = [digest for digest in dict.fromkeys(digests) if digest is not None and digest in places]
        for start in range(0, len(known), _AT_ONCE):
            part = known[start : start + _AT_ONCE]
            assert opened is not None  # noqa: S101 - for mypy: something is known
            yield from zip(part, opened.read(np.array([places[digest] for digest in part])), strict=True)
        missing = [number for number, digest in enumerate(digests) if digest not in places]
        rows = [manifest.rows[number] for number in missing]
        yield from decode(manifest, rows, [digests[number] for number in missing], self._input)


def _bytes_of(model_input: ModelInput) -> int:
    return math.prod(model_input.shape) * model_input.dtype.itemsize


def _places(stream: BinaryIO, size: int) -> tuple[int, dict[str, int]]:
    """Return how many contents of this size a file has room for, and the place of each by its digest."""
    count = stream.seek(0, os.SEEK_END) // (size + _DIGEST_BYTES)
    stream.seek(count * size)
    digests = stream.read(count * _DIGEST_BYTES)
    parts = (digests[start : start + _DIGEST_BYTES] for start in range(0, len(digests), _DIGEST_BYTES))
    return count, {part.hex(): place for place, part in enumerate(parts) if any(part)}


def decode(
    manifest: Manifest, rows: Sequence[Row], digests: Sequence[str | None], model_input: ModelInput
) -> Iterator[Content]:
    """Yield the content of some rows of a manifest, each digest once, in bounded memory and in no order.

    Raises
    ------
    DataError
        If one of them cannot be read.
    """
    if manifest.loaded is not None:
        yield from manifest.loaded.find(rows)
        return
    if not model_input.of_files:
        raise DataError(f"Image files are grey or RGB, and the model takes {model_input.sentence()}; use a loader.")

    def pixels(row: Row) -> NDArray[np.uint8]:
        return read_pixels(manifest.file_of(row), model_input).transpose(2, 0, 1)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(rows), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            for row, digest, content in zip(rows[part], digests[part], pool.map(pixels, rows[part]), strict=True):
                if digest is None:
                    raise DataError(f"The image {row.image} has just changed; try again.")
                yield digest, content
