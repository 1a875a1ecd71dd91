"""Paths of a job's files: its model, its finished steps, its report."""

from __future__ import annotations

import shutil
from pathlib import Path

from dlfd_fleet.exceptions import JobError
from dlfd_fleet.names import plain_name

ONNX_FILE = "model.onnx"
"""In a job's model folder: the file that ships."""


class JobFolders:
    """The folders of jobs under one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def made(self, job: str) -> Path:
        """Return a job's folder, made if need be."""
        folder = self.of(job)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise JobError(f"Cannot make {folder}: {error.strerror}; check space and rights.") from error
        return folder

    def of(self, job: str) -> Path:
        """Return where a job's folder is, or will be."""
        try:
            return self._folder / plain_name(job)  # the name may come from a registry's tag
        except ValueError as error:
            raise JobError(f"The job {error}.") from error

    def model(self, job: str) -> Path:
        """Return where a job's model is, or will be."""
        return self.of(job) / "model"

    def steps(self, job: str) -> Path:
        """Return where the arrays of a job's steps are, or will be."""
        return self.of(job) / "steps"

    def delete_arrays(self, job: str) -> bool:
        """Delete a job's model and the arrays of its steps; tell whether there were any.

        Each folder gets another name first: whoever is killed in between leaves no half of a model under its own.

        Raises
        ------
        JobError
            If they cannot be deleted.
        """
        there = [folder for folder in (self.model(job), self.steps(job)) if folder.exists()]
        left = self.being_deleted(job)
        for folder in (*left, *there):
            try:
                shutil.rmtree(folder if folder in left else folder.rename(folder.with_name(f".{folder.name}.deleted")))
            except OSError as error:
                raise JobError(f"Cannot delete {folder}: {error.strerror}; the next job tries again.") from error
        return bool(there or left)

    def being_deleted(self, job: str) -> list[Path]:
        """Return the folders of a job that a killed process was deleting."""
        return sorted(self.of(job).glob(".*.deleted"))
