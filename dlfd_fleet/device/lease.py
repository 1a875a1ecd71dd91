"""Compute until when a device answers without contact to its coordinator.

A coordinator counts an erasure as over on a device whose lease is over, by the last report. So a reported lease is
renewed only when the next report is acknowledged.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

NEVER = datetime.min.replace(tzinfo=UTC)
"""End of a lease if the device was never in contact with its coordinator."""


def offered_lease(heard: datetime | None, lease_days: float | None) -> datetime | None:
    """Return the end of the lease for the next report; None without a lease.

    Parameters
    ----------
    heard
        Time of the last contact with the coordinator.
    """
    if lease_days is None:
        return None
    return heard + timedelta(days=lease_days) if heard else NEVER


def lease_in_force(offered: datetime | None, acknowledged: datetime | None) -> datetime | None:
    """Return when the device stops answering; None for never.

    Parameters
    ----------
    acknowledged
        End of the lease in the last acknowledged report; None if there is none.
    """
    return min((end for end in (offered, acknowledged) if end is not None), default=None)


def is_to_be_renewed(offered: datetime | None, acknowledged: datetime | None, now: datetime) -> bool:
    """Tell whether to report the lease: it has begun or ended, or half of it has passed."""
    if offered is None or acknowledged is None:
        return offered != acknowledged
    return offered > acknowledged and acknowledged - now < (offered - now) / 2
