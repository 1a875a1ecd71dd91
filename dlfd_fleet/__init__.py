"""Right to be forgotten for federated fleets of edge models.

``dlfd_fleet.unlearning`` forgets on plain tensors, ``dlfd_fleet.audit`` attacks the result, ``dlfd_fleet.federation``
does both across a Flower fleet, ``dlfd_fleet.tracking`` records it in MLflow, ``dlfd_fleet.export`` writes the ONNX
file and ``dlfd_fleet.device`` runs it. ``dlfd_fleet.settings`` holds every knob.
"""

from dlfd_fleet.cores import wait_without_spinning

__version__ = "0.2.0"
wait_without_spinning()
