"""The ledger itself: requests, their history, and what is left of purged images, each row under a seal (SQL)."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy.exc import DatabaseError

from dlfd_fleet.database import limit_waits, refusal, shared_engine
from dlfd_fleet.exceptions import LedgerError
from dlfd_fleet.ledger.sealed_tables import (
    HEAD,
    HISTORY,
    LEFTOVER,
    NOT_WITHDRAWN,
    REQUEST,
    TABLES,
    TOMBSTONE,
    TRAINED,
    VERSION,
    SealedTables,
)
from dlfd_fleet.ledger.states import CLOSED, FOLLOWERS, FORGOTTEN, RequestState
from dlfd_fleet.ledger.tombstones import Tombstones, content_digest

_PORTION = 500  # values in one question; a database takes only so many
_POSTGRESQL_LOCK = 0xD1FD  # any number, the same in every process


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


@dataclass(frozen=True)
class Leftover:
    """A file with an image of a forgotten person that is still there.

    Attributes
    ----------
    request
        Id of the person's request.
    file
        Under the site's image folder, or absolute if a link led out of it. A name that is no text stands as ``hex:``
        and the hexadecimal digits of its bytes.
    sha256
        Of its content; None if it could not be read.
    listed
        Whether it was the person's in the manifest: then each purge tries again to delete it, and the request waits.
        If not, it is a copy that a purge has found, and the site's people decide about it.
    reason
        Why it is still there, in words.
    """

    request: str
    file: str
    sha256: str | None
    listed: bool
    reason: str


class Ledger:
    """Forget requests of one site.

    Several processes may use a ledger at once: each change is one transaction, and one writer is let in at a time.

    Parameters
    ----------
    location
        A SQLite file, or the URL of a PostgreSQL database (``postgresql+psycopg://host/database``).
    key
        The site's key. It seals every row: :meth:`verify` finds what was changed without it.
    create
        Make a new ledger where there is none.

    Raises
    ------
    LedgerError
        If the database cannot be reached, is damaged, no ledger, sealed with another key, or one that another release
        wrote.
    """

    def __init__(self, location: Path | str, key: bytes, *, create: bool = False) -> None:
        self.name, self._key = str(location), key
        if isinstance(location, Path) and not create and not location.exists():
            raise LedgerError(f"There is no ledger {location}; is {location.parent} a site's folder?")
        self._engine = _engine_of(location)
        with self._transaction() as connection:
            known = set(sa.inspect(connection).get_table_names())
            if create and not known & set(TABLES.tables):
                SealedTables(connection, key, self.name, create=True)
            elif not {"request", "history", "tombstone"} <= known:
                raise LedgerError(f"{self.name} is a database, but no ledger of dlfd-fleet.")
            else:
                self._check_version(connection, known)
                if create and connection.execute(sa.select(REQUEST.c.id).limit(1)).first():
                    raise LedgerError(f"{self.name} holds a ledger with requests already; name another one.")
                SealedTables(connection, key, self.name)

    def _check_version(self, connection: sa.Connection, known: set[str]) -> None:
        version = connection.execute(sa.select(HEAD.c.version)).scalar() if "ledger" in known else 1
        if version is not None and version != VERSION:
            raise LedgerError(
                f"The ledger {self.name} has the format {version}, and this release reads {VERSION}; use the release "
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
        with self._change() as tables:
            earlier = self._read(tables, sa.and_(REQUEST.c.person_digest == person_digest, NOT_WITHDRAWN))
            if earlier:
                raise LedgerError(_asked_before(identity, earlier[0]))
            tables.insert(REQUEST, [row])
            self._append(tables, row["id"], RequestState.ACCEPTED, reason, None, None)
            return self._get(tables, row["id"])

    def requests(self, *states: RequestState) -> list[ForgetRequest]:
        """Return the requests in these states, or all of them, oldest first."""
        condition = REQUEST.c.state.in_([state.value for state in states]) if states else sa.true()
        with self._reading() as tables:
            return self._read(tables, condition)

    def get(self, request: str) -> ForgetRequest:
        """Return one request; a :class:`LedgerError` if there is none of this id."""
        with self._reading() as tables:
            return self._get(tables, request)

    def person_digests(self, *states: RequestState) -> frozenset[str]:
        """Return the digests of the people of requests in these states; of everybody who has not withdrawn if none."""
        condition = REQUEST.c.state.in_([state.value for state in states]) if states else NOT_WITHDRAWN
        with self._reading() as tables:
            return frozenset(row["person_digest"] for row in tables.read(REQUEST, condition))

    def move(
        self, request: str, state: RequestState, reason: str, *, job: str | None = None, epoch: int | None = None
    ) -> None:
        """Bring a request into its next state; one row in the history.

        Raises
        ------
        LedgerError
            If the state may not follow the request's own.
        """
        values: dict[str, Any] = {"state": state.value, "job": job}
        if epoch is not None:
            values["epoch"] = epoch
        with self._change() as tables:
            current = self._get(tables, request).state
            if state not in FOLLOWERS[current]:
                raise LedgerError(f"Request {request} is {current}; it cannot become {state}.")
            tables.update(REQUEST, REQUEST.c.id == request, values)
            self._append(tables, request, state, reason, job, epoch)

    def history(self, request: str | None = None) -> list[Event]:
        """Return what happened, to one request or to all, oldest first."""
        condition = HISTORY.c.request == request if request else sa.true()
        with self._reading() as tables:
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
                for row in tables.read(HISTORY, condition, HISTORY.c.sequence)
            ]

    def verify(self) -> None:
        """Check that every row is as the site's key has sealed it, and that none is missing or was put back.

        Raises
        ------
        LedgerError
            At the first row that was changed, removed or added by other means. A whole ledger that was put back from a
            backup is not found, nor what somebody wrote who has the site's key.
        """
        with self._reading() as tables:
            tables.verify()

    def epoch(self) -> int:
        """Return the fleet's erasure epoch, as far as this site was told."""
        with self._reading() as tables:
            return tables.epoch

    def raise_epoch(self, epoch: int) -> int:
        """Note a release; return the epoch, which never falls."""
        with self._change() as tables:
            tables.epoch = max(tables.epoch, epoch)
            return tables.epoch

    def purged(self, request: str, sha256: Collection[str]) -> None:
        """Note by their SHA-256 the images that are to be deleted: nobody trains on them from now on."""
        with self._change() as tables:
            digests = sorted({content_digest(self._key, value) for value in sha256})
            for start in range(0, len(digests), _PORTION):
                asked = digests[start : start + _PORTION]
                known = {row["content_digest"] for row in tables.read(TOMBSTONE, TOMBSTONE.c.content_digest.in_(asked))}
                tables.insert(
                    TOMBSTONE, ({"content_digest": value, "request": request} for value in asked if value not in known)
                )

    def tombstones(self) -> Tombstones:
        """Return what tells of a SHA-256 whether it is of an image that was purged, or is to be."""
        with self._reading() as tables:
            found = tables.read(TOMBSTONE, sa.true())
        return Tombstones({row["content_digest"]: row["request"] for row in found}, self._key)

    def request_of_people(self, *states: RequestState) -> dict[str, str]:
        """Return for the digests of the people of requests in these states the ids of the requests."""
        condition = REQUEST.c.state.in_([state.value for state in states])
        with self._reading() as tables:
            return {row["person_digest"]: row["id"] for row in tables.read(REQUEST, condition)}

    def note_trained(self, person_digests: Collection[str]) -> None:
        """Note the digests of people whom a model was trained on: they count as unseen never again."""
        new = set(person_digests) - self.trained(person_digests)
        if not new:
            return
        with self._change() as tables:
            known = self._trained(tables, new)  # another process may have been faster
            tables.insert(TRAINED, ({"person_digest": value} for value in sorted(new - known)))

    def trained(self, person_digests: Collection[str]) -> frozenset[str]:
        """Return those of some digests of people that :meth:`note_trained` has noted."""
        if not person_digests:
            return frozenset()
        with self._reading() as tables:
            return self._trained(tables, person_digests)

    @staticmethod
    def _trained(tables: SealedTables, person_digests: Collection[str]) -> frozenset[str]:
        asked, found = sorted(set(person_digests)), set[str]()
        for start in range(0, len(asked), _PORTION):
            condition = TRAINED.c.person_digest.in_(asked[start : start + _PORTION])
            found |= {row["person_digest"] for row in tables.read(TRAINED, condition)}
        return frozenset(found)

    def count_purged(self, job: str | None = None) -> int:
        """Return how many different images are gone: of a job's requests, or of all."""
        of_job = TOMBSTONE.c.request.in_(sa.select(REQUEST.c.id).where(REQUEST.c.job == job)) if job else sa.true()
        with self._reading() as tables:
            listed = tables.read(LEFTOVER, LEFTOVER.c.listed)
            left = {content_digest(self._key, row["sha256"]) for row in listed if row["sha256"]}
            return sum(row["content_digest"] not in left for row in tables.read(TOMBSTONE, of_job))

    def note_leftovers(self, request: str, leftovers: Collection[Leftover]) -> None:
        """Keep what is still there of a request's images, instead of what was kept of it before."""
        with self._change() as tables:
            tables.delete(LEFTOVER, LEFTOVER.c.request == request)
            tables.insert(LEFTOVER, (asdict(leftover) for leftover in leftovers))

    def leftovers(self, request: str | None = None) -> list[Leftover]:
        """Return the files of forgotten people that are still there, of one request or of all."""
        condition = LEFTOVER.c.request == request if request else sa.true()
        with self._reading() as tables:
            rows = tables.read(LEFTOVER, condition, LEFTOVER.c.request, LEFTOVER.c.file)
            return [Leftover(**{name: value for name, value in row.items() if name != "seal"}) for row in rows]

    def forget_identity(self, request: str) -> None:
        """Delete the person's name from a request; the keyed digest stays."""
        with self._change() as tables:
            tables.update(REQUEST, REQUEST.c.id == request, {"identity": None})

    def _get(self, tables: SealedTables, request: str) -> ForgetRequest:
        found = self._read(tables, REQUEST.c.id == request)
        if not found:
            raise LedgerError(f"There is no request {request} in {self.name}.")
        return found[0]

    @staticmethod
    def _append(
        tables: SealedTables, request: str, state: RequestState, reason: str, job: str | None, epoch: int | None
    ) -> None:
        tables.last += 1
        row = {
            "sequence": tables.last,
            "request": request,
            "at": datetime.now(UTC).isoformat(),
            "state": state.value,
            "reason": reason,
            "job": job,
            "epoch": epoch,
        }
        tables.insert(HISTORY, [row])

    @staticmethod
    def _read(tables: SealedTables, condition: sa.ColumnElement[bool]) -> list[ForgetRequest]:
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
            for row in tables.read(REQUEST, condition, REQUEST.c.requested_at, REQUEST.c.id)
        ]

    @contextmanager
    def _reading(self) -> Iterator[SealedTables]:
        with self._transaction() as connection:
            yield SealedTables(connection, self._key, self.name)

    @contextmanager
    def _change(self) -> Iterator[SealedTables]:
        with self._reading() as tables:
            yield tables
            tables.seal_head()

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except DatabaseError as error:
            raise LedgerError(f"The ledger {self.name} cannot be used: {refusal(error)}.") from error


def _engine_of(location: Path | str) -> sa.Engine:
    engine = shared_engine(location, "The ledger's URL", LedgerError)
    if engine.dialect.name == "postgresql":
        sa.event.listen(engine, "begin", _lock)
    return engine


def _lock(connection: sa.Connection) -> None:
    """Let one writer in at a time, as SQLite does; the end of the transaction lets go."""
    limit_waits(connection)
    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_POSTGRESQL_LOCK})")


def _asked_before(identity: str, earlier: ForgetRequest) -> str:
    if earlier.state in FORGOTTEN:
        return f"'{identity}' was forgotten already, by request {earlier.id} with epoch {earlier.epoch}."
    return (
        f"'{identity}' has asked already, on {earlier.requested_at:%Y-%m-%d}: request {earlier.id} is {earlier.state}."
    )
