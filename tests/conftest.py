"""Faces and folders that many tests need."""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib import invalidate_caches
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


@pytest.fixture
def install_entry(tmp_path, monkeypatch) -> Callable[[str, str, str], None]:
    """Put a package on the path whose metadata has an entry point ``NAME = MODULE:OBJECT`` of a group."""

    def install(group: str, point: str, code: str) -> None:
        module = re.search(r"= (\w+)", point)[1]
        (tmp_path / f"{module}.py").write_text(code)
        metadata = tmp_path / f"{module}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[{group}]\n{point}\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, module, raising=False)  # an earlier test may have had one of this name
        invalidate_caches()

    return install


@pytest.fixture
def install_how_to(install_entry) -> Callable[[str], None]:
    """Install the example of a page of docs/how-to, by the entry point that the page shows."""

    def install(page: str) -> None:
        text = (Path(__file__).parents[1] / "docs" / "how-to" / page).read_text(encoding="utf-8")
        code, toml = (re.search(rf"```{kind}\n(.*?)```", text, re.DOTALL)[1] for kind in ("python", "toml"))
        ((group, points),) = tomllib.loads(toml)["project"]["entry-points"].items()
        ((name, value),) = points.items()
        install_entry(group, f"{name} = {value}", code)

    return install
