"""Store the coordinator's devices in SQL: their keys, last reports and the files that they could have."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

import sqlalchemy as sa
from securesystemslib.dsse import Envelope
from securesystemslib.signer import Signer, SSlibKey
from sqlalchemy.exc import DatabaseError, IntegrityError

from dlfd_fleet.database import shared_engine
from dlfd_fleet.delivery.reports import open_envelope, verified_report
from dlfd_fleet.delivery.tables import ALARM, ATTACK, DELIVERY, DEVICE, FILE, NONCE, PURGED, TABLES
from dlfd_fleet.device.contract import DeviceReport
from dlfd_fleet.exceptions import DeliveryError, ReportRefusedError, ReportRepeatedError
from dlfd_fleet.names import plain_name
from dlfd_fleet.settings import Format

RETIREMENT_TYPE = "application/vnd.dlfd-fleet.device-retirement+json"
_VERSION = 2
_KEPT_ATTACKS = 1000
_AHEAD = timedelta(minutes=5)
"""How far ahead of ours a device's clock may be."""


@dataclass(frozen=True)
class PublishedFile:
    """A model file that devices could have had."""

    sha256: str
    sequence: int
    epoch: int
    version: str
    format: Format


@dataclass(frozen=True)
class Alarm:
    """A sign that two machines report with one key, or that a device's disk was set back."""

    at: datetime
    said: str


@dataclass(frozen=True)
class Device:
    """One device: its last report, or why it was retired.

    While there is an alarm, its reports close no erasure. Only :meth:`DeviceStore.retire` ends an alarm.
    """

    id: str
    name: str
    canary: bool
    enrolled_at: datetime
    retired: str | None
    report: DeviceReport | None
    received_at: datetime | None
    alarms: tuple[Alarm, ...] = ()

    def lease_is_over(self, now: datetime) -> bool:
        """Tell whether its lease is over, so that it no longer answers."""
        lease = self.report.lease_until if self.report else None
        return lease is not None and lease < now


@dataclass(frozen=True)
class Attack:
    """Something that a device refused."""

    device: str
    at: datetime
    said: str


class DeviceStore:
    """Devices and their reports; several processes may use it at once.

    Parameters
    ----------
    location
        A SQLite file, or the URL of a PostgreSQL database (``postgresql+psycopg://host/database``).

    Raises
    ------
    DeliveryError
        If the database cannot be reached, or another release wrote it.
    """

    def __init__(self, location: Path | str) -> None:
        self.name = str(location)
        try:
            if isinstance(location, Path):
                location.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DeliveryError(f"The folder of {location} cannot be made: {error.strerror}.") from error
        self._engine = shared_engine(location, "delivery.database", DeliveryError)
        with self._transaction() as connection:
            TABLES.create_all(connection)
            version = connection.execute(sa.select(DELIVERY.c.version)).scalar()
            if version is None:
                connection.execute(sa.insert(DELIVERY).values(version=_VERSION, floor=0))
            elif version != _VERSION:
                raise DeliveryError(
                    f"{self.name} has the format {version}, and this release reads {_VERSION}; use the release that "
                    "wrote it."
                )

    def close(self) -> None:
        """Close the database."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------ who belongs to the fleet

    def enroll(self, key: SSlibKey, name: str, now: datetime, *, canary: bool = False) -> str:
        """Add a device by its public key, and return its id.

        Raises
        ------
        DeliveryError
            If it was added before, or the name is not a plain one.
        """
        try:
            plain_name(name)
        except ValueError as error:
            raise DeliveryError(f"The device {error}.") from error
        row = {
            "id": key.keyid,
            "name": name,
            "public_key": json.dumps(key.to_dict()),
            "canary": canary,
            "enrolled_at": now.isoformat(),
        }
        try:
            with self._transaction() as connection:
                connection.execute(sa.insert(DEVICE).values(row))
        except IntegrityError as error:
            raise DeliveryError(f"The device {key.keyid[:12]} is in the fleet already.") from error
        return key.keyid

    def retire(self, device: str, reason: str, now: datetime, signer: Signer) -> Device:
        """Retire a device: it keeps no erasure open any more. The signed reason is kept.

        Parameters
        ----------
        device
            Its id or the beginning of it, or its name.

        Raises
        ------
        DeliveryError
            If there is no such device, it is retired already, or there is no reason.
        """
        found = self.find(device)
        if found.retired is not None:
            raise DeliveryError(f"The device {found.name} is retired already: {found.retired}.")
        if not reason.strip():
            raise DeliveryError("The reason is empty: say why the device is retired; it is signed and kept.")
        statement = {"device": found.id, "reason": reason, "time": now.isoformat()}
        envelope = Envelope(json.dumps(statement, sort_keys=True).encode(), RETIREMENT_TYPE, {})
        envelope.sign(signer)
        with self._transaction() as connection:
            update = sa.update(DEVICE).where(DEVICE.c.id == found.id)
            connection.execute(update.values(retirement=json.dumps(envelope.to_dict())))
        return self.find(found.id)

    def retirement(self, device: str) -> str | None:
        """Return the signed envelope that says why a device is retired."""
        with self._transaction() as connection:
            return connection.execute(sa.select(DEVICE.c.retirement).where(DEVICE.c.id == device)).scalar()

    def devices(self) -> list[Device]:
        """Return all devices, by name."""
        with self._transaction() as connection:
            rows = connection.execute(sa.select(DEVICE).order_by(DEVICE.c.name, DEVICE.c.id)).mappings().all()
            alarms = connection.execute(sa.select(ALARM).order_by(ALARM.c.at, ALARM.c.kind)).mappings().all()
        raised: dict[str, list[Alarm]] = {}
        for alarm in alarms:
            raised.setdefault(alarm["device"], []).append(Alarm(datetime.fromisoformat(alarm["at"]), alarm["said"]))
        return [_as_device(row, tuple(raised.get(row["id"], ()))) for row in rows]

    def find(self, device: str) -> Device:
        """Return the one device of this id, beginning of an id, or name."""
        found = [each for each in self.devices() if each.name == device or each.id.startswith(device)]
        if len(found) != 1:
            how = "no device" if not found else f"{len(found)} devices"
            raise DeliveryError(f"There is {how} '{device}'; `dlfd-fleet delivery status` shows them.")
        return found[0]

    def canaries(self) -> list[str]:
        """Return the ids of the devices that take a new release first."""
        return [device.id for device in self.devices() if device.canary and device.retired is None]

    # ------------------------------------------------------------------ reports

    def receive(self, content: bytes, now: datetime, window: timedelta) -> DeviceReport:
        """Take a device's report.

        Parameters
        ----------
        content
            JSON of the DSSE envelope.
        window
            Greatest age of a report; its nonce is kept for the same time.

        Raises
        ------
        ReportRefusedError
            If it is not signed by a device of the fleet, too old, or dated in the future.
        ReportRepeatedError
            If it was received before.
        """
        envelope, keyid = open_envelope(content)
        with self._transaction() as connection:
            row = connection.execute(sa.select(DEVICE).where(DEVICE.c.id == keyid)).mappings().first()
        if row is None:
            raise ReportRefusedError(f"The device {keyid[:12]} is not of this fleet: enroll its public key.")
        if row["retirement"] is not None:
            raise ReportRefusedError(f"The device {row['name']} is retired.")
        report = verified_report(envelope, SSlibKey.from_dict(keyid, json.loads(row["public_key"])))
        if report.nonce == row["last_nonce"]:  # of whatever time: its device did not hear that it was taken
            raise ReportRepeatedError(f"This report of {row['name']} was received before: it counts once.")
        if report.time - now > _AHEAD:
            raise ReportRefusedError(
                f"The report of {row['name']} is of {report.time:%Y-%m-%d %H:%M %Z}, which is in the future: set the "
                "device's clock right."
            )
        if now - report.time > window:
            raise ReportRefusedError(
                f"The report of {row['name']} is of {report.time:%Y-%m-%d %H:%M %Z}, too far from now: an old one, or "
                "the device's clock is wrong."
            )
        try:
            self._keep(report, now, window)
        except IntegrityError as error:
            raise ReportRepeatedError(f"This report of {row['name']} was received before: it counts once.") from error
        return report

    def _keep(self, report: DeviceReport, now: datetime, window: timedelta) -> None:
        with self._transaction() as connection:
            nonce = {"device": report.device, "nonce": report.nonce, "received_at": now.isoformat()}
            connection.execute(sa.insert(NONCE).values(nonce))
            # A report's time is at most one window from ours, either way: two windows on, it is refused for its time.
            over = NONCE.c.received_at < (now - 2 * window).isoformat()
            connection.execute(sa.delete(NONCE).where(over))
            attacks = [
                {"device": report.device, "at": report.time.isoformat(), "said": said} for said in report.attacks
            ]
            if attacks:
                newest = connection.execute(sa.insert(ATTACK).returning(ATTACK.c.number), attacks).scalars().all()
                connection.execute(sa.delete(ATTACK).where(ATTACK.c.number <= max(newest) - _KEPT_ATTACKS))
            known = sa.select(DEVICE.c.report, DEVICE.c.last_nonce, DEVICE.c.floor).where(DEVICE.c.id == report.device)
            before = connection.execute(known.with_for_update()).mappings().one()
            is_next = before["last_nonce"] is None or before["last_nonce"] in report.follows
            self._raise_alarms(connection, report, before["floor"], now, is_next=is_next)
            values = {"last_nonce": report.nonce, "floor": max(before["floor"], report.floor)}
            last = before["report"]
            if is_next or last is None or DeviceReport.model_validate_json(last).time < report.time:
                values |= {"report": report.model_dump_json(), "received_at": now.isoformat()}
            connection.execute(sa.update(DEVICE).where(DEVICE.c.id == report.device).values(values))

    def _raise_alarms(
        self, connection: sa.Connection, report: DeviceReport, floor: int, now: datetime, *, is_next: bool
    ) -> None:
        """Note contradictions that show a cloned or restored disk, and what was purged."""
        files = connection.execute(sa.select(FILE.c.sha256, sa.func.max(FILE.c.epoch)).group_by(FILE.c.sha256))
        epochs: dict[str, int] = dict(files.tuples().all())
        rows = connection.execute(sa.select(PURGED.c.sha256).where(PURGED.c.device == report.device))
        purged = set(rows.scalars())
        forbidden = max(floor, report.floor)
        # What is not forbidden may come back: by an abort of the rollout that it had made room for.
        returned = [digest for digest in report.installed if digest in purged and epochs.get(digest, 0) < forbidden]
        raised = {}
        if not is_next:
            raised["chain"] = (
                f"its report of {report.time:%Y-%m-%d %H:%M} does not follow the one before: two machines have this "
                "key, or its disk was set back"
            )
        if report.floor < floor:
            raised["floor"] = f"its floor fell from {floor} to {report.floor}"
        if returned:
            raised["purged"] = f"it holds {len(returned)} files again that it had purged ({returned[0][:12]})"
        kinds = set(connection.execute(sa.select(ALARM.c.kind).where(ALARM.c.device == report.device)).scalars())
        for kind, said in raised.items():
            if kind not in kinds:
                row = {"device": report.device, "kind": kind, "at": now.isoformat(), "said": said}
                connection.execute(sa.insert(ALARM).values(row))
        news = [digest for digest in dict.fromkeys(report.purged) if digest in epochs and digest not in purged]
        if news:
            connection.execute(sa.insert(PURGED), [{"device": report.device, "sha256": digest} for digest in news])

    def attacks(self, most: int = 20) -> list[Attack]:
        """Return what devices refused, newest first."""
        query = sa.select(ATTACK).order_by(ATTACK.c.number.desc()).limit(most)
        with self._transaction() as connection:
            rows = connection.execute(query).mappings().all()
        return [Attack(row["device"], datetime.fromisoformat(row["at"]), row["said"]) for row in rows]

    # ------------------------------------------------------------------ releases

    def note_file(self, file: PublishedFile, now: datetime | None = None) -> None:
        """Remember a file that devices may have from now on."""
        row = {**vars(file), "published_at": (now or datetime.now(UTC)).isoformat()}
        with self._transaction() as connection:
            connection.execute(sa.insert(FILE).values(row))

    def files(self) -> list[PublishedFile]:
        """Return every model file that was ever published, oldest first."""
        columns = [FILE.c[name] for name in PublishedFile.__dataclass_fields__]
        with self._transaction() as connection:
            rows = connection.execute(sa.select(*columns).order_by(FILE.c.sequence, FILE.c.format)).mappings().all()
        return [PublishedFile(**row) for row in rows]

    def published_at(self, sequence: int) -> datetime | None:
        """Return when a publication was made."""
        query = sa.select(sa.func.min(FILE.c.published_at)).where(FILE.c.sequence == sequence)
        with self._transaction() as connection:
            text = connection.execute(query).scalar()
        return datetime.fromisoformat(text) if text else None

    def last_sequence(self) -> int:
        """Return the number of the last publication; 0 before there is one."""
        with self._transaction() as connection:
            return connection.execute(sa.select(sa.func.max(FILE.c.sequence))).scalar() or 0

    def floor(self) -> int:
        """Return the lowest epoch that devices may run, of all publications."""
        with self._transaction() as connection:
            return int(connection.execute(sa.select(DELIVERY.c.floor)).scalar_one())

    def raise_floor(self, epoch: int) -> None:
        """Keep the floor that was published; it never falls."""
        with self._transaction() as connection:
            connection.execute(sa.update(DELIVERY).where(DELIVERY.c.floor < epoch).values(floor=epoch))

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except IntegrityError:
            raise
        except DatabaseError as error:
            raise DeliveryError(f"The devices' database {self.name} cannot be used: {error.orig}.") from error


def _as_device(row: sa.RowMapping, alarms: tuple[Alarm, ...]) -> Device:
    reason = None
    if row["retirement"] is not None:
        reason = str(json.loads(Envelope.from_dict(json.loads(row["retirement"])).payload)["reason"])
    return Device(
        id=row["id"],
        name=row["name"],
        canary=row["canary"],
        enrolled_at=datetime.fromisoformat(row["enrolled_at"]),
        retired=reason,
        report=DeviceReport.model_validate_json(row["report"]) if row["report"] else None,
        received_at=datetime.fromisoformat(row["received_at"]) if row["received_at"] else None,
        alarms=alarms,
    )
