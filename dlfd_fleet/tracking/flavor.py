"""Log ONNX models in MLflow so that their pyfunc names the answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnx
from mlflow.models import Model, ModelSignature
from mlflow.models.model import ModelInfo
from mlflow.types.schema import ColSpec, Schema, TensorSpec
from numpy.typing import NDArray

from dlfd_fleet.tracking import dlfd_answers

_CLASSES, _MULTI_LABEL = "dlfd.classes", "dlfd.multi_label"


class NamedOnnx:
    """MLflow's ONNX flavor with another loader for its pyfunc."""

    @staticmethod
    def save_model(path: str, mlflow_model: Model, **options: Any) -> None:
        """Save a model as ``mlflow.onnx`` does, and a copy of :mod:`~dlfd_fleet.tracking.dlfd_answers` beside it."""
        mlflow.onnx.save_model(path=path, mlflow_model=mlflow_model, code_paths=[str(dlfd_answers.__file__)], **options)
        mlflow_model.flavors["python_function"]["loader_module"] = Path(str(dlfd_answers.__file__)).stem
        mlflow_model.save(str(Path(path) / "MLmodel"))


def has_names(onnx_model: onnx.ModelProto) -> bool:
    """Tell whether a file has names of its classes."""
    return _CLASSES in _metadata(onnx_model)


def log_named(onnx_model: onnx.ModelProto, example: NDArray[Any], **options: Any) -> ModelInfo:
    """Log a model whose file names its classes or labels, with the signature of its pyfunc."""
    metadata = _metadata(onnx_model)
    classes = json.loads(metadata[_CLASSES])
    takes: list[ColSpec | TensorSpec] = [TensorSpec(example.dtype, (-1, *example.shape[1:]))]
    answers: list[ColSpec | TensorSpec] = [
        TensorSpec(np.dtype(np.float32), (-1, len(classes)), "probabilities"),
        TensorSpec(np.dtype(str), (-1,), "answer"),
    ]
    logged: ModelInfo = Model.log(
        artifact_path=None,
        name="model",
        flavor=NamedOnnx,
        onnx_model=onnx_model,
        input_example=example,
        signature=ModelSignature(Schema(takes), Schema(answers)),
        metadata={"classes": classes, "multi_label": json.loads(metadata[_MULTI_LABEL])},
        **options,
    )
    return logged


def _metadata(onnx_model: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx_model.metadata_props}
