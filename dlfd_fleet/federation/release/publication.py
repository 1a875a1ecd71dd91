"""Decide which models may be published to devices, and report the progress of erasures there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from dlfd_fleet.delivery.delivery import has_delivery, opened
from dlfd_fleet.delivery.erasures import reached, standings
from dlfd_fleet.delivery.publish import ReleasedModel
from dlfd_fleet.device.inference import DeviceModel
from dlfd_fleet.exceptions import JobError
from dlfd_fleet.federation.protocol.messages import DevicesReached
from dlfd_fleet.federation.records.job_folders import ONNX_FILE
from dlfd_fleet.federation.records.job_record import JobRecord
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.federation.release.release_rule import may_release
from dlfd_fleet.formats import FORMATS
from dlfd_fleet.report import DeliveryProgress
from dlfd_fleet.settings import Format, Settings


def released_model(
    store: Store, settings: Settings, version: str, formats: Sequence[Format] | None = None
) -> ReleasedModel:
    """Return a released model that may be published.

    Parameters
    ----------
    version
        A job's name, a version as the model's file says it, a number of the model registry, or ``champion``.
    formats
        Formats to publish. Default: all that were released.

    Raises
    ------
    JobError
        If there is no such version, or it may not be published.
    TrackingError
        If the registry is asked and does not answer.
    """
    record = _find(store, settings, version)
    reason = why_not(store, settings, record) or _why_revoked(settings, record)
    if reason is None:
        wanted = tuple(formats or record.formats)
        reason = next((why for form in wanted if (why := why_not_file(settings, record, form))), None)
    if reason is not None:
        raise JobError(f"{record.job} is not published: {reason}.")
    source = store.folders.model(record.job) / ONNX_FILE
    files = {form: FORMATS.find(form).file(source) for form in wanted}
    model = DeviceModel(source)
    digests = {form: result.sha256 for form, result in record.proceedings.files.items()}
    return ReleasedModel(model.version, model.epoch, files, digests)


def as_formats(words: str | None) -> tuple[Format, ...] | None:
    """Return the formats of a command line, separated by commas; None if it names none."""
    if words is None:
        return None
    names, known = tuple(word.strip() for word in words.split(",")), tuple(FORMATS.names())
    if unknown := [name for name in names if name not in known]:
        raise JobError(f"There is no format '{unknown[0]}'; there are {', '.join(known)}.")
    return names


def why_not(store: Store, settings: Settings, record: JobRecord) -> str | None:
    """Return why a job's model may not be published, or None if it may."""
    champion = store.champions.current()
    if champion is not None and champion.job == record.job:
        return None  # by its verdict, or by the decision of a person who promoted it
    if not record.released:
        return f"it was not released ({record.note or record.step})"
    if champion is not None and record.epoch < champion.epoch:
        return (
            f"it is revoked: it is of epoch {record.epoch}, and the fleet has forgotten people since "
            f"(epoch {champion.epoch}, {champion.job})"
        )
    if record.verdict is not None and not may_release(record.verdict, settings):
        return f"its verdict is {record.verdict.sentence().rstrip('.')}"
    return None


def _why_revoked(settings: Settings, record: JobRecord) -> str | None:
    """Return the reason of a person who revoked a job's version in the registry, if one did."""
    from dlfd_fleet.tracking import open_registry

    if not has_registry(settings):
        return None
    with open_registry(settings.tracking, settings.state_folder) as registry:
        version = registry.version_of(record.job)
    return f"it is revoked: {version.revoked}" if version and version.revoked else None


def has_registry(settings: Settings) -> bool:
    """Tell whether anything may be registered: a store of this machine's own is made with the first version."""
    from dlfd_fleet.tracking.tracker import tracking_uri

    uri = tracking_uri(settings.tracking, settings.state_folder)
    return not uri.startswith("sqlite:///") or Path(uri.removeprefix("sqlite:///")).exists()


def why_not_file(settings: Settings, record: JobRecord, form: Format) -> str | None:
    """Return why one of its files may not be published, or None if it may."""
    verdict = record.file_verdicts.get(form)
    if verdict is not None and not may_release(verdict, settings):
        return f"the verdict of its {form} file is {verdict.sentence().rstrip('.')}"
    if form not in record.formats:
        return f"it has no {form} file; it has {', '.join(record.formats)}"
    return None


def devices_reached(settings: Settings, epoch: int) -> DevicesReached:
    """Return the progress of erasures up to an epoch on devices.

    Raises
    ------
    DeliveryError
        If what is known of the devices cannot be read.
    """
    if not has_delivery(settings):
        return DevicesReached()
    with opened(settings) as delivery:
        found, reason = reached(delivery.devices, epoch, delivery.clock())
    return DevicesReached(epoch=found, reason=reason)


def delivery_progress(settings: Settings, epoch: int) -> DeliveryProgress | None:
    """Return the progress of a released model on devices; None without a delivery.

    Raises
    ------
    DeliveryError
        If what is known of the devices cannot be read.
    """
    if not has_delivery(settings):
        return None
    with opened(settings) as delivery:
        devices, now = delivery.devices, delivery.clock()
        published = [devices.published_at(file.sequence) for file in devices.files() if file.epoch >= epoch]
        first = min((at for at in published if at), default=None)
        stand = standings(devices, epoch, now)
        floor = devices.floor()
    kinds = Counter(each.kind for each in stand)
    return DeliveryProgress(
        as_of=now,
        published_at=first,
        minimum_epoch=floor,
        devices=len(stand),
        purged=kinds["purged"],
        retired=kinds["retired"],
        excepted={each.device.name: each.reason for each in stand if each.kind == "excepted"},
        waiting={each.device.name: each.reason for each in stand if each.open},
    )


def _find(store: Store, settings: Settings, version: str) -> JobRecord:
    jobs = store.jobs()
    champion = store.champions.current()
    if version == "champion" and champion is None:
        raise JobError("There is no champion yet; run a training job first (`dlfd-fleet job start train`).")
    name = champion.job if version == "champion" and champion else version
    found = next((record for record in jobs if record.job == name), None)
    if found is None and name.isdecimal():
        found = _registered(store, settings, name)
    for record in reversed(jobs):
        file = store.folders.model(record.job) / ONNX_FILE
        if found is None and record.released and file.exists() and DeviceModel(file).version == name:
            found = record
    if found is None:
        raise JobError(
            f"There is no version '{version}': name a job (`dlfd-fleet job list`), a version of the registry, or "
            "champion."
        )
    return found


def _registered(store: Store, settings: Settings, number: str) -> JobRecord:
    from dlfd_fleet.tracking import open_registry

    with open_registry(settings.tracking, settings.state_folder) as registry:
        version = registry.version(number)
    if not version.job:
        raise JobError(f"Version {number} was not made by a job of dlfd-fleet, so it is not known whom it remembers.")
    return store.load(version.job)
