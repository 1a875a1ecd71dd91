"""The benchmarks: DLFD and its peers, whole fleets, device files, and load.

``methods/`` and ``fleets/`` compare models with retrained ones. Both make a :class:`~dlfd_fleet.bench.rows.Row` of each
model with the same attacks (``evidence.py``) and the same table (``report.py``). ``devices/`` times one model in every
format. ``load/`` measures the coordinator by the number of sites, and the repository by the number of devices.

Nothing here is stable API. The commands are: ``dlfd-fleet bench methods|fleets|devices|sites|polling``.
"""
