"""Which job this process works on, as tags: for records that others make meanwhile. It imports nothing."""

from __future__ import annotations

from collections.abc import Mapping

_tags: dict[str, str] = {}


def set_current_job(tags: Mapping[str, str]) -> None:
    """Note the tags of the job that begins; none when it ends."""
    _tags.clear()
    _tags.update(tags)


def current_job_tags() -> dict[str, str]:
    """Return the tags of the job that this process works on; none between jobs."""
    return dict(_tags)
