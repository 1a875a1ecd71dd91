"""Which job's model the fleet runs, and every move of it."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa

from dlfd_fleet.exceptions import JobError
from dlfd_fleet.federation.records.job_record import Champion, Promotion
from dlfd_fleet.federation.records.order import time_after_all
from dlfd_fleet.federation.records.tables import CHAMPION, PROMOTION, Transaction


class Champions:
    """The champion, and those before it."""

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction

    def current(self) -> Champion | None:
        """Return the model that the fleet runs, if there is one."""
        with self._transaction() as connection:
            row = connection.execute(sa.select(CHAMPION)).mappings().first()
        return Champion(job=row["job"], epoch=row["epoch"]) if row else None

    def epoch(self) -> int:
        """Return the fleet's erasure epoch: of the champion; 0 before there is one."""
        champion = self.current()
        return champion.epoch if champion else 0

    def move(self, champion: Champion, who: str = "", why: str = "") -> None:
        """Move the champion, and append that to the history of promotions; the epoch never falls.

        Parameters
        ----------
        who, why
            A person, or the job whose verdict it was, and the reason.
        """
        current = self.current()
        if current is not None and champion.epoch < current.epoch:
            raise JobError(
                f"Job {champion.job} has the epoch {champion.epoch}, under the fleet's {current.epoch}: it may "
                "remember forgotten people and cannot become the champion."
            )
        row = {"who": who or champion.job, "why": why, **champion.model_dump()}
        with self._transaction() as connection:
            row["at"] = time_after_all(connection).isoformat()
            connection.execute(sa.delete(CHAMPION))
            connection.execute(sa.insert(CHAMPION).values(champion.model_dump()))
            if current != champion:  # a job that goes over its steps again promotes nothing
                connection.execute(sa.insert(PROMOTION).values(row))

    def history(self) -> list[Promotion]:
        """Return every move of the champion, oldest first; nothing can be changed or taken out of it."""
        with self._transaction() as connection:
            rows = connection.execute(sa.select(PROMOTION).order_by(PROMOTION.c.number)).mappings().all()
        return [
            Promotion(datetime.fromisoformat(row["at"]), row["job"], row["epoch"], row["who"], row["why"])
            for row in rows
        ]
