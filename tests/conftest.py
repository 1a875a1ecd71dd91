"""Faces and folders that many tests need."""

from __future__ import annotations

import errno
import io
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
# Tests run side by side, one on each core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings
from rich.console import Console

from dlfd_fleet.progress import ConsoleProgress

# The same examples in every run, and no timing: a busy machine is no failure.
settings.register_profile("fleet", derandomize=True, deadline=None)
settings.load_profile("fleet")


@pytest.fixture
def silent():
    """A progress display that writes nowhere."""
    return ConsoleProgress(Console(file=io.StringIO()))


@pytest.fixture
def synthetic_faces(tmp_path, silent):
    """A small synthetic face set: 12 people, 4 images each, 2 classes."""
    from dlfd_fleet.data import synthesize

    return synthesize(
        tmp_path / "faces", people=12, images_per_person=4, image_size=32, classes=2, seed=0, progress=silent
    )


@pytest.fixture
def closed_folder(tmp_path, monkeypatch) -> Path:
    """A folder whose files another user keeps to himself; tests may run as root, for whom none is."""
    folder, stat = tmp_path / "closed", Path.stat

    def refuse_inside(path: Path, **options: bool) -> os.stat_result:
        if folder in path.parents:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return stat(path, **options)

    folder.mkdir()
    monkeypatch.setattr(Path, "stat", refuse_inside)
    return folder


@pytest.fixture
def mount_disk(tmp_path) -> Iterator[Callable[[int], Path]]:
    """Make a disk of so many megabytes."""
    with ExitStack() as mounted:

        def mount(megabytes: int) -> Path:
            disk = tmp_path / "disk"
            disk.mkdir()
            command = [shutil.which("mount") or "false", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(disk)]
            if subprocess.run(command, capture_output=True, check=False).returncode:
                pytest.skip("only root may mount a small disk")
            mounted.callback(subprocess.run, ["umount", "--lazy", str(disk)], check=True)
            return disk

        yield mount
