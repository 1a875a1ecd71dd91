"""A site's side of every message: its images, its ledger, the model that it holds. Nothing here knows the coordinator.

In goes a task of :mod:`~dlfd_fleet.federation.protocol`, and the folder of the site that the node works on; out goes a
result with counts, arrays or audited samples. Any ClientApp gets all of it by one call.

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
