"""Load an exported model and predict images or numbers on a device."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, Json, ValidationError

from dlfd_fleet.answers import named
from dlfd_fleet.exceptions import DeviceError
from dlfd_fleet.images import read_pixels
from dlfd_fleet.model_input import ModelInput
from dlfd_fleet.onnx_session import open_session

BATCH = 32
_FEWEST_CLASSES = 2  # but one label is enough
DATA_SUFFIX = ".data"


class _Card(BaseModel):
    """The metadata that a device uses; the rest is only shown."""

    model_config = ConfigDict(frozen=True, alias_generator=lambda name: f"dlfd.{name}")

    classes: Json[Annotated[tuple[str, ...], Field(min_length=1)]]
    input: Json[ModelInput]
    multi_label: Json[bool]
    version: str
    epoch: Annotated[int, Field(ge=0)]


class DeviceModel:
    """A classifier exported by dlfd-fleet, loaded with ONNX Runtime on the CPU.

    Parameters
    ----------
    file
        ONNX file.
    threads
        Threads of one prediction. They sleep between predictions.
    sha256
        Digest that the file must have. Default: any.

    Raises
    ------
    DeviceError
        If the file is missing, damaged, or not one that dlfd-fleet exported.
    """

    def __init__(self, file: Path, threads: int = 1, sha256: str | None = None) -> None:
        if threads < 1:
            raise DeviceError(f"A model needs at least 1 thread, not {threads}.")
        self._session = _load(file, threads, sha256)
        self._metadata = dict(sorted(self._session.get_modelmeta().custom_metadata_map.items()))
        self._card = _read_card(self._metadata, file)
        _check_signature(self._session, self._card, file)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the probabilities."""
        return self._card.classes

    @property
    def input(self) -> ModelInput:
        """What the model takes."""
        return self._card.input

    @property
    def multi_label(self) -> bool:
        """Whether the classes are labels; otherwise the probabilities of an input sum to 1."""
        return self._card.multi_label

    @property
    def version(self) -> str:
        """Version of the model in the fleet's registry."""
        return self._card.version

    @property
    def epoch(self) -> int:
        """Erasure epoch: how many released erasures the model has behind it."""
        return self._card.epoch

    @property
    def metadata(self) -> Mapping[str, str]:
        """All metadata of the file, by key (``dlfd.*``)."""
        return dict(self._metadata)

    def predict(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """Return the probabilities of every class for every image.

        Parameters
        ----------
        images
            uint8 ``(N, H, W, C)``, RGB or grey; for a model of numbers, float32 ``(N, *shape)`` in its range.

        Returns
        -------
        ndarray
            float32 ``(N, C)``; each row sums to 1, unless the classes are labels that apply or not by themselves.

        Raises
        ------
        DeviceError
            If the images have another shape or type, or numbers are out of the range.
        """
        if reason := self.input.why_not(images):
            raise DeviceError(f"{reason[0].upper()}{reason[1:]}.")
        probabilities = np.empty((len(images), len(self.classes)), dtype=np.float32)
        for start in range(0, len(images), BATCH):
            batch = images[start : start + BATCH]
            probabilities[start : start + BATCH] = self._session.run(None, {self.input.tensor_name: batch})[0]
        return probabilities

    def named(self, probabilities: NDArray[np.float32]) -> list[str]:
        """Return the name of each image's class, or of the labels that apply, such as ``hat;glasses`` or ``none``."""
        return named(probabilities, self.classes, multi_label=self.multi_label)


def read_image(file: Path, model_input: ModelInput) -> NDArray[np.uint8]:
    """Read an image as sites do for training (:func:`~dlfd_fleet.images.read_pixels`), uint8 ``(H, W, C)``.

    Raises
    ------
    DeviceError
        If the model takes no grey or RGB images.
    ImageError
        If the file is missing, damaged or no usable image.
    """
    if not model_input.of_files:
        raise DeviceError(f"The model takes {model_input.sentence()}, and no image files; send it arrays.")
    return read_pixels(file, model_input)


def _load(file: Path, threads: int, sha256: str | None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        # Bytes, not the path: a file that points at further files has nothing to load them from but its own weights.
        data = file.with_name(file.name + DATA_SUFFIX)
        weights = data.read_bytes() if data.exists() else b""
        if weights:
            options.add_external_initializers_from_files_in_memory([data.name], [weights], [len(weights)])
        content = file.read_bytes()
        if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
            raise DeviceError(f"The model {file} is not the file that was signed: it was damaged or exchanged.")
        session = open_session(content, options)
    except DeviceError:
        raise
    except OSError as error:
        raise DeviceError(f"Cannot read the model {file}: {error.strerror}.") from error
    except Exception as error:  # ONNX Runtime's errors have no base class but Exception
        raise DeviceError(f"The model {file} is damaged or not an ONNX file: fetch it again.") from error
    expected = session.get_modelmeta().custom_metadata_map.get("dlfd.data_sha256", "")
    if expected and hashlib.sha256(weights).hexdigest() != expected:
        raise DeviceError(f"The weights {data} are not those of {file}: fetch both again.")
    return session


def _read_card(metadata: Mapping[str, str], file: Path) -> _Card:
    try:
        card = _Card.model_validate(metadata)
    except ValidationError as error:
        raise _no_usable(error.errors()[0]["loc"][0], file) from error
    if len(card.classes) < _FEWEST_CLASSES and not card.multi_label:
        raise _no_usable("dlfd.classes", file)
    return card


def _no_usable(key: int | str, file: Path) -> DeviceError:
    return DeviceError(f"The model {file} was not exported by dlfd-fleet: its metadata has no usable '{key}'.")


def _check_signature(session: onnxruntime.InferenceSession, card: _Card, file: Path) -> None:
    def described(values: list[Any]) -> list[tuple[str, str, list[Any]]]:
        return [(value.name, value.type, list(value.shape[1:])) for value in values]

    kind = "tensor(uint8)" if card.input.is_image else "tensor(float)"
    inputs = [(card.input.tensor_name, kind, list(card.input.device_shape))]
    outputs = [("probabilities", "tensor(float)", [len(card.classes)])]
    if described(session.get_inputs()) != inputs or described(session.get_outputs()) != outputs:
        raise DeviceError(
            f"The model {file} does not take the images or give the probabilities that its metadata names: "
            "export it again with dlfd-fleet."
        )
