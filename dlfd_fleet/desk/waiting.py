"""What a coordinator on the same machine knows of what keeps a request open: its job, sites that are away, devices."""

from __future__ import annotations

from datetime import UTC, datetime

from dlfd_fleet.exceptions import FleetError
from dlfd_fleet.ledger.entries import ForgetRequest
from dlfd_fleet.ledger.states import TO_PURGE, UNDER_WAY, RequestState
from dlfd_fleet.settings import Settings


def what_the_fleet_says(settings: Settings, request: ForgetRequest) -> list[str]:
    """Say what a coordinator whose state folder is on this machine knows of a request's job and of devices.

    Elsewhere a site learns counts alone: the names of devices are the coordinator's.
    """
    said = list[str]()
    if request.job and request.state in (*UNDER_WAY, *TO_PURGE, RequestState.ROLLING_OUT):
        said += _of_the_job(settings, request.job)
    if request.epoch is not None and request.state is RequestState.ROLLING_OUT:
        said += _of_devices(settings, request.epoch)
    return said


def _of_the_job(settings: Settings, job: str) -> list[str]:
    if not (settings.state_folder / "coordinator" / "jobs.db").exists():
        return []
    from dlfd_fleet.federation.jobs.command import opened, state_of  # late: it loads torch

    try:
        with opened(settings.state_folder) as store:
            record = store.load(job)
            state = state_of(store, record, store.is_locked())
    except FleetError:  # another fleet's state folder
        return []
    away = [f"Site {site} was away: it {reason}." for site, reason in sorted(record.absent.items())]
    return [f"{job} is {state}.", *away]


def _of_devices(settings: Settings, epoch: int) -> list[str]:
    try:
        from dlfd_fleet.delivery.delivery import has_delivery, opened
        from dlfd_fleet.delivery.erasures import open_devices
    except ModuleNotFoundError:  # what is installed is for a site alone
        return []
    if not has_delivery(settings):
        return []
    try:
        with opened(settings) as delivery:
            waiting = open_devices(delivery.devices, epoch, datetime.now(UTC))
    except FleetError as error:
        return [str(error)]
    return [f"Device {each.device.name} {each.reason}." for each in waiting]
