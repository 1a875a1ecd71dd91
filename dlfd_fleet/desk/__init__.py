"""What people at a site need who answer for its requests: letters to the people who asked, and records over a period.

Requests are taken in, extended, refused and withdrawn in :mod:`dlfd_fleet.ledger`. :func:`write_letter` makes a letter
of a request, :func:`write_records` a signed archive of a period, which
:func:`dlfd_fleet.report.archive.verify_archive` checks.
"""

from dlfd_fleet.desk.letters import Stage, write_letter
from dlfd_fleet.desk.records import write_records

__all__ = ["Stage", "write_letter", "write_records"]
