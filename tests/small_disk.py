"""A disk that is really full; the fixture ``mount_disk`` makes one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

_LOG = "log-of-somebody-else"


def fill(disk: Path) -> None:
    """Leave not a byte of a disk free."""
    with (disk / _LOG).open("ab") as log:
        free = shutil.disk_usage(disk).free
        if free:
            os.posix_fallocate(log.fileno(), log.tell(), free)


def make_room(disk: Path) -> None:
    """Delete what :func:`fill` has written."""
    (disk / _LOG).unlink()
