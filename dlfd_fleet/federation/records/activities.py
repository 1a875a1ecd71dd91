"""Store the current activity of each site in a job."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

import sqlalchemy as sa

from dlfd_fleet.federation.records.job_record import SiteActivity
from dlfd_fleet.federation.records.tables import SITE, Transaction


class Activities:
    """The activities of sites in all jobs."""

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction

    def note(self, job: str, activities: Mapping[str, str]) -> None:
        """Keep what sites do now."""
        if not activities:
            return
        now = datetime.now(UTC).isoformat()
        rows = [{"job": job, "site": site, "doing": doing, "since": now} for site, doing in activities.items()]
        with self._transaction() as connection:
            connection.execute(sa.insert(SITE).prefix_with("OR REPLACE"), rows)

    def forget(self, job: str) -> None:
        """Delete what sites did when the job's last process died."""
        with self._transaction() as connection:
            connection.execute(sa.delete(SITE).where(SITE.c.job == job))

    def of(self, job: str) -> list[SiteActivity]:
        """Return what each site of a job does, by site."""
        query = sa.select(SITE).where(SITE.c.job == job).order_by(SITE.c.site)
        with self._transaction() as connection:
            rows = connection.execute(query).mappings().all()
        return [SiteActivity(row["site"], row["doing"], datetime.fromisoformat(row["since"])) for row in rows]
