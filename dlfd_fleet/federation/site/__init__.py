"""Answer the coordinator's messages at a site, with its images, its ledger and the model that it holds.

A handler takes a task of :mod:`~dlfd_fleet.federation.protocol` and the site's folder. It returns counts, arrays or
audited samples. One call adds all handlers to a ClientApp. Stable: :func:`add_unlearning`.

Examples
--------
>>> from flwr.clientapp import ClientApp
>>> from dlfd_fleet.federation.site import add_unlearning
>>> app = add_unlearning(ClientApp())
"""

from dlfd_fleet.federation.site.handlers import add_unlearning

__all__ = [
    "add_unlearning",
]
