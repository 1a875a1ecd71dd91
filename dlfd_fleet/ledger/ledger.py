"""The ledger itself: requests, an append-only hash-chained history, and tombstones of purged images (SQL)."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy.exc import DatabaseError, IntegrityError

from dlfd_fleet.database import shared_engine
from dlfd_fleet.exceptions import LedgerError
from dlfd_fleet.ledger.states import CLOSED, FOLLOWERS, FORGOTTEN, RequestState

_VERSION = 3
_POSTGRESQL_LOCK = 0xD1FD  # any number, the same in every process
_START = "0" * 64

_tables = sa.MetaData()
_ledger = sa.Table(
    "ledger",
    _tables,
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("epoch", sa.Integer, nullable=False),  # of the last release that the site was told of; it never falls
)
_request = sa.Table(
    "request",
    _tables,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("person_digest", sa.String, nullable=False),
    sa.Column("identity", sa.String),  # deleted once the person is purged
    sa.Column("state", sa.String, nullable=False),
    sa.Column("requested_at", sa.String, nullable=False),
    sa.Column("deadline", sa.String, nullable=False),
    sa.Column("job", sa.String),
    sa.Column("epoch", sa.Integer),
)
_open = _request.c.state != RequestState.WITHDRAWN.value
sa.Index(  # who has withdrawn may ask again
    "one_request_a_person", _request.c.person_digest, unique=True, sqlite_where=_open, postgresql_where=_open
)
_history = sa.Table(
    "history",
    _tables,
    sa.Column("sequence", sa.Integer, primary_key=True),
    sa.Column("request", sa.String, sa.ForeignKey("request.id"), nullable=False),
    sa.Column("at", sa.String, nullable=False),
    sa.Column("state", sa.String, nullable=False),
    sa.Column("reason", sa.String, nullable=False),
    sa.Column("job", sa.String),
    sa.Column("epoch", sa.Integer),
    sa.Column("previous", sa.String, nullable=False),
    sa.Column("digest", sa.String, nullable=False),
)
_tombstone = sa.Table(
    "tombstone",
    _tables,
    sa.Column("sha256", sa.String, primary_key=True),
    sa.Column("request", sa.String, sa.ForeignKey("request.id"), nullable=False),
)


@dataclass(frozen=True)
class ForgetRequest:
    """One person's request; ``identity`` is None once the person has been purged."""

    id: str
    identity: str | None
    state: RequestState
    requested_at: datetime
    deadline: datetime
    job: str | None
    epoch: int | None

    def overdue(self, now: datetime) -> bool:
        """Tell whether the deadline has passed and the request is neither complete nor withdrawn."""
        return now > self.deadline and self.state not in CLOSED


@dataclass(frozen=True)
class Event:
    """One row of the history: a request came into a state, when and why."""

    sequence: int
    request: str
    at: datetime
    state: RequestState
    reason: str
    job: str | None
    epoch: int | None


class Ledger:
    """Forget requests of one site.

    Several processes may use a ledger at once: each change is one transaction, and one writer is let in at a time.

    Parameters
    ----------
    location
        A SQLite file, or the URL of a PostgreSQL database (``postgresql+psycopg://host/database``).
    create
        Make a new ledger where there is none.

    Raises
    ------
    LedgerError
        If the database cannot be reached, is damaged, no ledger, or one that another release wrote.
    """

    def __init__(self, location: Path | str, *, create: bool = False) -> None:
        self.name = str(location)
        if isinstance(location, Path) and not create and not location.exists():
            raise LedgerError(f"There is no ledger {location}; is {location.parent} a site's folder?")
        self._engine = _engine_of(location)
        with self._transaction() as connection:
            known = set(sa.inspect(connection).get_table_names())
            if create and not known & set(_tables.tables):
                _tables.create_all(connection)
                connection.execute(sa.insert(_ledger).values(version=_VERSION, epoch=0))
            elif not set(_tables.tables) - {"ledger"} <= known:
                raise LedgerError(f"{self.name} is a database, but no ledger of dlfd-fleet.")
            else:
                self._check_version(connection, known)
                if create and connection.execute(sa.select(_request.c.id).limit(1)).first():
                    raise LedgerError(f"{self.name} holds a ledger with requests already; name another one.")

    def _check_version(self, connection: sa.Connection, known: set[str]) -> None:
        version = connection.execute(sa.select(_ledger.c.version)).scalar() if "ledger" in known else 1
        if version != _VERSION:
            raise LedgerError(
                f"The ledger {self.name} has the format {version}, and this release reads {_VERSION}; use the release "
                "that wrote it."
            )

    def close(self) -> None:
        """Let go of the file."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def request(
        self, identity: str, person_digest: str, deadline: datetime, reason: str = "asked to be forgotten"
    ) -> ForgetRequest:
        """Accept a person's request under a random id.

        Raises
        ------
        LedgerError
            If the person has asked before, or has been forgotten.
        """
        row = {
            "id": secrets.token_hex(8),
            "person_digest": person_digest,
            "identity": identity,
            "state": RequestState.ACCEPTED.value,
            "requested_at": datetime.now(UTC).isoformat(),
            "deadline": deadline.isoformat(),
        }
        with self._transaction() as connection:
            try:
                with connection.begin_nested():
                    connection.execute(sa.insert(_request).values(row))
            except IntegrityError:
                earlier = self._read(connection, sa.and_(_request.c.person_digest == person_digest, _open))[0]
                raise LedgerError(_asked_before(identity, earlier)) from None
            self._append(connection, row["id"], RequestState.ACCEPTED, reason, None, None)
        return self.get(row["id"])

    def requests(self, *states: RequestState) -> list[ForgetRequest]:
        """Return the requests in these states, or all of them, oldest first."""
        condition = _request.c.state.in_([state.value for state in states]) if states else sa.true()
        with self._transaction() as connection:
            return self._read(connection, condition)

    def get(self, request: str) -> ForgetRequest:
        """Return one request; a :class:`LedgerError` if there is none of this id."""
        with self._transaction() as connection:
            found = self._read(connection, _request.c.id == request)
        if not found:
            raise LedgerError(f"There is no request {request} in {self.name}.")
        return found[0]

    def person_digests(self, *states: RequestState) -> frozenset[str]:
        """Return the digests of the people of requests in these states; of everybody who has not withdrawn if none."""
        condition = _request.c.state.in_([state.value for state in states]) if states else _open
        with self._transaction() as connection:
            return frozenset(connection.execute(sa.select(_request.c.person_digest).where(condition)).scalars())

    def move(
        self, request: str, state: RequestState, reason: str, *, job: str | None = None, epoch: int | None = None
    ) -> None:
        """Bring a request into its next state; one row in the history.

        Raises
        ------
        LedgerError
            If the state may not follow the request's own.
        """
        current = self.get(request)
        if state not in FOLLOWERS[current.state]:
            raise LedgerError(f"Request {request} is {current.state}; it cannot become {state}.")
        values: dict[str, Any] = {"state": state.value, "job": job}
        if epoch is not None:
            values["epoch"] = epoch
        with self._transaction() as connection:
            changed = connection.execute(
                sa.update(_request)
                .where(_request.c.id == request, _request.c.state == current.state.value)
                .values(values)
            )
            if not changed.rowcount:
                raise LedgerError(f"Request {request} was changed by another process; ask for its state again.")
            self._append(connection, request, state, reason, job, epoch)

    def history(self, request: str | None = None) -> list[Event]:
        """Return what happened, to one request or to all, oldest first."""
        condition = _history.c.request == request if request else sa.true()
        with self._transaction() as connection:
            rows = connection.execute(sa.select(_history).where(condition).order_by(_history.c.sequence)).mappings()
            return [
                Event(
                    sequence=row["sequence"],
                    request=row["request"],
                    at=datetime.fromisoformat(row["at"]),
                    state=RequestState(row["state"]),
                    reason=row["reason"],
                    job=row["job"],
                    epoch=row["epoch"],
                )
                for row in rows
            ]

    def verify(self) -> None:
        """Check the chain of the history, and that each request is in the state that its last row says.

        Raises
        ------
        LedgerError
            At the first row that was changed, removed or added by other means.
        """
        previous, last = _START, {}
        with self._transaction() as connection:
            rows = connection.execute(sa.select(_history).order_by(_history.c.sequence)).mappings().all()
            states = {row.id: row.state for row in connection.execute(sa.select(_request.c.id, _request.c.state))}
        for number, row in enumerate(rows, start=1):
            if row["sequence"] != number or row["previous"] != previous or row["digest"] != _digest(dict(row)):
                raise LedgerError(f"The history of {self.name} was tampered with at row {number}.")
            previous = row["digest"]
            last[row["request"]] = row["state"]
        for request, state in states.items():
            if last.get(request) != state:
                raise LedgerError(f"Request {request} in {self.name} is {state}, which its history does not say.")

    def epoch(self) -> int:
        """Return the fleet's erasure epoch, as far as this site was told."""
        with self._transaction() as connection:
            return int(connection.execute(sa.select(_ledger.c.epoch)).scalar_one())

    def raise_epoch(self, epoch: int) -> int:
        """Note a release; return the epoch, which never falls."""
        with self._transaction() as connection:
            connection.execute(sa.update(_ledger).where(_ledger.c.epoch < epoch).values(epoch=epoch))
        return self.epoch()

    def purged(self, request: str, sha256: Collection[str]) -> None:
        """Note the digests of deleted images."""
        with self._transaction() as connection:
            known = set(connection.execute(sa.select(_tombstone.c.sha256)).scalars())
            rows = [{"sha256": value, "request": request} for value in sorted(set(sha256) - known)]
            if rows:
                connection.execute(sa.insert(_tombstone), rows)

    def tombstones(self) -> frozenset[str]:
        """Return the SHA-256 of every image that was purged."""
        with self._transaction() as connection:
            return frozenset(connection.execute(sa.select(_tombstone.c.sha256)).scalars())

    def count_purged(self, job: str) -> int:
        """Return how many different images were purged for a job's requests."""
        query = sa.select(sa.func.count()).select_from(_tombstone.join(_request)).where(_request.c.job == job)
        with self._transaction() as connection:
            return int(connection.execute(query).scalar_one())

    def forget_identity(self, request: str) -> None:
        """Delete the person's name from a request; the keyed digest stays."""
        with self._transaction() as connection:
            connection.execute(sa.update(_request).where(_request.c.id == request).values(identity=None))

    def _append(
        self,
        connection: sa.Connection,
        request: str,
        state: RequestState,
        reason: str,
        job: str | None,
        epoch: int | None,
    ) -> None:
        last = connection.execute(
            sa.select(_history.c.sequence, _history.c.digest).order_by(_history.c.sequence.desc()).limit(1)
        ).first()
        row: dict[str, Any] = {
            "sequence": last.sequence + 1 if last else 1,
            "request": request,
            "at": datetime.now(UTC).isoformat(),
            "state": state.value,
            "reason": reason,
            "job": job,
            "epoch": epoch,
            "previous": last.digest if last else _START,
        }
        connection.execute(sa.insert(_history).values(row | {"digest": _digest(row)}))

    @staticmethod
    def _read(connection: sa.Connection, condition: sa.ColumnElement[bool]) -> list[ForgetRequest]:
        rows: Sequence[sa.RowMapping] = (
            connection.execute(sa.select(_request).where(condition).order_by(_request.c.requested_at, _request.c.id))
            .mappings()
            .all()
        )
        return [
            ForgetRequest(
                id=row["id"],
                identity=row["identity"],
                state=RequestState(row["state"]),
                requested_at=datetime.fromisoformat(row["requested_at"]),
                deadline=datetime.fromisoformat(row["deadline"]),
                job=row["job"],
                epoch=row["epoch"],
            )
            for row in rows
        ]

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except DatabaseError as error:
            raise LedgerError(f"The ledger {self.name} cannot be used: {str(error.orig).strip()}.") from error


def _engine_of(location: Path | str) -> sa.Engine:
    engine = shared_engine(location, "The ledger's URL", LedgerError)
    if engine.dialect.name == "postgresql":
        sa.event.listen(engine, "begin", _lock)
    return engine


def _lock(connection: sa.Connection) -> None:
    """Let one writer in at a time, as SQLite does; the end of the transaction lets go."""
    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_POSTGRESQL_LOCK})")


def _digest(row: dict[str, Any]) -> str:
    content = {name: value for name, value in row.items() if name != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _asked_before(identity: str, earlier: ForgetRequest) -> str:
    if earlier.state in FORGOTTEN:
        return f"'{identity}' was forgotten already, by request {earlier.id} with epoch {earlier.epoch}."
    return (
        f"'{identity}' has asked already, on {earlier.requested_at:%Y-%m-%d}: request {earlier.id} is {earlier.state}."
    )
