"""Load a registered model in MLflow: ONNX Runtime's probabilities and the name of each answer.

A copy of this file is stored with every registered model, so it can be served without dlfd-fleet.
"""

import json
from typing import Any

import mlflow.onnx
import numpy as np
from mlflow.exceptions import MlflowException

_APPLIES = 0.5


class NamedAnswers:
    """Adds ``answer``: the class of each input, or the labels that apply, such as ``hat;glasses``."""

    def __init__(self, path: str) -> None:
        self._model = mlflow.onnx._load_pyfunc(path)
        metadata = self._model.get_raw_model().get_modelmeta().custom_metadata_map
        self._classes = json.loads(metadata["dlfd.classes"])
        self._multi_label = json.loads(metadata["dlfd.multi_label"])
        self._input = json.loads(metadata["dlfd.input"])

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> dict[str, np.ndarray]:
        """Return ``probabilities`` ``(N, C)``, in the order of the metadata's classes, and ``answer`` ``(N,)``.

        Raises
        ------
        MlflowException
            If numbers are out of the range that the model takes.
        """
        given = data if isinstance(data, dict) else np.asarray(data)
        if self._input["kind"] == "numbers":
            self._refuse_outside(given["inputs"] if isinstance(given, dict) else given)
        probabilities = self._model.predict(given, params)["probabilities"]
        if self._multi_label:
            shown = [
                [name for name, one in zip(self._classes, row, strict=True) if one >= _APPLIES] for row in probabilities
            ]
            names = [";".join(labels) or "none" for labels in shown]
        else:
            names = [self._classes[number] for number in probabilities.argmax(axis=1)]
        return {"probabilities": probabilities, "answer": np.array(names, dtype=object)}

    def _refuse_outside(self, numbers: Any) -> None:
        low, high, values = self._input["low"], self._input["high"], np.asarray(numbers, np.float32)
        if values.size and not (np.float32(low) <= values.min() and values.max() <= np.float32(high)):  # nor a NaN
            raise MlflowException.invalid_parameter_value(
                f"The inputs go from {values.min():g} to {values.max():g}, and the model takes {low:g} to {high:g}."
            )

    def get_raw_model(self) -> Any:
        """Return ONNX Runtime's session."""
        return self._model.get_raw_model()


def _load_pyfunc(path: str) -> NamedAnswers:
    return NamedAnswers(path)
