"""Room on the disk that is kept for an erasure to arrive in: a full disk must not keep a device from hearing of it."""

from __future__ import annotations

import errno
import shutil
from contextlib import suppress
from pathlib import Path

RESERVED = 2**19
"""Bytes: for signed metadata, the floor and the state."""
_FULL = (errno.ENOSPC, errno.EDQUOT)


def keep_reserve(file: Path) -> None:
    """Put the reserve on disk if it is missing and there is plenty of room; a disk that refuses keeps none."""
    with suppress(OSError):
        if not file.exists() and shutil.disk_usage(file.parent).free >= 4 * RESERVED:
            file.write_bytes(bytes(RESERVED))


def give_up_reserve(file: Path, error: BaseException) -> bool:
    """Make room if an error came of a full disk; return whether it is worth another attempt."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__
    if cause is None or cause.errno not in _FULL or not file.exists():
        return False
    file.unlink()
    return True
