"""What MLflow finds by entry points: a deployment target, an evaluator, a run context.

MLflow imports these modules while it is being imported itself, so nothing is imported here, and little at the top of
them.
"""
