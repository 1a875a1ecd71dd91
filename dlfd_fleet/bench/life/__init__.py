"""A fleet through many erasures: who comes and goes, what is left of whom, and what grows.

``dlfd-fleet bench life`` runs it: :mod:`~dlfd_fleet.bench.life.command`.
"""
