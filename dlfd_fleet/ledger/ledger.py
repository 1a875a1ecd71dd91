"""Store requests, their history and digests of purged images in SQL, with a seal on each row."""

from __future__ import annotations

import hmac
import json
import secrets
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy.exc import DatabaseError

from dlfd_fleet.database import limit_waits, refusal, shared_engine
from dlfd_fleet.exceptions import LedgerError
from dlfd_fleet.ledger.dates import refuse_extension, site_day
from dlfd_fleet.ledger.entries import PURGED_TEXT, Event, Export, ForgetRequest, Leftover
from dlfd_fleet.ledger.sealed_tables import (
    EXPORT,
    HEAD,
    HISTORY,
    LEFTOVER,
    REQUEST,
    STANDING,
    TABLES,
    TOMBSTONE,
    TRAINED,
    UPGRADED,
    VERSION,
    SealedTables,
)
from dlfd_fleet.ledger.states import ACTIONS, FOLLOWERS, FORGOTTEN, Action, Ground, RequestState
from dlfd_fleet.ledger.tombstones import Tombstones, content_digest

_PORTION = 500  # values in one question; a database takes only so many
_HEAD_LABEL = b"\xffhead of the ledger"  # no UTF-8 text has this byte, so it is no person's keyed digest
_POSTGRESQL_LOCK = 0xD1FD  # any number, the same in every process


class Ledger:
    """Forget requests of one site.

    Several processes may use a ledger at once. Each change is one transaction with a single writer.

    Parameters
    ----------
    location
        A SQLite file, or the URL of a PostgreSQL database (``postgresql+psycopg://host/database``).
    key
        The site's key, which seals every row. :meth:`verify` finds rows that were changed without it.
    create
        Whether to make a new ledger if there is none.

    Raises
    ------
    LedgerError
        If the database cannot be reached, is damaged, is no ledger, was sealed with another key, or was written by
        another release.
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
                is_older = self._is_older(connection, known)
                if create and connection.execute(sa.select(REQUEST.c.id).limit(1)).first():
                    raise LedgerError(f"{self.name} holds a ledger with requests already; name another one.")
                tables = SealedTables(connection, key, self.name)
                if is_older:
                    tables.upgrade()

    def _is_older(self, connection: sa.Connection, known: set[str]) -> bool:
        version = connection.execute(sa.select(HEAD.c.version)).scalar() if "ledger" in known else 1
        if version not in (None, VERSION, UPGRADED):
            raise LedgerError(
                f"The ledger {self.name} has the format {version}, and this release reads {VERSION}; use the release "
                "that wrote it."
            )
        return version == UPGRADED

    def close(self) -> None:
        """Close the ledger."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def request(
        self,
        identity: str,
        person_digest: str,
        deadline: datetime,
        reason: str = "asked to be forgotten",
        *,
        received: date | None = None,
        verified_by: str = "",
        note: str = "",
        done_by: str = "",
        no_data: bool = False,
    ) -> ForgetRequest:
        """Accept a person's request under a random id.

        Parameters
        ----------
        received
            Day of receipt. Default: today.
        verified_by, note, done_by
            How the person's identity was verified, a note, and who entered the request.
        no_data
            Whether it is answered at once: the site holds nothing of the person. No job sees such a request.

        Raises
        ------
        LedgerError
            If the person has asked before, or has been forgotten.
        """
        now = datetime.now(UTC)
        row = {
            "id": secrets.token_hex(8),
            "person_digest": person_digest,
            "identity": identity,
            "state": RequestState.ACCEPTED.value,
            "requested_at": now.isoformat(),
            "received": (received or site_day(now)).isoformat(),
            "deadline": deadline.isoformat(),
            "first_deadline": deadline.isoformat(),
            "verified_by": verified_by,
            "note": note,
        }
        with self._change() as tables:
            earlier = self._read(tables, sa.and_(REQUEST.c.person_digest == person_digest, STANDING))
            if earlier:
                raise LedgerError(_asked_before(identity, earlier[0]), "identity")
            tables.insert(REQUEST, [row])
            self._append(tables, row["id"], Action.ASKED, RequestState.ACCEPTED, reason, done_by=done_by)
            if no_data:
                tables.update(REQUEST, REQUEST.c.id == row["id"], {"state": RequestState.NO_DATA.value})
                why = "the site has no image of the person"
                self._append(tables, row["id"], Action.NO_DATA, RequestState.NO_DATA, why, done_by=done_by)
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
        """Return the digests of people with requests in these states. Default: all requests that were not dropped."""
        condition = REQUEST.c.state.in_([state.value for state in states]) if states else STANDING
        with self._reading() as tables:
            return frozenset(row["person_digest"] for row in tables.read(REQUEST, condition))

    def requests_of(self, person_digest: str) -> list[ForgetRequest]:
        """Return a person's requests, oldest first; only the last one can be valid."""
        with self._reading() as tables:
            return self._read(tables, REQUEST.c.person_digest == person_digest)

    def move(
        self,
        request: str,
        state: RequestState,
        reason: str,
        *,
        job: str | None = None,
        epoch: int | None = None,
        done_by: str = "",
        ground: Ground | None = None,
        remark: str = "",
    ) -> None:
        """Move a request to another state, with one row in the history.

        Parameters
        ----------
        done_by, ground, remark
            Who decided, on which ground, and what they wrote; all empty for a job.

        Raises
        ------
        LedgerError
            If this state must not follow the current one.
        """
        values: dict[str, Any] = {"state": state.value, "job": job}
        if epoch is not None:
            values["epoch"] = epoch
        with self._change() as tables:
            current = self._get(tables, request).state
            if state not in FOLLOWERS[current]:
                raise LedgerError(f"Request {request} is {current}; it cannot become {state}.")
            tables.update(REQUEST, REQUEST.c.id == request, values)
            more = {"job": job, "epoch": epoch, "done_by": done_by, "remark": remark}
            ground_name = None if ground is None else ground.value
            self._append(tables, request, ACTIONS[state], state, reason, ground=ground_name, **more)

    def extend(
        self,
        request: str,
        deadline: datetime,
        reason: str,
        *,
        noticed: date | None = None,
        done_by: str = "",
        remark: str = "",
    ) -> None:
        """Extend the deadline of an open request, as the law allows, with one row in the history.

        Raises
        ------
        LedgerError
            If the request is closed, or the deadline is not later, or too late.
        """
        with self._change() as tables:
            current = self._get(tables, request)
            if not current.is_open:
                raise LedgerError(f"Request {request} is {current.state}; its deadline cannot be extended any more.")
            refuse_extension(deadline.date(), current.first_deadline.date(), current.due)
            tables.update(REQUEST, REQUEST.c.id == request, {"deadline": deadline.isoformat()})
            more = {"due": deadline.date(), "noticed": noticed, "done_by": done_by, "remark": remark}
            self._append(tables, request, Action.EXTENDED, current.state, reason, **more)

    def note_letter(self, request: str, stage: str, done_by: str) -> None:
        """Note in the history that a letter to the person was printed."""
        with self._change() as tables:
            state = self._get(tables, request).state
            self._append(tables, request, Action.LETTER, state, f"letter '{stage}'", done_by=done_by)

    def note_export(self, begin: date, end: date, destination: str, *, with_names: bool, done_by: str) -> None:
        """Note that somebody took the records of a period out of this ledger."""
        with self._change() as tables:
            earlier = tables.read(EXPORT, sa.true(), EXPORT.c.number)
            row = {
                "number": earlier[-1]["number"] + 1 if earlier else 1,
                "at": datetime.now(UTC).isoformat(),
                "done_by": done_by,
                "first_day": begin.isoformat(),
                "last_day": end.isoformat(),
                "destination": destination,
                "with_names": with_names,
            }
            tables.insert(EXPORT, [row])

    def exports(self) -> list[Export]:
        """Return every export of records, oldest first."""
        with self._reading() as tables:
            return [Export.of(row) for row in tables.read(EXPORT, sa.true(), EXPORT.c.number)]

    def history(self, request: str | None = None) -> list[Event]:
        """Return the history of one request or of all, oldest first."""
        condition = HISTORY.c.request == request if request else sa.true()
        with self._reading() as tables:
            return [Event.of(row) for row in tables.read(HISTORY, condition, HISTORY.c.sequence)]

    def verify(self) -> None:
        """Check the seal of every row, and that no row is missing or was restored.

        Raises
        ------
        LedgerError
            At the first row that was changed, removed or added without the key. A whole ledger restored from a backup
            is not found, nor changes made with the key.
        """
        with self._reading() as tables:
            tables.verify()

    def head(self, job: str) -> tuple[int, str]:
        """Return how many rows the history has, and a keyed digest of the last one: another one in each job."""
        with self._reading() as tables:
            return tables.last, self._digest_at(tables, tables.last, job)

    def holds(self, sequence: int, job: str, digest: str) -> bool:
        """Tell whether this ledger was where it told a job that it is: one that was put back from before was not."""
        with self._reading() as tables:
            return sequence <= tables.last and hmac.compare_digest(self._digest_at(tables, sequence, job), digest)

    def _digest_at(self, tables: SealedTables, sequence: int, job: str) -> str:
        """Return a digest of one row of the history, of what never changes in it: a purge overwrites remarks."""
        rows = tables.read(HISTORY, HISTORY.c.sequence == sequence) or [{}]
        content = json.dumps([job, sequence, *(rows[0].get(name) for name in ("request", "at", "action", "state"))])
        return hmac.digest(self._key, _HEAD_LABEL + content.encode(), "sha256").hex()

    def epoch(self) -> int:
        """Return the fleet's erasure epoch, as last told to this site."""
        with self._reading() as tables:
            return tables.epoch

    def raise_epoch(self, epoch: int) -> int:
        """Note a release; return the epoch, which never falls."""
        with self._change() as tables:
            tables.epoch = max(tables.epoch, epoch)
            return tables.epoch

    def purged(self, request: str, sha256: Collection[str]) -> None:
        """Note images to delete by their SHA-256; from now on nobody trains on them."""
        with self._change() as tables:
            digests = sorted({content_digest(self._key, value) for value in sha256})
            for start in range(0, len(digests), _PORTION):
                asked = digests[start : start + _PORTION]
                known = {row["content_digest"] for row in tables.read(TOMBSTONE, TOMBSTONE.c.content_digest.in_(asked))}
                tables.insert(
                    TOMBSTONE, ({"content_digest": value, "request": request} for value in asked if value not in known)
                )

    def tombstones(self) -> Tombstones:
        """Return the contents that were purged or will be; they can be tested by SHA-256."""
        with self._reading() as tables:
            found = tables.read(TOMBSTONE, sa.true())
        return Tombstones({row["content_digest"]: row["request"] for row in found}, self._key)

    def request_of_people(self, *states: RequestState) -> dict[str, str]:
        """Return the request ids of requests in these states, by digest of their person."""
        condition = REQUEST.c.state.in_([state.value for state in states])
        with self._reading() as tables:
            return {row["person_digest"]: row["id"] for row in tables.read(REQUEST, condition)}

    def note_trained(self, person_digests: Collection[str]) -> None:
        """Note digests of people on whom a model was trained; they never count as unseen again."""
        new = set(person_digests) - self.trained(person_digests)
        if not new:
            return
        with self._change() as tables:
            known = self._trained(tables, new)  # another process may have been faster
            tables.insert(TRAINED, ({"person_digest": value} for value in sorted(new - known)))

    def trained(self, person_digests: Collection[str]) -> frozenset[str]:
        """Return those of these digests that :meth:`note_trained` has noted."""
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
        """Return the number of different purged images, of a job's requests or of all."""
        of_job = TOMBSTONE.c.request.in_(sa.select(REQUEST.c.id).where(REQUEST.c.job == job)) if job else sa.true()
        with self._reading() as tables:
            listed = tables.read(LEFTOVER, LEFTOVER.c.listed)
            left = {content_digest(self._key, row["sha256"]) for row in listed if row["sha256"]}
            return sum(row["content_digest"] not in left for row in tables.read(TOMBSTONE, of_job))

    def note_leftovers(self, request: str, leftovers: Collection[Leftover]) -> None:
        """Replace the list of a request's files that still exist."""
        with self._change() as tables:
            tables.delete(LEFTOVER, LEFTOVER.c.request == request)
            tables.insert(LEFTOVER, (asdict(leftover) for leftover in leftovers))

    def leftovers(self, request: str | None = None) -> list[Leftover]:
        """Return the files of forgotten people that still exist, of one request or of all."""
        condition = LEFTOVER.c.request == request if request else sa.true()
        with self._reading() as tables:
            rows = tables.read(LEFTOVER, condition, LEFTOVER.c.request, LEFTOVER.c.file)
            return [Leftover(**{name: value for name, value in row.items() if name != "seal"}) for row in rows]

    def forget_identity(self, request: str) -> None:
        """Delete a person's name and written texts from all of their requests; keep the keyed digest."""
        with self._change() as tables:
            (own,) = tables.read(REQUEST, REQUEST.c.id == request)
            of_person = REQUEST.c.person_digest == own["person_digest"]  # also those that were withdrawn or refused
            requests = [row["id"] for row in tables.read(REQUEST, of_person)]
            tables.update(REQUEST, of_person, {"identity": None})
            for column in (REQUEST.c.verified_by, REQUEST.c.note):
                tables.update(REQUEST, sa.and_(of_person, column != ""), {column.name: PURGED_TEXT})
            written = sa.and_(HISTORY.c.request.in_(requests), HISTORY.c.remark != "")
            tables.update(HISTORY, written, {"remark": PURGED_TEXT})

    def _get(self, tables: SealedTables, request: str) -> ForgetRequest:
        found = self._read(tables, REQUEST.c.id == request)
        if not found:
            raise LedgerError(f"There is no request {request} in {self.name}.")
        return found[0]

    @staticmethod
    def _append(
        tables: SealedTables, request: str, action: Action, state: RequestState, reason: str, **more: Any
    ) -> None:
        tables.last += 1
        row = {
            "sequence": tables.last,
            "request": request,
            "at": datetime.now(UTC).isoformat(),
            "action": action.value,
            "state": state.value,
            "reason": reason,
            "done_by": "",
            "remark": "",
        }
        days = {name: day.isoformat() for name, day in more.items() if isinstance(day, date)}
        tables.insert(HISTORY, [dict.fromkeys(HISTORY.c.keys()) | row | more | days])

    @staticmethod
    def _read(tables: SealedTables, condition: sa.ColumnElement[bool]) -> list[ForgetRequest]:
        rows = tables.read(REQUEST, condition, REQUEST.c.requested_at, REQUEST.c.id)
        return [ForgetRequest.of(row) for row in rows]

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
    """Lock the ledger for one writer until the end of the transaction, as SQLite does."""
    limit_waits(connection)
    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_POSTGRESQL_LOCK})")


def _asked_before(identity: str, earlier: ForgetRequest) -> str:
    if earlier.state in FORGOTTEN:
        return f"'{identity}' was forgotten already, by request {earlier.id} with epoch {earlier.epoch}."
    return f"'{identity}' has asked already, on {earlier.received}: request {earlier.id} is {earlier.state}."
