"""MLflow's plugins, found by entry points: a deployment target, an evaluator and a run context.

Use them through MLflow: ``mlflow deployments``, ``mlflow.models.evaluate``, and tags of runs that you start during a
job. MLflow imports these modules during its own import, so they import little at the top.
"""
