"""How models reach devices: a signed repository, rollouts by rings, and what each device has reported.

:class:`~dlfd_fleet.delivery.repository.Repository` writes TUF metadata; devices read them with
:mod:`dlfd_fleet.device.update`.
"""
