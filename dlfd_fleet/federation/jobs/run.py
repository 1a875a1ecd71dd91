"""The frame of every job: those that were interrupted first, one coordinator at a time, and how each ended."""

from __future__ import annotations

from contextlib import closing
from typing import Literal

from flwr.serverapp import Grid

from dlfd_fleet.configuration import flatten
from dlfd_fleet.exceptions import FleetError, JobCancelledError, JobError
from dlfd_fleet.federation.jobs.coordinator import Coordinator
from dlfd_fleet.federation.jobs.erase import erase
from dlfd_fleet.federation.jobs.pictures import outcome_tags
from dlfd_fleet.federation.jobs.plan import plan, refuse_beside
from dlfd_fleet.federation.jobs.recorder import TrackedJob
from dlfd_fleet.federation.jobs.references import references, refuse_no_references
from dlfd_fleet.federation.jobs.releaser import FleetReleaser
from dlfd_fleet.federation.jobs.reporting import redraw_reports, said_in_short
from dlfd_fleet.federation.jobs.summary import describe
from dlfd_fleet.federation.jobs.train import Given, train
from dlfd_fleet.federation.records.job_record import FINAL_STEPS, JobKind, JobRecord
from dlfd_fleet.federation.records.journal import Journal
from dlfd_fleet.federation.records.site_ledgers import SITE_LEDGERS_FILE, SiteLedgers
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.federation.release.prune import prune
from dlfd_fleet.federation.release.purge import purge_remembering
from dlfd_fleet.federation.rounds.erasure import with_settings_of_method
from dlfd_fleet.federation.rounds.fleet import Fleet
from dlfd_fleet.federation.rounds.references import ROUND as REFERENCE_ROUND
from dlfd_fleet.federation.rounds.site_keys import SITE_KEYS_FILE, SiteKeys
from dlfd_fleet.models import permit
from dlfd_fleet.progress import ProgressDisplay
from dlfd_fleet.settings import AugmentationSettings, Settings
from dlfd_fleet.tracking import Tracker, open_tracker
from dlfd_fleet.tracking.registry import REFUSED_TAG
from dlfd_fleet.tracking.system_metrics import sampled_system

_CANCELLED: dict[JobKind, str] = {"erase": "cancelled: the requests wait for the next job"}
_SEND_PATIENCE = 180.0  # a new store makes its tables first; one that does not answer ends the wait at once


def run_jobs(
    grid: Grid,
    kind: JobKind,
    settings: Settings,
    progress: ProgressDisplay,
    given: Given | None = None,
    by: str = "",
    why: str = "",
) -> JobRecord:
    """Bring jobs whose process died to their end, then do one of this kind unless such a one was among them.

    Parameters
    ----------
    given
        A model that is trained already: a job is done for it, whatever was interrupted.
    by, why
        Who starts it, as they call themselves, and why; kept with the decisions unless both are empty.

    Raises
    ------
    JobError
        If another coordinator works on the state folder, or the job cannot go on; then it is failed, and its requests
        wait for the next one. Killed or interrupted, it is resumed by the next call.
    JobCancelledError
        If somebody cancelled it.
    VerdictError
        If a trained model is worse than the champion.
    """
    store = Store(settings.state_folder)
    with closing(store), store.lock(), open_tracker(settings.tracking, settings.state_folder) as tracker:
        for record in store.jobs():
            if record.step == "settled":
                store.steps.forget(record.job)  # its process may have died before it could
            elif record.step in FINAL_STEPS:
                store.steps.abandon(record.job, REFERENCE_ROUND)
        _purge(store, settings, progress)
        champion = store.champions.current()
        tracker.try_again(champion.job if champion else None)
        done = None
        for record in store.unfinished():
            if store.is_cancelled(record.job):
                progress.say(f"Ending {record.job}, which was cancelled.")
            else:
                if kind == "plan":
                    refuse_beside(record)
                store.decisions.note_if_known("resume", record.job, by, why)
                progress.say(f"Going on with {record.job}: {len(store.steps.names(record.job))} steps of it are done.")
            done = carry_out(grid, store, tracker, progress, record)
        if given is not None and given.epoch != store.champions.epoch():
            raise JobError(
                f"This training began at the erasure epoch {given.epoch}, and the fleet is at "
                f"{store.champions.epoch()}: its model may remember who was forgotten since. Train again, from "
                "FederatedUnlearning.arrays()."
            )
        if done is None or given is not None or not _is_wanted(done, kind, settings, store):
            if kind == "references":
                refuse_no_references(settings)
            chosen = settings_of_job(kind, settings)
            record = store.new_job(kind, chosen)
            store.decisions.note_if_known("plan" if kind == "plan" else "start", record.job, by, why)
            done = carry_out(grid, store, tracker, progress, record, given)
        if done.step == "cancelled":
            raise JobCancelledError(f"{done.job} was {done.note}.")
        return done


def settings_of_job(kind: JobKind, settings: Settings) -> Settings:
    """Return the settings that a job of a kind keeps: what they leave to the method and to the network is decided."""
    chosen = _without_changes_of_faces(settings)
    return with_settings_of_method(chosen) if kind == "erase" else chosen


def _without_changes_of_faces(settings: Settings) -> Settings:
    """Return settings under which images of somebody's own network are not changed, unless they say how.

    The default is for faces: a digit that is mirrored is another one, and of 8 pixels a shift of 4 leaves nothing.
    """
    if not settings.model.components or "augmentation" in settings.erasure.model_fields_set:
        return settings
    erasure = settings.erasure.model_copy(update={"augmentation": AugmentationSettings()})
    return settings.model_copy(update={"erasure": erasure})


def _is_wanted(done: JobRecord, kind: JobKind, settings: Settings, store: Store) -> bool:
    """Tell whether a job that was interrupted, and is done now, is the one that is asked for."""
    if done.kind != kind or done.step == "cancelled":
        return False
    return kind != "train" or store.settings_of(done.job).training.start == settings.training.start


def carry_out(
    grid: Grid,
    store: Store,
    tracker: Tracker,
    progress: ProgressDisplay,
    record: JobRecord,
    given: Given | None = None,
) -> JobRecord:
    """Do one job, or what is left of it; its record and its run always say how it ended."""
    try:
        settings = store.settings_of(record.job)
    except JobError:
        if not store.is_cancelled(record.job):
            raise
        store.steps.abandon(record.job, REFERENCE_ROUND)
        record = record.at("cancelled").changed(note="cancelled: its settings could not be read")
        store.save(record)
        return record
    permit(settings.model.architecture)
    recorder = TrackedJob(tracker, record.job)
    job = _coordinator(grid, store, recorder, progress, record, settings)
    releaser = FleetReleaser(job, store, tracker, recorder)
    tags = {"dlfd.kind": record.kind, "dlfd.epoch": str(job.epoch)}
    parameters = flatten(settings.model_dump(mode="json"))
    tracker.start_job(record.job, kind=record.kind, parameters=parameters, tags=tags)
    status: Literal["FINISHED", "FAILED", "KILLED"] = "FINISHED"
    try:
        if record.released and store.is_cancelled(record.job):
            raise JobCancelledError(f"{record.job} was cancelled after it had released its model.")
        with sampled_system(tracker, record.job, settings.tracking.system_metrics):
            _run(job, releaser, given)
        job.note(phases=store.steps.phases(record.job))
        job.advance(job.record.step)
        redraw_reports(store, tracker, settings, progress, after=record.job)
        store.steps.forget(record.job)
        _purge(store, settings, progress)
    except JobCancelledError as error:
        status = "KILLED"
        _abandon_references(store, record.job, progress)
        if job.record.released:
            job.advance(
                "cancelled", note="cancelled after the release: sites not told of it learn it from the next job"
            )
        else:
            job.give_back(str(error))
            job.advance("cancelled", note=_CANCELLED.get(record.kind, "cancelled"))
    except Exception as error:
        status = "FAILED"
        _abandon_references(store, record.job, progress)
        reason = str(error) if isinstance(error, FleetError) else f"{type(error).__name__}: {error}"
        if not job.record.released:
            job.give_back(f"the job failed: {reason}")
            job.advance("failed", note=reason)
        raise
    except BaseException:
        status = "KILLED"
        raise
    finally:
        record_end(job, store, tracker, status)
    return job.record


def _coordinator(
    grid: Grid,
    store: Store,
    recorder: TrackedJob,
    progress: ProgressDisplay,
    record: JobRecord,
    settings: Settings,
) -> Coordinator:
    """Return the coordinator of a job whose state is in a store."""
    fleet = Fleet.under(
        settings.fleet,
        grid,
        SiteKeys(store.folder / SITE_KEYS_FILE, settings.fleet.registered_keys),
        notice=lambda doing: store.activities.note(record.job, doing),
        refused=lambda site, reason: recorder.tags({REFUSED_TAG + site: reason}),
    )
    store.activities.forget(record.job)
    return Coordinator(
        settings,
        fleet,
        Journal(store, record.job, fleet),
        progress,
        record,
        store.champions.epoch,
        store.save,
        recorder,
        tuple(other for other in store.jobs() if other.job != record.job),
        SiteLedgers(store.folder / SITE_LEDGERS_FILE),
    )


def _run(job: Coordinator, releaser: FleetReleaser, given: Given | None) -> None:
    if job.record.kind == "train":
        train(job, releaser, given)
    elif job.record.kind == "erase":
        erase(job, releaser.origin(), releaser)
    elif job.record.kind == "references":
        references(job, releaser.origin())
    elif job.record.kind == "plan":
        plan(job, releaser.origin())
    else:
        releaser.release_imported()


def _abandon_references(store: Store, job: str, progress: ProgressDisplay) -> None:
    """Keep no reference model of a job that has failed or was cancelled: each remembers half of the people."""
    try:
        store.steps.abandon(job, REFERENCE_ROUND)
    except JobError as error:
        progress.say(str(error))


def record_end(
    job: Coordinator, store: Store, tracker: Tracker, status: Literal["FINISHED", "FAILED", "KILLED"]
) -> None:
    """Record in MLflow how a job ended, and say what it does not have; a full disk changes nothing about the end."""
    name = job.record.job
    try:
        tracker.set_tags(name, outcome_tags(job.record))
        tracker.describe(name, describe(job.record, said_in_short(store, job.record)))
        tracker.finish_job(name, status)
        waiting = tracker.flush(_SEND_PATIENCE)
        if waiting:
            job.record = job.record.changed(unsent=waiting)
            store.save(job.record)
            job.progress.say(f"{waiting} records wait for MLflow, and the next job sends them: {tracker.problem}")
        for reason in tracker.refusals(name):
            job.progress.say(f"MLflow does not have all of {name}: {reason}")
        if tracker.refused:
            job.progress.say(f"MLflow refused {tracker.refused} records; `dlfd-fleet outbox list` shows them.")
    except JobError as error:
        job.progress.say(f"MLflow has no record of how {name} ended: {error}")


def _purge(store: Store, settings: Settings, progress: ProgressDisplay) -> None:
    """Delete our own files of models that remember, and then of those that nothing needs.

    While a job is unfinished nothing is deleted, for it may need any of them.
    """
    try:
        purged = purge_remembering(store) if settings.release.purge_revoked else []
        if purged:
            many = f"The model files of {len(purged)} earlier jobs"
            progress.say(f"{many}, which remember forgotten people, are deleted.")
        pruned = prune(store, settings.storage.models) if settings.storage.prune else None
        if pruned is not None and (pruned.jobs or pruned.files):
            progress.say(pruned.sentence())
    except JobError as error:
        progress.say(str(error))
