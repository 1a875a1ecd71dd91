"""The ClientApp of a site: what it answers is in :mod:`dlfd_fleet.federation.site.handlers`."""

from __future__ import annotations

from flwr.clientapp import ClientApp

from dlfd_fleet.federation.site.handlers import add_unlearning

app = add_unlearning(ClientApp())
