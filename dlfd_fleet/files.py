"""Files that are whole or not there, whatever happens while they are written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from dlfd_fleet.exceptions import FleetError


@contextmanager
def whole_file(file: Path, error_type: type[FleetError]) -> Iterator[Path]:
    """Yield a temporary path beside a file; it then replaces the file.

    Parameters
    ----------
    error_type
        Of the errors raised.

    Raises
    ------
    FleetError
        If it cannot be written; then the file is what it was before, and what was written of it gives its room back.
    """
    new = file.with_name(f".{file.name}.new")
    try:
        yield new
        new.replace(file)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise error_type(f"Cannot write {file}: {reason}; check space and rights.") from error
    finally:
        with suppress(OSError):
            new.unlink(missing_ok=True)
