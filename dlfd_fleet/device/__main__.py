"""``python -m dlfd_fleet.device``: the same as ``dlfd-fleet-device``."""

from dlfd_fleet.device.cli import main

main()
