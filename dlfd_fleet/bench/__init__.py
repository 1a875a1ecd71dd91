"""The benchmarks: DLFD and its peers, whole fleets, device files, and load.

``methods/`` and ``fleets/`` compare models with retrained ones. Both make a :class:`~dlfd_fleet.bench.rows.Row` of each
model by the same attacks (``evidence.py``), and show rows in the same table (``report.py``). ``certify/`` tries a
fleet's whole procedure before anybody asks. ``life/`` lets one fleet live through many erasures. ``devices/`` times one
model in every format. ``load/`` measures the coordinator by its sites, and the repository by its devices.

Nothing here is stable API. Commands: ``dlfd-fleet bench methods|fleets|margins|life|devices|sites|polling|memory`` and
``dlfd-fleet certify``.
"""
