"""Bring models to devices: a signed repository, rollouts in rings, and device reports.

:func:`~dlfd_fleet.delivery.publish.publish` takes a released model's files and signs them in a TUF
:class:`~dlfd_fleet.delivery.repository.Repository`. Devices read it with :mod:`dlfd_fleet.device.update` and send
reports. :mod:`~dlfd_fleet.delivery.erasures` tells from the reports which devices keep an erasure open.

Not stable: use ``dlfd-fleet delivery``, ``publish`` and ``rollout``.
"""
