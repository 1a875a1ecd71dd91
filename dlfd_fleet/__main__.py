"""``python -m dlfd_fleet`` is the command ``dlfd-fleet``."""

from dlfd_fleet.cli import main

main()
