"""MLflow's evaluator ``dlfd``: the forgetting audit by ``mlflow.models.evaluate``.

One row of the data frame is an image, or a row of numbers:

========== ================================================================================================
``role``   retain, forget, validation or test: trained on; asked to be forgotten; never trained on (two parts)
``person`` whose image it is; only equality counts, and nothing of it is recorded: use numbers, not names
targets    number of the true class, in the order of the probabilities (``targets="label"``); of a model with labels, a
           list of 0 and 1, which says of each label whether it applies
========== ================================================================================================

What the model says of it is either a column of probabilities, one list a row (``predictions="probabilities"``, no
model), or is asked of the model: on the column ``image``, pixels ``(H, W, C)``, uint8; or of a model whose file says
that it takes numbers, on the column ``input``, numbers in its range. With ``evaluator_config`` ``{"original": ...}``, a
column of the original model's probabilities or the URI of that model, there is a verdict.

>>> mlflow.models.evaluate(  # doctest: +SKIP
...     "models:/dlfd-fleet/3", frame, targets="label", model_type="classifier", evaluators="dlfd",
...     evaluator_config={"original": "models:/dlfd-fleet/1"},
... )
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.models.evaluation.base import EvaluationResult, ModelEvaluator
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from numpy.typing import NDArray
from pydantic import ValidationError

from dlfd_fleet.exceptions import DataError, FleetError
from dlfd_fleet.model_input import ModelInput

if TYPE_CHECKING:
    from dlfd_fleet.audit import SampleScores
    from dlfd_fleet.settings import AuditSettings

_FEWEST_CLASSES = 2
_ROLE, _PERSON, _IMAGE, _INPUT, _ORIGINAL = "role", "person", "image", "input", "original"


class ForgettingEvaluator(ModelEvaluator):
    """Attacks a classifier: scores with bounds, histograms of losses and, beside the original, the verdict."""

    @classmethod
    def can_evaluate(cls, *, model_type: str | None, **_more: Any) -> bool:
        """Tell whether this is a classifier."""
        return model_type in (None, "classifier")

    def evaluate(
        self,
        *,
        dataset: Any,
        run_id: str,
        evaluator_config: Mapping[str, Any] | None,
        model: Any = None,
        **_more: Any,
    ) -> EvaluationResult:
        """Audit a model, or its probabilities, and log scores, verdict and figure into the run.

        Raises
        ------
        MlflowException
            If a column or setting is missing or wrong.
        """
        from dlfd_fleet.audit import judge, measure

        try:
            config = dict(evaluator_config or {})
            original = config.pop(_ORIGINAL, None)
            settings = _audit_settings(config)
            truth = _truth(dataset)
            panels = {"model": _samples(dataset, truth, _probabilities(dataset, model))}
            if original is not None:
                panels[_ORIGINAL] = _samples(dataset, truth, _probabilities_of_original(dataset, str(original)))
            labels = truth.shape[1] if truth.ndim > 1 else None
            scores = {
                name: measure(panel, resamples=settings.resamples, labels=labels) for name, panel in panels.items()
            }
            metrics = dict(scores["model"].metrics())
            verdict = None
            if original is not None:
                metrics |= {f"{_ORIGINAL}.{name}": value for name, value in scores[_ORIGINAL].metrics().items()}
                verdict = judge(scores[_ORIGINAL], scores["model"], settings)
        except FleetError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from error
        artifacts = _log(run_id, metrics, panels, verdict.model_dump(mode="json") if verdict else None)
        return EvaluationResult(metrics=metrics, artifacts=artifacts, run_id=run_id)  # type: ignore[no-untyped-call]


def _audit_settings(config: Mapping[str, Any]) -> AuditSettings:
    from pydantic import ValidationError

    from dlfd_fleet.settings import AuditSettings

    try:
        return AuditSettings(**config)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise DataError(
            f"evaluator_config '{key}': {first['msg']}; it takes 'original' and the audit's settings."
        ) from error


def _truth(dataset: Any) -> NDArray[np.int64]:
    """Return the true classes ``(N,)``, or which labels apply ``(N, L)``."""
    if dataset.labels_data is None:
        raise DataError("The data has no true classes; name their column with targets=.")
    try:
        truth = np.array([np.asarray(value) for value in dataset.labels_data])
    except ValueError as error:
        raise DataError("The true labels are not one list of 0 and 1 a row, all of one length.") from error
    if not np.issubdtype(truth.dtype, np.integer):
        raise DataError("The true classes must be whole numbers; or lists of 0 and 1, one number a label.")
    return truth.astype(np.int64)


def _samples(dataset: Any, label: NDArray[np.int64], probabilities: NDArray[np.float64]) -> SampleScores:
    from dlfd_fleet.audit.samples import ROLES, SampleScores

    frame = _column_frame(dataset, _ROLE, _PERSON)
    known = [role.value for role in ROLES]
    unknown = set(map(str, frame[_ROLE])) - set(known)
    if unknown:
        raise DataError(f"The role '{sorted(unknown)[0]}' is none of {', '.join(known)}.")
    columns = probabilities.shape[1]
    if label.ndim > 1 and (label.shape[1:] != (columns,) or not np.isin(label, (0, 1)).all()):
        raise DataError(f"The true labels must be lists of {columns} numbers, each 0 or 1.")
    if label.ndim == 1 and (columns < _FEWEST_CLASSES or label.min() < 0 or label.max() >= columns):
        raise DataError(f"The true classes must be whole numbers from 0 to {columns - 1}, of two classes or more.")
    _, person = np.unique(frame[_PERSON].astype(str).to_numpy(), return_inverse=True)
    role = np.array([known.index(str(value)) for value in frame[_ROLE]], dtype=np.uint8)
    return SampleScores.from_probabilities(probabilities, label, person.astype(np.int64), role)


def _probabilities(dataset: Any, model: Any) -> NDArray[np.float64]:
    if model is None:
        if dataset.predictions_data is None:
            raise DataError("There is no model and no column of probabilities; name one with predictions=.")
        return _matrix(list(dataset.predictions_data))
    answer = model.predict(_inputs(dataset, _input_of(model)))
    if isinstance(answer, Mapping):
        answer = next(iter(answer.values()))
    return _matrix(answer)


def _inputs(dataset: Any, wanted: ModelInput | None) -> NDArray[Any]:
    """Return what a model is asked about; one whose file does not say what it takes is asked about pixels."""
    column = _INPUT if wanted is not None and not wanted.is_image else _IMAGE
    given = list(_column_frame(dataset, column)[column])
    if wanted is None:
        return np.stack([np.asarray(image, dtype=np.uint8) for image in given])
    try:
        return wanted.batch(given)
    except ValueError as error:
        raise DataError(f"The column '{column}' cannot be used: {error}.") from error


def _input_of(model: Any) -> ModelInput | None:
    """Return what a registered model's own file says that it takes; None of any other model."""
    try:
        card = model.get_raw_model().get_modelmeta().custom_metadata_map["dlfd.input"]
    except (AttributeError, KeyError, NotImplementedError):
        return None
    try:
        return ModelInput.model_validate_json(card)
    except ValidationError as error:
        raise DataError(
            f"The model's file says in its metadata 'dlfd.input' what it takes, and that cannot be read ({card:.80}); "
            "evaluate the answers instead, as a column named by predictions=."
        ) from error


def _probabilities_of_original(dataset: Any, original: str) -> NDArray[np.float64]:
    if original in dataset.features_data:
        return _matrix(list(dataset.features_data[original]))
    if ":/" not in original:
        raise DataError(f"The original '{original}' is neither a column of the data nor the URI of a model.")
    import mlflow

    return _probabilities(dataset, mlflow.pyfunc.load_model(original))


def _matrix(rows: Any) -> NDArray[np.float64]:
    try:
        matrix = np.asarray(rows, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError("The probabilities are not one list of numbers a row, all of one length.") from error
    if matrix.ndim != 2 or matrix.shape[1] < 1 or not np.isfinite(matrix).all():
        raise DataError("The probabilities are not one list of numbers a row, all of one length.")
    return matrix


def _column_frame(dataset: Any, *columns: str) -> Any:
    frame = dataset.features_data
    missing = [name for name in columns if name not in getattr(frame, "columns", ())]
    if missing:
        raise DataError(f"The data has no column '{missing[0]}'; the forgetting audit needs it for every row.")
    return frame


def _log(
    run_id: str, metrics: Mapping[str, float], panels: Mapping[str, SampleScores], verdict: dict[str, Any] | None
) -> dict[str, Any]:
    """Log into the run; return the artifacts as MLflow wants them."""
    from mlflow import MlflowClient
    from mlflow.models.evaluation.artifacts import ImageEvaluationArtifact, JsonEvaluationArtifact

    from dlfd_fleet.audit import Role
    from dlfd_fleet.tracking.figures import loss_histograms
    from dlfd_fleet.tracking.registry import VERDICT_TAG

    client, artifacts = MlflowClient(), {}
    for name, value in metrics.items():
        client.log_metric(run_id, name, value)
    roles = {"forget": Role.FORGET, "retain": Role.RETAIN, "unseen": Role.TEST}
    losses = {name: {part: panel.of(role).loss for part, role in roles.items()} for name, panel in panels.items()}
    contents = {"dlfd_losses.png": loss_histograms(losses)}
    if verdict is not None:
        client.set_tag(run_id, VERDICT_TAG, verdict["outcome"])
        contents["dlfd_verdict.json"] = json.dumps(verdict, indent=2).encode()
    with tempfile.TemporaryDirectory() as temporary:
        for name, content in contents.items():
            file = Path(temporary) / name
            file.write_bytes(content)
            client.log_artifact(run_id, str(file))
            kind = JsonEvaluationArtifact if name.endswith(".json") else ImageEvaluationArtifact
            artifact = kind(uri=f"runs:/{run_id}/{name}")
            artifact._load(str(file))  # type: ignore[no-untyped-call] # MLflow's own way to fill one
            artifacts[file.stem] = artifact
    return artifacts
