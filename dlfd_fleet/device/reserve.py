"""Reserve disk space, so that an erasure also reaches a device with a full disk."""

from __future__ import annotations

import errno
import shutil
from contextlib import suppress
from pathlib import Path

RESERVED = 2**19
"""Reserved bytes, for signed metadata, the floor and the state."""
_FULL = (errno.ENOSPC, errno.EDQUOT)


def keep_reserve(file: Path) -> None:
    """Write the reserve if it is missing and there is enough space; errors are ignored."""
    with suppress(OSError):
        if not file.exists() and shutil.disk_usage(file.parent).free >= 4 * RESERVED:
            file.write_bytes(bytes(RESERVED))


def give_up_reserve(file: Path, error: BaseException) -> bool:
    """Delete the reserve if an error came from a full disk; return whether to try again."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__
    if cause is None or cause.errno not in _FULL or not file.exists():
        return False
    file.unlink()
    return True
