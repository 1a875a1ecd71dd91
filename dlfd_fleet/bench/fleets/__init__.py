"""Whole fleets beside each other, on virtual nodes: ``dlfd-fleet bench fleets``."""
