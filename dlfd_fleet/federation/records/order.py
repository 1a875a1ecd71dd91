"""The order of jobs and promotions: by time, whatever the clock does."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from dlfd_fleet.federation.records.tables import JOB, PROMOTION


def time_after_all(connection: sa.Connection) -> datetime:
    """Return the time now, but always after every job and promotion there is.

    A clock that was wrong and is set right must not make a later job the earlier one: which models remember somebody,
    and which job may go on, hang on that order.
    """
    written = (sa.select(sa.func.max(column)) for column in (JOB.c.started_at, PROMOTION.c.at))
    times = [datetime.fromisoformat(time) for time in map(connection.scalar, written) if time is not None]
    return max([datetime.now(UTC), *(time + timedelta(microseconds=1) for time in times)])
