"""MLflow's deployment target ``dlfd-fleet``: registered versions go to the fleet's devices.

``mlflow deployments create -t dlfd-fleet --name cameras -m models:/dlfd-fleet@champion``
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
from mlflow.deployments import BaseDeploymentClient, PredictionsResponse
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_ALREADY_EXISTS, RESOURCE_DOES_NOT_EXIST
from numpy.typing import NDArray

from dlfd_fleet.configuration import load_settings
from dlfd_fleet.delivery.delivery import has_delivery
from dlfd_fleet.delivery.delivery import opened as opened_delivery
from dlfd_fleet.delivery.publish import offered, publish
from dlfd_fleet.exceptions import FleetError, JobError, file_refusal
from dlfd_fleet.federation.records.job_folders import ONNX_FILE
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.federation.release.promotion import fleet_epoch
from dlfd_fleet.federation.release.publication import released_model
from dlfd_fleet.model_input import ModelInput
from dlfd_fleet.plain_text import visible
from dlfd_fleet.plugins.deployed import Deployment, Deployments, new_deployment
from dlfd_fleet.settings import Settings
from dlfd_fleet.tracking import open_registry
from dlfd_fleet.tracking.registry import RegisteredVersion, Registry, why_not_published

_HELP = """\
Publishes registered versions of the fleet's model to its devices.

  mlflow deployments create -t dlfd-fleet --name NAME -m models:/dlfd-fleet/3
  mlflow deployments create -t dlfd-fleet --name NAME -m models:/dlfd-fleet@champion

It is signed into the repository that devices update from (`dlfd-fleet delivery init` makes one), as
`dlfd-fleet publish` does: for every device at once, or by rings with `-C rings=true` and `dlfd-fleet rollout start`.
Keys that lie elsewhere are named with `-C keys=FOLDER`, several folders separated by commas.

The target URI is `dlfd-fleet`; there are no endpoints. The coordinator's state folder and the MLflow server are those
of dlfd-fleet's settings: DLFD_FLEET_STATE_FOLDER, or a file named by DLFD_FLEET_CONFIG, and MLFLOW_TRACKING_URI.

Refused are versions that are revoked, were never promoted, failed their audit, or are under the erasure epoch of the
champion or of what devices may run. Deleting a deployment does not lower that floor, nor takes it a model from devices:
they run it until a newer one comes.

predict takes images, uint8 pixels of shape (N, H, W, C): an array, or JSON {"images": [...]}. A model of numbers takes
rows of them in its range: an array, or JSON {"inputs": [...]}.
"""


class RefusedError(MlflowException, click.ClickException):  # type: ignore[misc]
    """The exception that MLflow's API expects; its command shows it as one sentence."""

    exit_code = 2


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except FleetError as error:
        raise RefusedError(visible(str(error)), error_code=INVALID_PARAMETER_VALUE) from error
    except OSError as error:
        refusal = file_refusal(error)
        if refusal is None:
            raise
        raise RefusedError(visible(refusal), error_code=INVALID_PARAMETER_VALUE) from error


class FleetDeploymentClient(BaseDeploymentClient):
    """Deployments of the fleet whose state folder the settings name."""

    def __init__(self, target_uri: str) -> None:
        super().__init__(target_uri)  # type: ignore[no-untyped-call]
        with _refusals():
            self._settings: Settings = load_settings().settings
        self._deployments = Deployments(self._settings.state_folder)

    def create_deployment(
        self,
        name: str,
        model_uri: str,
        flavor: str | None = None,
        config: dict[str, Any] | None = None,
        endpoint: str | None = None,
    ) -> dict[str, Any]:
        """Publish a registered version to the fleet under a new name."""
        with _refusals():
            if self._deployments.get(name):
                raise RefusedError(
                    f"There is a deployment '{name}' already; update it.", error_code=RESOURCE_ALREADY_EXISTS
                )
            return self._publish(name, model_uri, flavor, config, endpoint)

    def update_deployment(
        self,
        name: str,
        model_uri: str | None = None,
        flavor: str | None = None,
        config: dict[str, Any] | None = None,
        endpoint: str | None = None,
    ) -> dict[str, Any]:
        """Publish another version under a name that there is."""
        with _refusals():
            deployment = self._known(name)
            return self._publish(name, model_uri or deployment.model_uri, flavor, config, endpoint)

    def delete_deployment(self, name: str, config: dict[str, Any] | None = None, endpoint: str | None = None) -> None:
        """Forget a deployment, if there is one; the least epoch that may be deployed does not fall."""
        with _refusals():
            _no_options(config, endpoint)
            self._deployments.delete(name)

    def list_deployments(self, endpoint: str | None = None) -> list[dict[str, Any]]:
        """Return every deployment."""
        with _refusals():
            _no_options(None, endpoint)
            return [self._described(deployment) for deployment in self._deployments.all()]

    def get_deployment(self, name: str, endpoint: str | None = None) -> dict[str, Any]:
        """Return one deployment."""
        with _refusals():
            _no_options(None, endpoint)
            return self._described(self._known(name))

    def predict(
        self, deployment_name: str | None = None, inputs: Any = None, endpoint: str | None = None
    ) -> PredictionsResponse:
        """Return the probability of every class for every image or row, as a device would answer."""
        with _refusals():
            _no_options(None, endpoint)
            deployment = self._known(deployment_name or "")
            if deployment.epoch < self._floor():
                raise JobError(
                    f"The deployment '{deployment.name}' has the epoch {deployment.epoch}, under the fleet's "
                    f"{self._floor()}: it may not run; update it."
                )
            return _answer(self._model_folder(deployment.job) / ONNX_FILE, inputs)

    # ------------------------------------------------------------------ what they have in common

    def _publish(
        self, name: str, model_uri: str, flavor: str | None, config: dict[str, Any] | None, endpoint: str | None
    ) -> dict[str, Any]:
        rings, keys = _options(dict(config or {}))
        _no_options(None, endpoint)
        if flavor not in (None, "onnx"):
            raise JobError(f"Devices run the flavor 'onnx', not '{flavor}'.")
        version = _version(self._settings, model_uri, self._floor())
        publication = _publication(self._settings, version, keys, rings=rings)
        deployment = new_deployment(name, model_uri, version.version, version.job, version.epoch, publication)
        self._deployments.keep(deployment)
        return self._described(deployment)

    def _known(self, name: str) -> Deployment:
        deployment = self._deployments.get(name)
        if deployment is None:
            raise RefusedError(f"There is no deployment '{name}'.", error_code=RESOURCE_DOES_NOT_EXIST)
        return deployment

    def _floor(self) -> int:
        """Return the least epoch that may run: of the champion, and of what devices were told."""
        if not has_delivery(self._settings):
            return fleet_epoch(self._settings)
        with opened_delivery(self._settings) as delivery:
            return max(delivery.devices.floor(), fleet_epoch(self._settings))

    def _described(self, deployment: Deployment) -> dict[str, Any]:
        state = "may run" if deployment.epoch >= self._floor() else "under the fleet's epoch, may not run"
        return {**deployment.model_dump(mode="json"), "state": state}

    def _model_folder(self, job: str) -> Path:
        return _model_folder(self._settings, job)


def run_local(name: str, model_uri: str, flavor: str | None = None, config: dict[str, Any] | None = None) -> None:
    """Load a version as a device does, let it answer one drawn image, and say what it is; nothing is published."""
    from dlfd_fleet.device.inference import DeviceModel

    with _refusals():
        _no_options(config, None)
        settings = load_settings().settings
        version = _version(settings, model_uri, fleet_epoch(settings))
        model = DeviceModel(_model_folder(settings, version.job) / ONNX_FILE)
        image = model.input.random(1)
        (answer,) = model.named(model.predict(image))
        said = f"{name}: {flavor or 'onnx'} {model.version}, epoch {model.epoch}, answers '{answer}' to noise."
        click.echo(visible(said))


def target_help() -> str:
    """Return what ``mlflow deployments help -t dlfd-fleet`` shows."""
    return _HELP


def _model_folder(settings: Settings, job: str) -> Path:
    with closing(Store(settings.state_folder)) as store:
        return store.folders.model(job)


def _version(settings: Settings, model_uri: str, epoch: int) -> RegisteredVersion:
    """Return the registered version that a URI names, if it may be published."""
    with open_registry(settings.tracking, settings.state_folder) as registry:
        version = _resolved(registry, model_uri)
    reason = why_not_published(version, epoch)
    if reason:
        raise JobError(reason)
    return version


def _resolved(registry: Registry, model_uri: str) -> RegisteredVersion:
    body = model_uri.removeprefix("models:/").strip("/")
    name, _, alias = body.partition("@")
    number = ""
    if not alias:
        name, _, number = body.rpartition("/")
    if not model_uri.startswith("models:/") or name != registry.name:
        raise JobError(
            f"'{model_uri}' is no version of the registered model '{registry.name}'; give "
            f"models:/{registry.name}/VERSION or models:/{registry.name}@champion."
        )
    if not alias:
        return registry.version(number)
    found = next((version for version in registry.versions() if alias in version.aliases), None)
    if found is None:
        raise JobError(f"No version of '{registry.name}' has the alias '{alias}'.")
    return found


def _publication(settings: Settings, version: RegisteredVersion, keys: Sequence[Path], *, rings: bool) -> int:
    """Sign a version for devices, unless they are offered it already; return the publication."""
    with closing(Store(settings.state_folder)) as store:
        model = released_model(store, settings, version.job)
    with opened_delivery(settings, keys) as delivery:
        known = offered(delivery.repository, model.version)
        return known or publish(delivery.repository, delivery.devices, model, rings=rings).sequence


def _options(config: dict[str, Any]) -> tuple[bool, list[Path]]:
    """Return whether to publish by rings, and the folders of keys beside the delivery's."""
    rings = str(config.pop("rings", "false")).lower()
    keys = [Path(folder) for folder in str(config.pop("keys", "")).split(",") if folder]
    if config or rings not in ("true", "false"):
        raise JobError("The target dlfd-fleet has two config options: rings=true or rings=false, and keys=FOLDER.")
    return rings == "true", keys


def _no_options(config: dict[str, Any] | None, endpoint: str | None) -> None:
    if config or endpoint:
        raise JobError("The target dlfd-fleet has no endpoints, and options for publishing only; leave them out.")


def _answer(onnx_file: Path, inputs: Any) -> PredictionsResponse:
    from dlfd_fleet.device.inference import DeviceModel

    model = DeviceModel(onnx_file)
    probabilities = model.predict(_batch(inputs, model.input)).astype(float)
    rows = [dict(zip(model.classes, row, strict=True)) for row in probabilities.tolist()]
    return PredictionsResponse(predictions=rows)


def _batch(inputs: Any, wanted: ModelInput) -> NDArray[Any]:
    """Take images or rows from what MLflow hands over: an array, a frame read from JSON, or a mapping."""
    name = wanted.tensor_name
    try:
        return wanted.batch(inputs if isinstance(inputs, np.ndarray) else list(inputs[name]))
    except (KeyError, TypeError, IndexError) as error:
        raise JobError(f'The model takes {wanted.sentence()}, a list of each under "{name}".') from error
    except ValueError as error:
        raise JobError(f"The {name} cannot be used: {error}.") from error
