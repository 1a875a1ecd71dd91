"""Delete the coordinator's files of models that may remember people whom the champion has forgotten."""

from __future__ import annotations

from dlfd_fleet.federation.records.store import Store


def purge_remembering(store: Store) -> list[str]:
    """Delete the arrays of ended jobs that may remember people whom the champion has forgotten; return these jobs.

    A job's arrays are deleted if it began before the champion's erasure epoch was first promoted, except those of the
    job that made that epoch. Records, scores and figures stay. While a job is unfinished, nothing is deleted.

    Raises
    ------
    JobError
        If something cannot be deleted.
    """
    champion = store.champions.current()
    if champion is None or not champion.epoch or store.unfinished():
        return []  # a job that goes on may need the model that it began with
    first = next(move for move in store.champions.history() if move.epoch == champion.epoch)
    kept, purged = {champion.job, first.job}, []
    for record in store.jobs():
        if record.job not in kept and record.started_at < first.at and delete_model(store, record.job):
            purged.append(record.job)
    return purged


def delete_model(store: Store, job: str) -> bool:
    """Delete every array of a job, of its model and its steps; return whether there were any.

    Raises
    ------
    JobError
        If they cannot be deleted.
    """
    deleted = store.folders.delete_arrays(job)
    store.steps.forget(job)
    return deleted
