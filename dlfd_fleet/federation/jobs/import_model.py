"""Making a model that exists already the champion of epoch 0, so that a fleet can go on from it, and forget."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from dlfd_fleet.configuration import flatten
from dlfd_fleet.exceptions import FleetError, JobError
from dlfd_fleet.federation.jobs.coordinator import Coordinator
from dlfd_fleet.federation.jobs.recorder import TrackedJob
from dlfd_fleet.federation.jobs.releaser import FleetReleaser
from dlfd_fleet.federation.jobs.run import record_end
from dlfd_fleet.federation.records.job_record import JobRecord
from dlfd_fleet.federation.records.journal import Journal
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.federation.rounds.fleet import Fleet
from dlfd_fleet.models import load_model, state_arrays
from dlfd_fleet.progress import ProgressDisplay
from dlfd_fleet.settings import Settings
from dlfd_fleet.tracking import Tracker, open_tracker
from dlfd_fleet.tracking.weights import downloaded_weights, is_of_mlflow


class _NoNodes:
    """A grid for what no site takes part in."""

    def get_nodes(self) -> list[object]:
        """Return nobody."""
        return []


def import_model(settings: Settings, source: str, progress: ProgressDisplay) -> JobRecord:
    """Export a model, register it, and make it the champion of epoch 0.

    Parameters
    ----------
    source
        A folder of ``model.safetensors`` and ``card.json``; or what MLflow has of one: ``models:/NAME/VERSION`` or
        ``models:/NAME@ALIAS`` of this product's models, ``runs:/RUN/PATH`` of any run.

    Raises
    ------
    JobError
        If the fleet has forgotten somebody already: nobody knows whom the imported model remembers; or if a job runs.
    ModelFileError
        If there is no such model, or its weights do not fit its card.
    TrackingError
        If MLflow does not have it, or does not answer.
    """
    with (
        closing(Store(settings.state_folder)) as store,
        store.lock(),
        open_tracker(settings.tracking, settings.state_folder) as tracker,
    ):
        champion = store.champions.current()
        if champion is not None and champion.epoch:
            raise JobError(
                f"The fleet is at the erasure epoch {champion.epoch}, and a model from elsewhere may remember whom it "
                "has forgotten; train on from the champion instead."
            )
        with _folder_of(source, tracker) as folder:
            model, card = load_model(folder)
        record = store.new_job("import", settings)
        recorder, fleet = TrackedJob(tracker, record.job), Fleet(_NoNodes(), timeout=0.0)  # type: ignore[arg-type]
        journal = Journal(store, record.job, fleet)
        job = Coordinator(settings, fleet, journal, progress, record, 0, store.save, recorder)
        parameters = flatten(settings.model_dump(mode="json"))
        tracker.start_job(record.job, kind="import", parameters=parameters, tags={"dlfd.epoch": "0"})
        releaser = FleetReleaser(job, store, tracker, recorder)
        card = card.model_copy(update={"kind": "original", "epoch": 0, "parent": None, "job": record.job})
        arrays = state_arrays(model)
        try:
            releaser.export(card, arrays)
            releaser.release(card, arrays)
            job.advance("settled", note=f"imported from {source}")
        except FleetError as error:
            job.advance("failed", note=str(error))
            raise
        finally:
            record_end(job, store, tracker, "FINISHED" if job.record.step == "settled" else "FAILED")
        store.steps.forget(record.job)
        return job.record


@contextmanager
def _folder_of(source: str, tracker: Tracker) -> Iterator[Path]:
    """Give the folder of a model, downloaded if MLflow has it."""
    if not is_of_mlflow(source):
        yield Path(source)
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield downloaded_weights(source, tracker.uri, Path(temporary))
