"""MLflow as tests look at it."""

from __future__ import annotations

from mlflow import MlflowClient


def client_of(uri: str) -> MlflowClient:
    """A client of one server for runs and models alike, whatever another test of this process has made the default."""
    return MlflowClient(tracking_uri=uri, registry_uri=uri)
