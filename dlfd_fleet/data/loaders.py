"""Loaders of the package: Parquet files with images as Hugging Face writes them, and NPZ files.

A relative ``file`` is under the site's folder. Both loaders can delete rows: they rewrite the file, whole or not at
all.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from dlfd_fleet.data.people import PersonDataset
from dlfd_fleet.exceptions import DataError
from dlfd_fleet.files import whole_file

_ARRAYS = ("inputs", "labels", "people")


def parquet(
    file: str,
    *,
    image: str = "image",
    person: str = "identity",
    label: str = "label",
    split: str | None = None,
    classes: Sequence[str] | None = None,
    site_folder: Path | None = None,
) -> PersonDataset:
    """Load a Parquet file with images as bytes, ``{bytes, path}``, as Hugging Face writes them.

    Parameters
    ----------
    file
        The file. A set of several files needs one site for each, or your own loader.
    image, person, label
        Names of the columns. Labels are names, or indices of ``classes``.
    split
        Column of the splits. Default: ``split`` if it exists.
    classes
        Names of the classes. Default: those in Hugging Face's metadata of the file.

    Raises
    ------
    DataError
        If the file cannot be read, or has no such columns.
    """
    from pyarrow import ArrowException

    path = _path(file, site_folder)
    try:
        path.stat()  # for the system's own words
        rows = _ParquetRows(path, image, label)
        splits = split or ("split" if "split" in rows.columns else None)
        rows.require(*(name for name in (image, person, label, splits) if name))
        return PersonDataset(
            rows,
            people=rows.texts(person),
            splits=None if splits is None else rows.texts(splits),
            classes=classes or rows.class_names(label),
            delete=rows.delete,
            input_name=image,
            label_name=label,
        )
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}.") from error
    except (ArrowException, ValueError) as error:
        raise DataError(f"Cannot read {path}: it is no Parquet file, or damaged ({error}).") from error


def holds_bytes(file: Path) -> bool:
    """Tell whether a Parquet file holds the images themselves, and not a manifest's paths."""
    from pyarrow import ArrowException, types
    from pyarrow.parquet import read_schema

    try:
        return any(
            types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0 for field in read_schema(file)
        )
    except (OSError, ArrowException):
        return False


class _ParquetRows:
    """Rows of a Parquet file; one row group is in memory at a time."""

    def __init__(self, file: Path, image: str, label: str) -> None:
        from pyarrow.parquet import ParquetFile

        self._file, self._columns = file, [image, label]
        self._image = image
        with ParquetFile(file) as opened:
            groups = opened.metadata.num_row_groups
            self._sizes = [opened.metadata.row_group(number).num_rows for number in range(groups)]
            self._schema = opened.schema_arrow
        self._ends = np.cumsum(self._sizes)
        self._group = -1
        self._rows: list[dict[str, Any]] = []

    def __len__(self) -> int:
        return sum(self._sizes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        group = int(np.searchsorted(self._ends, index, side="right"))
        if group != self._group:
            self._rows, self._group = self._read(group), group
        row = self._rows[index - int(self._ends[group]) + self._sizes[group]]
        content = (row[self._image] or {}).get("bytes")
        if not content:
            raise DataError(f"{self._file}, row {index}: the image has no bytes; write them into the file.")
        return {**row, self._image: content}

    @property
    def columns(self) -> Sequence[str]:
        """Names of the file's columns."""
        return list(self._schema.names)

    def require(self, *names: str) -> None:
        """Refuse a file without these columns, or whose images are no bytes."""
        from pyarrow import types

        missing = [name for name in names if name not in self.columns]
        if missing:
            raise DataError(f"{self._file} has no column '{missing[0]}'; it has {', '.join(self.columns)}.")
        kind = self._schema.field(self._image).type
        if not (types.is_struct(kind) and kind.get_field_index("bytes") >= 0):
            raise DataError(
                f"{self._file}, column '{self._image}': it holds {kind}, not bytes of images; give a file in Hugging "
                "Face's layout, or list image files in a manifest."
            )

    def texts(self, name: str) -> list[str]:
        """Return a column as text."""
        from pyarrow.parquet import read_table

        values = read_table(self._file, columns=[name])[name].to_pylist()
        return ["" if value is None else str(value) for value in values]

    def class_names(self, label: str) -> tuple[str, ...] | None:
        """Return the names of classes that Hugging Face has noted; None if the labels are names."""
        try:
            noted = json.loads((self._schema.metadata or {}).get(b"huggingface", b"{}"))
            names = noted["info"]["features"][label]["names"]
        except (KeyError, TypeError, ValueError, RecursionError):
            return None
        return tuple(map(str, names)) if isinstance(names, list) else None

    def delete(self, indices: Collection[int]) -> None:
        """Write the file anew without some rows, a group at a time."""
        import pyarrow
        from pyarrow.parquet import ParquetFile, ParquetWriter

        gone = np.zeros(len(self), dtype=bool)
        gone[list(indices)] = True
        with whole_file(self._file, DataError) as new, ParquetFile(self._file) as opened:
            codec = opened.metadata.row_group(0).column(0).compression if self._sizes else "NONE"
            codec = "NONE" if codec == "UNCOMPRESSED" else codec
            with ParquetWriter(new, self._schema, compression=codec) as writer:
                for group, size in enumerate(self._sizes):
                    kept = ~gone[int(self._ends[group]) - size : int(self._ends[group])]
                    if kept.any():
                        writer.write_table(opened.read_row_group(group).filter(pyarrow.array(kept)))

    def _read(self, group: int) -> list[dict[str, Any]]:
        from pyarrow.parquet import ParquetFile

        with ParquetFile(self._file) as opened:
            rows: list[dict[str, Any]] = opened.read_row_group(group, columns=self._columns).to_pylist()
            return rows


def npz(file: str, *, site_folder: Path | None = None) -> PersonDataset:
    """Load an NPZ file of the arrays ``inputs``, ``labels`` and ``people``, all of it into memory.

    The arrays ``splits`` and ``classes`` are optional.

    Raises
    ------
    DataError
        If the file cannot be read, or lacks an array.
    """
    path = _path(file, site_folder)
    arrays = _arrays(path)
    missing = [name for name in _ARRAYS if name not in arrays]
    if missing:
        raise DataError(f"{path} has no array '{missing[0]}'; it has {', '.join(sorted(arrays)) or 'none'}.")
    inputs, labels = arrays["inputs"], arrays["labels"]
    if len(inputs) != len(labels):
        raise DataError(f"{path} has {len(inputs)} inputs and {len(labels)} labels; give one label a row.")

    def delete(indices: Sequence[int]) -> None:
        kept = {
            name: array if name == "classes" else np.delete(array, list(indices), axis=0)
            for name, array in _arrays(path).items()
        }
        write_npz(path, kept)

    return PersonDataset(
        _NpzRows(inputs, labels),
        people=[str(name) for name in arrays["people"]],
        splits=[str(name) for name in arrays["splits"]] if "splits" in arrays else None,
        classes=tuple(str(name) for name in arrays["classes"]) if "classes" in arrays else None,
        delete=delete,
    )


class _NpzRows:
    def __init__(self, inputs: NDArray[Any], labels: NDArray[Any]) -> None:
        self._inputs, self._labels = inputs, labels

    def __len__(self) -> int:
        return len(self._inputs)

    def __getitem__(self, index: int) -> tuple[NDArray[Any], Any]:
        return self._inputs[index], self._labels[index]


def write_npz(file: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write an NPZ file, whole or not at all.

    Raises
    ------
    DataError
        If the disk refuses.
    """
    with whole_file(file, DataError) as new, new.open("wb") as stream:
        np.savez(stream, **dict(arrays))  # type: ignore[arg-type]


def _arrays(file: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(file, allow_pickle=False) as opened:
            return {name: opened[name] for name in opened.files}
    except OSError as error:
        raise DataError(f"Cannot read {file}: {error.strerror or error}.") from error
    except (ValueError, BadZipFile, AttributeError, TypeError, EOFError, KeyError) as error:
        raise DataError(f"Cannot read {file}: it is no NPZ file of numbers and text ({error}).") from error


def _path(file: str, site_folder: Path | None) -> Path:
    return (site_folder or Path()) / file
