"""Define the messages between coordinator and sites, their bounds, and how models travel.

A message packs typed fields, arrays and audited samples into Flower's records, and unpacks them on the other side. A
message that breaks a bound raises a :class:`~dlfd_fleet.exceptions.MessageError` that names the sender.

Examples
--------
>>> from dlfd_fleet.federation.protocol import PendingQuery
>>> records = PendingQuery(job="erase-1", take=True).to_records()
>>> PendingQuery.from_records(records, "The coordinator").job
'erase-1'
"""

from dlfd_fleet.federation.protocol.differences import difference_of, model_of
from dlfd_fleet.federation.protocol.messages import (
    AuditResult,
    AuditTask,
    CalibrateResult,
    CalibrateTask,
    DevicesReached,
    FileAuditResult,
    FileAuditTask,
    FitResult,
    FitTask,
    PendingQuery,
    PendingReply,
    Reference,
    ReferenceResult,
    ReferenceTask,
    RequestDates,
    SettleResult,
    SettleTask,
    UnlearnResult,
    UnlearnTask,
    UnseenResult,
    UnseenTask,
)
from dlfd_fleet.federation.protocol.packing import (
    COORDINATOR,
    MODEL,
    Arrays,
    FleetMessage,
    arrays_of,
    bytes_of,
    samples_of,
)

__all__ = [
    "COORDINATOR",
    "MODEL",
    "Arrays",
    "AuditResult",
    "AuditTask",
    "CalibrateResult",
    "CalibrateTask",
    "DevicesReached",
    "FileAuditResult",
    "FileAuditTask",
    "FitResult",
    "FitTask",
    "FleetMessage",
    "PendingQuery",
    "PendingReply",
    "Reference",
    "ReferenceResult",
    "ReferenceTask",
    "RequestDates",
    "SettleResult",
    "SettleTask",
    "UnlearnResult",
    "UnlearnTask",
    "UnseenResult",
    "UnseenTask",
    "arrays_of",
    "bytes_of",
    "difference_of",
    "model_of",
    "samples_of",
]
