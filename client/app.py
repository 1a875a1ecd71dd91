"""The ClientApp of a site: what it answers is in :mod:`dlfd_fleet.federation.site.handlers`."""

from __future__ import annotations

from flwr.clientapp import ClientApp

from dlfd_fleet.federation.app_errors import log_errors_in_words
from dlfd_fleet.federation.site.handlers import add_unlearning

log_errors_in_words()
app = add_unlearning(ClientApp())
