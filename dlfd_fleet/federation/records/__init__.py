"""Store a coordinator's jobs, their finished steps, their models, and which model is the champion.

A job is a plain function whose steps go through a :class:`Journal`. If it is killed and started again, it continues
after the last finished step. Not stable: use ``dlfd-fleet job``.

Examples
--------
>>> import tempfile
>>> from pathlib import Path
>>> from dlfd_fleet.federation.records import Journal, Store
>>> from dlfd_fleet.settings import Settings
>>> store = Store(Path(tempfile.mkdtemp()))
>>> job = store.new_job("train", Settings()).job
>>> Journal(store, job).facts("count", int, lambda: 3)
3
>>> Journal(store, job).facts("count", int, lambda: 4)  # done before, and so not again
3
"""

from dlfd_fleet.federation.records.job_record import Champion, JobRecord, Promotion
from dlfd_fleet.federation.records.journal import Journal
from dlfd_fleet.federation.records.store import Store

__all__ = [
    "Champion",
    "JobRecord",
    "Journal",
    "Promotion",
    "Store",
]
