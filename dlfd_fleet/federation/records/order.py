"""Keep jobs and promotions in order of time, also if the clock is changed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from dlfd_fleet.federation.records.tables import JOB, PROMOTION


def time_after_all(connection: sa.Connection) -> datetime:
    """Return the current time, or a time after every existing job and promotion if that is later.

    Which models remember somebody, and which job may continue, depends on this order. So a corrected clock must not
    change it.
    """
    written = (sa.select(sa.func.max(column)) for column in (JOB.c.started_at, PROMOTION.c.at))
    times = [datetime.fromisoformat(time) for time in map(connection.scalar, written) if time is not None]
    return max([datetime.now(UTC), *(time + timedelta(microseconds=1) for time in times)])
