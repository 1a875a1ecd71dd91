"""Keep a site's forget requests: who asked, how far each request is, and what was purged.

A :class:`Site` is a folder with a card, a manifest, keys and a :class:`Ledger`. Names stay in the ledger; the
coordinator learns ids and counts. After a purge only a keyed digest of a name remains, so that the site recognises the
person if images come back::

    with Site(folder) as site:
        request_forgetting(site, "anna", deadline_days=28)
        print(site.ledger.requests())

Not stable: use ``dlfd-fleet forget`` and ``dlfd-fleet site``.
"""

from dlfd_fleet.data import canonical
from dlfd_fleet.ledger.entries import Event, ForgetRequest
from dlfd_fleet.ledger.ledger import Ledger
from dlfd_fleet.ledger.purge import complete_requests, purge_request, purge_site
from dlfd_fleet.ledger.refresh import refresh_rows
from dlfd_fleet.ledger.requests import (
    Extension,
    extend,
    join_requests,
    plan_extension,
    refuse,
    request_forgetting,
    withdraw,
)
from dlfd_fleet.ledger.site import Site, SiteCard, create_site, site_folders
from dlfd_fleet.ledger.site_setup import deal_to_sites, init_site
from dlfd_fleet.ledger.states import Action, Ground, RequestState
from dlfd_fleet.ledger.status import SiteStatus, site_status

__all__ = [
    "Action",
    "Event",
    "Extension",
    "ForgetRequest",
    "Ground",
    "Ledger",
    "RequestState",
    "Site",
    "SiteCard",
    "SiteStatus",
    "canonical",
    "complete_requests",
    "create_site",
    "deal_to_sites",
    "extend",
    "init_site",
    "join_requests",
    "plan_extension",
    "purge_request",
    "purge_site",
    "refresh_rows",
    "refuse",
    "request_forgetting",
    "site_folders",
    "site_status",
    "withdraw",
]
