"""Until when a device answers without hearing from its coordinator, and no longer than the coordinator knows.

A coordinator counts an erasure as over on a device whose lease has run out, and knows of the lease what the last report
said. So a lease that was reported once is renewed by the next report that is acknowledged, not by hearing alone.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

NEVER = datetime.min.replace(tzinfo=UTC)
"""End of the lease of a device that has one and never heard from its coordinator."""


def offered_lease(heard: datetime | None, lease_days: float | None) -> datetime | None:
    """Return the end of the lease that the next report tells; None without one.

    Parameters
    ----------
    heard
        When the coordinator was last heard from.
    """
    if lease_days is None:
        return None
    return heard + timedelta(days=lease_days) if heard else NEVER


def lease_in_force(offered: datetime | None, acknowledged: datetime | None) -> datetime | None:
    """Return when the device stops to answer; None for never.

    Parameters
    ----------
    acknowledged
        End of the lease in the last report that the coordinator took; None if that was without one, or there is none.
    """
    return min((end for end in (offered, acknowledged) if end is not None), default=None)


def is_to_be_renewed(offered: datetime | None, acknowledged: datetime | None, now: datetime) -> bool:
    """Tell whether the coordinator must be told of the lease: it has begun or ended, or half of it has passed."""
    if offered is None or acknowledged is None:
        return offered != acknowledged
    return offered > acknowledged and acknowledged - now < (offered - now) / 2
