"""Deleting models that a coordinator needs no more, so that its state folder does not grow with every job.

Records, journals, reports and certificates are never deleted: they are small, and people ask for them years later.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from pathlib import Path

from dlfd_fleet.audit import Outcome
from dlfd_fleet.exceptions import JobError
from dlfd_fleet.federation.records.job_folders import ONNX_FILE
from dlfd_fleet.federation.records.job_record import FINAL_STEPS, JobRecord
from dlfd_fleet.federation.records.store import Store, require_folder
from dlfd_fleet.federation.release.purge import delete_model
from dlfd_fleet.settings import Settings
from dlfd_fleet.tracking import open_registry
from dlfd_fleet.tracking.leftovers import deleted_runs_sentence
from dlfd_fleet.tracking.tracker import tracking_uri

_MEBIBYTE = 2**20


@dataclass(frozen=True)
class Pruned:
    """What was deleted, or would be.

    Attributes
    ----------
    jobs
        Whose models, oldest first.
    files
        Pictures of earlier jobs, which MLflow has, too; and what a killed process was writing.
    bytes
        Of all of these.
    """

    jobs: tuple[str, ...]
    files: tuple[Path, ...]
    bytes: int

    def sentence(self, *, dry_run: bool = False) -> str:
        """Return it in words."""
        if not self.jobs and not self.files:
            return "There is nothing to delete."
        jobs = "1 job" if len(self.jobs) == 1 else f"{len(self.jobs)} jobs"
        files = "1 picture or unfinished file" if len(self.files) == 1 else f"{len(self.files)} pictures"
        found = [f"the models of {jobs} ({', '.join(self.jobs)})"] if self.jobs else []
        found += [files] if self.files else []
        what = f"{' and '.join(found)}, {self.bytes / _MEBIBYTE:.1f} MiB"
        return f"Would delete {what}." if dry_run else f"Deleted {what}. Records, reports and certificates stay."


def prune(store: Store, keep: int, *, dry_run: bool = False) -> Pruned:
    """Delete the models of ended jobs that nothing needs; the caller holds the store's lock.

    Kept are the models of the champion, of versions that wait for a person's decision, and of the latest ``keep`` other
    jobs: these can be promoted or gone on with. Pictures are kept of as many. While a job is unfinished nothing is
    deleted, for it may need any.

    Raises
    ------
    JobError
        If something cannot be deleted.
    """
    if store.unfinished():
        return Pruned((), (), 0)
    jobs = store.jobs()
    gone = _not_needed(store, jobs, keep)
    files = tuple(_files(store, jobs, keep))
    folders = [folder for record in gone for folder in _arrays(store, record.job)]
    pruned = Pruned(tuple(record.job for record in gone), files, sum(map(_size, (*folders, *files))))
    if not dry_run:
        for record in gone:
            delete_model(store, record.job)
        for file in files:
            try:
                file.unlink(missing_ok=True)
            except OSError as error:
                raise JobError(f"Cannot delete {file}: {error.strerror}; the next job tries again.") from error
    return pruned


def _not_needed(store: Store, jobs: Sequence[JobRecord], keep: int) -> list[JobRecord]:
    champion, moves = store.champions.current(), store.champions.history()
    promoted = moves[-1].at if moves else None
    others = [
        record
        for record in jobs
        if record.step in FINAL_STEPS
        and _arrays(store, record.job)
        and not (champion is not None and record.job == champion.job)
        and not _is_held(store, record, promoted)
    ]
    return others[:-keep]


def _is_held(store: Store, record: JobRecord, promoted: datetime | None) -> bool:
    """Tell whether a model waits for a person's decision: it was made since the champion's promotion, and held."""
    failed = record.verdict is not None and record.verdict.outcome is Outcome.FAIL
    made = record.step == "settled" and (store.folders.model(record.job) / ONNX_FILE).exists()
    since = promoted is None or record.started_at > promoted
    return made and since and not record.released and not failed


def _arrays(store: Store, job: str) -> list[Path]:
    folders = (store.folders.model(job), store.folders.steps(job), *store.folders.being_deleted(job))
    return [folder for folder in folders if folder.exists()]


def _files(store: Store, jobs: Sequence[JobRecord], keep: int) -> Iterator[Path]:
    """Yield pictures of all jobs but the latest that have any, and what a killed process was writing."""
    drawn = list[list[Path]]()
    for record in jobs:
        folder = store.folders.of(record.job)
        yield from (file for file in sorted(folder.glob("**/.*.new")) if file.is_file())
        pictures = sorted(folder.glob("*.png"))
        drawn += [pictures] if pictures else []
    yield from chain.from_iterable(drawn[:-keep])


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def prune_state(settings: Settings, *, dry_run: bool = False) -> list[str]:
    """Prune a coordinator's state folder while no job runs, and return in words what was deleted and what is left.

    Raises
    ------
    JobError
        If a job runs or is unfinished, or something cannot be deleted.
    """
    require_folder(settings.state_folder)
    with closing(Store(settings.state_folder)) as store, store.lock():
        if unfinished := store.unfinished():
            if store.is_cancelled(unfinished[-1].job):
                raise JobError(f"{unfinished[-1].job} was cancelled, and the next job ends it: prune after that.")
            raise JobError(
                f"{unfinished[-1].job} is not finished, and may need any model: `dlfd-fleet job resume` goes on with "
                "it, `dlfd-fleet job cancel` ends it."
            )
        said = [prune(store, settings.storage.models, dry_run=dry_run).sentence(dry_run=dry_run)]
    uri = tracking_uri(settings.tracking, settings.state_folder)
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        return said
    with open_registry(settings.tracking, settings.state_folder) as registry:
        return [*said, *deleted_runs_sentence(registry)]
