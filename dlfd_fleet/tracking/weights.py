"""The weights of models that MLflow has: they lie in the run beside the ONNX model that is registered."""

from __future__ import annotations

from pathlib import Path

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.exceptions import MlflowException

from dlfd_fleet.exceptions import TrackingError
from dlfd_fleet.tracking.local_store import prepare_store
from dlfd_fleet.tracking.purge import WEIGHTS_FOLDER
from dlfd_fleet.tracking.registry import REVOKED_TAG, VERDICT_TAG, answers, is_refusal

_MODELS, _RUNS = "models:/", "runs:/"


def is_of_mlflow(source: str) -> bool:
    """Tell whether this names a model or a run of MLflow, and no folder."""
    return source.startswith((_MODELS, _RUNS))


def downloaded_weights(source: str, uri: str, folder: Path) -> Path:
    """Download the weights of a model that MLflow has, and return where they are.

    Parameters
    ----------
    source
        ``models:/NAME/VERSION`` or ``models:/NAME@ALIAS`` of this product's models, or any run's ``runs:/RUN/PATH``.

    Raises
    ------
    TrackingError
        If there is no such model, it was revoked or failed its audit, it has no weights beside it, or MLflow does not
        answer.
    """
    with answers(uri):
        prepare_store(uri)
        try:
            place = source if source.startswith(_RUNS) else _place_of(source, MlflowClient(uri, uri))
            return Path(download_artifacts(artifact_uri=place, dst_path=str(folder), tracking_uri=uri))
        except MlflowException as error:
            if is_refusal(error):
                raise TrackingError(f"MLflow at {uri} has no weights of {source}: {error.message}") from error
            raise


def _place_of(source: str, client: MlflowClient) -> str:
    """Return where the weights of a registered version are."""
    name, at, alias = source.removeprefix(_MODELS).partition("@")
    if at:
        version = client.get_model_version_by_alias(name, alias)
    else:
        name, _, number = name.partition("/")
        version = client.get_model_version(name, number)
    if reason := version.tags.get(REVOKED_TAG):
        raise TrackingError(f"{source} was revoked: {reason}")
    if version.tags.get(VERDICT_TAG) == "FAIL":
        raise TrackingError(f"{source} failed its audit, and is not imported.")
    return f"{_RUNS}{version.run_id}/{WEIGHTS_FOLDER}"
