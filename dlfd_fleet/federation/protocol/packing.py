"""Pack messages into Flower's records and read them again: fields as JSON, arrays, a file, audited samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from dlfd_fleet.audit import SampleScores
from dlfd_fleet.audit.samples import ROLES, numbers, numbers_of_labels
from dlfd_fleet.exceptions import DataError, MessageError
from dlfd_fleet.federation.protocol.bounds import LARGEST_REPLY, MOST_SAMPLES, MOST_TENSORS
from dlfd_fleet.plain_text import visible

_BODY, _FIELDS, _SAMPLES = "body", "json", "samples"
MODEL = "model"
FILE = "file"
COORDINATOR = "The coordinator"
_COLUMNS: dict[str, type[np.generic]] = {
    "role": np.uint8,
    "person": np.int64,
    "label": np.int64,
    "prediction": np.int64,
    "loss": np.float64,
}
_ANSWERS = ("label", "prediction")
_LARGEST_LOSS = 28.0  # nats; of a probability of 1e-12 it is 27.6

_WORDS_SHOWN = 200
Arrays = dict[str, Tensor]


class FleetMessage(BaseModel):
    """Base class of all messages: frozen, with strict and bounded fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    LARGEST: ClassVar[int] = LARGEST_REPLY
    """Largest size of the fields in bytes."""

    def to_records(self, samples: SampleScores | None = None, **arrays: Mapping[str, Tensor]) -> RecordDict:
        """Pack the fields, named arrays such as ``model=state_dict``, and audited samples."""
        records = RecordDict({_BODY: ConfigRecord({_FIELDS: self.model_dump_json()})})
        for name, tensors in arrays.items():
            records[name] = ArrayRecord.from_torch_state_dict(dict(tensors))
        if samples is not None:
            columns = {name: torch.from_numpy(np.ascontiguousarray(column)) for name, column in vars(samples).items()}
            records[_SAMPLES] = ArrayRecord.from_torch_state_dict(columns)
        return records

    @classmethod
    def from_records(cls, records: RecordDict, sender: str) -> Self:
        """Unpack the fields.

        Raises
        ------
        MessageError
            If a field is missing, unknown or not valid; the text names it and the sender.
        """
        body = records.get(_BODY)
        if not isinstance(body, ConfigRecord) or not isinstance(body.get(_FIELDS), str):
            raise MessageError(f"{sender} sent no {cls.__name__}; it may run another release of dlfd-fleet.")
        text = str(body[_FIELDS])
        if len(text) > cls.LARGEST:
            raise MessageError(f"{sender} sent a {cls.__name__} of {len(text)} characters, above {cls.LARGEST}.")
        try:
            return cls.model_validate_json(text, strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            key = ".".join(str(part) for part in first["loc"]) or "the whole message"
            said = visible(f"'{key}': {first['msg']}", _WORDS_SHOWN)
            raise MessageError(f"{sender} sent a wrong {cls.__name__}: {said}.") from None
        except Exception as error:  # of made-up text, such as one that is no Unicode
            raise MessageError(
                f"{sender} sent a {cls.__name__} that cannot be read ({type(error).__name__})."
            ) from None


def arrays_of(records: RecordDict, name: str, sender: str) -> Arrays:
    """Return the named arrays of a message.

    Raises
    ------
    MessageError
        If they are missing or cannot be read; the text names the sender.
    """
    record = records.get(name)
    if not isinstance(record, ArrayRecord):
        raise MessageError(f"{sender} sent no '{name}' arrays.")
    if len(record) > MOST_TENSORS:
        raise MessageError(f"{sender} sent {len(record)} '{name}' arrays, above {MOST_TENSORS}.")
    try:
        return dict(record.to_torch_state_dict())
    except Exception as error:  # made-up bytes lead numpy to errors of many kinds
        raise MessageError(f"{sender} sent '{name}' arrays that cannot be read ({type(error).__name__}).") from error


def file_arrays(content: bytes) -> Arrays:
    """Return the bytes of a file as arrays, to be sent as ``file=``."""
    return {FILE: torch.frombuffer(bytearray(content), dtype=torch.uint8)}


def bytes_of(records: RecordDict, sender: str) -> bytes:
    """Return the bytes of a sent file."""
    arrays = arrays_of(records, FILE, sender)
    if arrays.keys() != {FILE} or arrays[FILE].dtype != torch.uint8:
        raise MessageError(f"{sender} sent no file.")
    return arrays[FILE].numpy().tobytes()


def samples_of(records: RecordDict, classes: int, sender: str, *, multi_label: bool = False) -> SampleScores:
    """Return the audited samples of a message, checked against the model's number of classes or labels.

    Raises
    ------
    MessageError
        If a column is missing, has a wrong type, shape or length, or has impossible values.
    """
    answers = numbers_of_labels(classes) if multi_label else (classes,)
    columns = {name: value.numpy() for name, value in arrays_of(records, _SAMPLES, sender).items()}
    if columns.keys() != _COLUMNS.keys():
        found = visible(str(sorted(columns)), _WORDS_SHOWN)
        raise MessageError(f"{sender} sent samples with the columns {found}; expected {sorted(_COLUMNS)}.")
    for name, column in columns.items():
        if column.size > MOST_SAMPLES:
            raise MessageError(f"{sender} sent {column.size} samples, above {MOST_SAMPLES}.")
        wide = (len(answers),) if name in _ANSWERS and len(answers) > 1 else ()
        if column.shape[1:] != wide or not column.ndim or column.dtype != _COLUMNS[name]:
            raise MessageError(f"{sender} sent samples whose '{name}' is {column.dtype} {column.shape}.")
    try:
        samples = SampleScores(**columns)
    except DataError as error:
        raise MessageError(f"{sender}: {error}") from error
    # What reads them counts by these numbers: a large one would take all memory.
    largest = _LARGEST_LOSS * (classes if multi_label else 1)
    ends = {"role": [len(ROLES)], "person": [2**32], "label": answers, "prediction": answers, "loss": [largest]}
    for name, each in ends.items():
        for column, end in zip(numbers(columns[name]), each, strict=True):
            if not ((column >= 0) & (column < end)).all():
                raise MessageError(f"{sender} sent samples whose '{name}' is not from 0 to under {end}.")
    return samples
