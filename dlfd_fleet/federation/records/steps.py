"""Store the results and costs of finished steps.

Arrays are safetensors files in a job's folder, written under another name and renamed. So after a crash a step is
either finished or not started.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dlfd_fleet.exceptions import JobError
from dlfd_fleet.federation.records.costs import Cost, SiteCost, phases_of
from dlfd_fleet.federation.records.job_folders import JobFolders
from dlfd_fleet.federation.records.job_record import FinishedStep
from dlfd_fleet.federation.records.tables import COST, STEP, Transaction
from dlfd_fleet.files import whole_file
from dlfd_fleet.report.contents import Phase

_SITES = TypeAdapter(dict[str, SiteCost])


class Steps:
    """The finished steps of all jobs."""

    def __init__(self, transaction: Transaction, folders: JobFolders) -> None:
        self._transaction, self._folders = transaction, folders

    def find(self, job: str, name: str) -> FinishedStep | None:
        """Return a finished step; None if it is not finished."""
        condition = sa.and_(STEP.c.job == job, STEP.c.name == name)
        with self._transaction() as connection:
            row = connection.execute(sa.select(STEP).where(condition)).mappings().first()
        if row is None:
            return None
        arrays = _read_arrays(self._folders.made(job) / row["arrays"]) if row["arrays"] else {}
        (cost,) = self._costs(condition)
        return FinishedStep(name, row["result"], arrays, cost[1])

    def names(self, job: str) -> list[str]:
        """Return the names of a job's finished steps, in order."""
        query = sa.select(STEP.c.name).where(STEP.c.job == job).order_by(STEP.c.number)
        with self._transaction() as connection:
            return list(connection.execute(query).scalars())

    def phases(self, job: str) -> dict[str, Phase]:
        """Return what a job's steps took, those of one kind together: names are a kind and, for rounds, a number."""
        return phases_of(self._costs(STEP.c.job == job))

    def _costs(self, condition: sa.ColumnElement[bool]) -> list[tuple[str, Cost]]:
        """Return the names of steps in order, and what each took; of an earlier release it is not known who did."""
        beside = sa.and_(COST.c.job == STEP.c.job, COST.c.name == STEP.c.name)
        columns = STEP.c.name, STEP.c.seconds, STEP.c.sent_bytes, COST.c.coordinator_seconds, COST.c.sites
        query = sa.select(*columns).select_from(STEP.outerjoin(COST, beside)).where(condition)
        with self._transaction() as connection:
            rows = connection.execute(query.order_by(STEP.c.number)).all()
        return [
            (name, Cost(seconds, sent, coordinator or 0.0, _SITES.validate_json(sites or "{}")))
            for name, seconds, sent, coordinator, sites in rows
        ]

    def finish(self, job: str, step: FinishedStep) -> None:
        """Keep a step's result; the arrays first, so that a row never names a file that is not whole."""
        file = f"steps/{step.name}.safetensors" if step.arrays else None
        if file:
            _write_arrays(self._folders.made(job) / file, step.arrays)
        row: dict[str, Any] = {
            "job": job,
            "name": step.name,
            "result": step.result,
            "arrays": file,
            "seconds": step.cost.seconds,
            "sent_bytes": step.cost.sent_bytes,
            "finished_at": datetime.now(UTC).isoformat(),
        }
        with self._transaction() as connection:
            connection.execute(sa.insert(STEP).values(row))
            cost = {
                "job": job,
                "name": step.name,
                "coordinator_seconds": step.cost.coordinator_seconds,
                "sites": _SITES.dump_json(dict(step.cost.sites)).decode(),
            }
            connection.execute(sa.insert(COST).values(cost))

    def drop(self, job: str, name: str) -> None:
        """Delete a finished step of a job, which is to be done again.

        Raises
        ------
        JobError
            If its arrays cannot be deleted.
        """
        with self._transaction() as connection:
            for table in (COST, STEP):
                connection.execute(sa.delete(table).where(table.c.job == job, table.c.name == name))
        self._delete_files(job, [name])

    def drop_arrays(self, job: str, names: Collection[str]) -> None:
        """Delete the arrays of some finished steps of a job, which are done all the same.

        Raises
        ------
        JobError
            If they cannot be deleted.
        """
        chosen = sa.and_(STEP.c.job == job, STEP.c.name.in_(names))
        with self._transaction() as connection:
            connection.execute(sa.update(STEP).where(chosen).values(arrays=None))
        self._delete_files(job, names)

    def abandon(self, job: str, kind: str) -> None:
        """Delete a job's steps of a kind that have arrays; a job that goes on does them again.

        Raises
        ------
        JobError
            If they cannot be deleted.
        """
        chosen = sa.and_(STEP.c.job == job, STEP.c.name.like(f"{kind}-%"), STEP.c.arrays.is_not(None))
        with self._transaction() as connection:
            of_them = sa.select(STEP.c.name).where(chosen)
            connection.execute(sa.delete(COST).where(COST.c.job == job, COST.c.name.in_(of_them)))
            connection.execute(sa.delete(STEP).where(chosen))
        self._delete_files(job, [f"{kind}-*"])

    def _delete_files(self, job: str, names: Collection[str]) -> None:
        """Delete the files of arrays, and those that were being written when a process was killed."""
        folder = self._folders.steps(job)
        try:
            for name in names:
                for file in (*folder.glob(f"{name}.safetensors"), *folder.glob(f".{name}.safetensors.new")):
                    file.unlink(missing_ok=True)
        except OSError as error:
            raise JobError(f"Cannot delete arrays in {folder}: {error.strerror}; check its rights.") from error

    def forget(self, job: str) -> None:
        """Delete a job's steps, once it is settled and needs them no more."""
        with self._transaction() as connection:
            connection.execute(sa.delete(COST).where(COST.c.job == job))
            connection.execute(sa.delete(STEP).where(STEP.c.job == job))
        shutil.rmtree(self._folders.steps(job), ignore_errors=True)


def _write_arrays(file: Path, arrays: Mapping[str, Tensor]) -> None:
    with whole_file(file, JobError) as new:
        file.parent.mkdir(exist_ok=True)
        save_file({name: array.contiguous() for name, array in arrays.items()}, new)


def _read_arrays(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise JobError(f"Cannot read {file}: {error}; cancel the job and start another one.") from error
