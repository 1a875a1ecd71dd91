"""Making a model that exists already the champion of epoch 0, so that a fleet can go on from it, and forget."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

from dlfd_fleet.exceptions import JobError, TrackingError
from dlfd_fleet.federation.jobs.run import carry_out
from dlfd_fleet.federation.records.job_record import JobRecord
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.models import load_model, permit, save_model
from dlfd_fleet.plain_text import visible
from dlfd_fleet.progress import ProgressDisplay
from dlfd_fleet.settings import Settings
from dlfd_fleet.tracking import Tracker, open_tracker
from dlfd_fleet.tracking.weights import downloaded_weights, is_of_mlflow

if TYPE_CHECKING:
    from flwr.serverapp import Grid


_LONGEST_SOURCE = 120


class _NoNodes:
    """A grid for what no site takes part in."""

    def get_nodes(self) -> list[object]:
        """Return nobody."""
        return []


def import_model(settings: Settings, source: str, progress: ProgressDisplay, by: str = "") -> JobRecord:
    """Export a model, register it, and make it the champion of epoch 0; only its fp32 file is made.

    Killed once the model is in the state folder, it is brought to its end by the next job.

    Parameters
    ----------
    source
        A folder of ``model.safetensors`` and ``card.json``; or what MLflow has of one: ``models:/NAME/VERSION`` or
        ``models:/NAME@ALIAS`` of this product's models, ``runs:/RUN/PATH`` of any run.
    by
        Who imports it, as they call themselves; kept with the decisions unless it is empty.

    Raises
    ------
    JobError
        If the fleet has forgotten somebody already, for nobody knows whom the imported model remembers; if the model
        has forgotten somebody itself; or if a job runs or waits to be resumed.
    ModelFileError
        If there is no such model, or its weights do not fit its card.
    TrackingError
        If MLflow does not have it, it was revoked or failed its audit there, or MLflow does not answer.
    """
    permit(settings.model.architecture)
    with (
        closing(Store(settings.state_folder)) as store,
        store.lock(),
        open_tracker(settings.tracking, settings.state_folder) as tracker,
    ):
        _refuse_where_somebody_was_forgotten(store, tracker, progress)
        if waiting := store.unfinished():
            if store.is_cancelled(waiting[-1].job):
                raise JobError(f"{waiting[-1].job} was cancelled, and the next job ends it: import the model then.")
            raise JobError(
                f"{waiting[-1].job} was interrupted, and goes on from the champion that it began with; end it first "
                "by `dlfd-fleet job resume`, or by `job cancel` and the next job."
            )
        with _folder_of(source, tracker) as folder:
            model, card = load_model(folder)
        if card.epoch:
            raise JobError(
                f"{source} has the erasure epoch {card.epoch}: it is of a fleet that has forgotten somebody; promote "
                "it there (`dlfd-fleet registry promote`)."
            )
        record = store.new_job("import", settings)
        store.decisions.note_if_known("start", record.job, by)
        shown = source if is_of_mlflow(source) else f"the folder {Path(source).name}"
        card = card.model_copy(
            update={
                "kind": "original",
                "parent": None,
                "job": record.job,
                "frozen": model.frozen,
                "began_with": f"an imported model ({visible(shown, _LONGEST_SOURCE)})",
            }
        )
        save_model(model, card, store.folders.model(record.job))
        return carry_out(cast("Grid", _NoNodes()), store, tracker, progress, record)


def _refuse_where_somebody_was_forgotten(store: Store, tracker: Tracker, progress: ProgressDisplay) -> None:
    champion = store.champions.current()
    epoch = champion.epoch if champion else 0
    try:
        registered = tracker.champion()
        epoch = max(epoch, registered.epoch if registered else 0)
    except TrackingError as error:
        progress.say(f"{error} Whether its registry has a champion that has forgotten somebody is not known.")
    if epoch:
        raise JobError(
            f"The fleet is at the erasure epoch {epoch}, and a model from elsewhere may remember whom it has "
            "forgotten; train on from the champion instead."
        )
    for job in store.jobs():  # people whom no model was trained on are forgotten without a new epoch
        if job.kind == "erase" and job.acknowledged and job.verdict is None:
            raise JobError(f"{job.job} has forgotten people, and a model from elsewhere may remember them.")


@contextmanager
def _folder_of(source: str, tracker: Tracker) -> Iterator[Path]:
    """Give the folder of a model, downloaded if MLflow has it."""
    if not is_of_mlflow(source):
        yield Path(source)
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield downloaded_weights(source, tracker.uri, Path(temporary))
