"""What people decide about a release that devices take by rings: it is done, and who decided it and why is kept."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal

from dlfd_fleet.delivery.delivery import opened as opened_delivery
from dlfd_fleet.device.contract import Rollout
from dlfd_fleet.federation.records.decisions import Act, require_reason
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.settings import Settings

Decided = Literal["pause", "resume", "abort"]
_ACTS: dict[Decided, Act] = {"pause": "hold", "resume": "go on", "abort": "abort"}


def change_rollout(settings: Settings, step: Decided, who: str, why: str, keys: Sequence[Path] = ()) -> Rollout:
    """Pause, resume or abort the rollout, and keep the decision with the jobs.

    Parameters
    ----------
    keys
        Folders of keys beside the delivery's.

    Raises
    ------
    JobError
        If the reason is empty.
    DeliveryError
        If there is no rollout, it is not at this step, or a key is missing.
    """
    why = require_reason(why)
    with opened_delivery(settings, keys) as delivery:
        changed = delivery.change_rollout(step)
    with closing(Store(settings.state_folder)) as store:
        store.decisions.note(_ACTS[step], f"publication {changed.sequence}", who, why)
    return changed
