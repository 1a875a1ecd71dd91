"""What MLflow still has of runs that somebody deleted: it marks them as deleted, and keeps their files."""

from __future__ import annotations

from mlflow.entities import ViewType

from dlfd_fleet.tracking.registry import Registry

_MOST = 1000


def deleted_runs_sentence(registry: Registry) -> list[str]:
    """Say how many deleted runs MLflow still has files of, and how they go; nothing if there are none.

    Versions that remember forgotten people are no part of it: their files are deleted when they are revoked.
    """
    experiments = [found.experiment_id for found in registry.client.search_experiments(view_type=ViewType.ALL)]
    deleted = registry.client.search_runs(experiments, "", run_view_type=ViewType.DELETED_ONLY, max_results=_MOST)
    if not deleted:
        return []
    many = "1 deleted run" if len(deleted) == 1 else f"{len(deleted)} deleted runs"
    store = f" --backend-store-uri {registry.uri}" if registry.uri.startswith("sqlite:") else ""
    where = "" if store else " on its server"
    return [f"MLflow keeps the files of {many}; `mlflow gc{store}`{where} deletes them."]
