"""DLFD beside its peers and retraining, on one machine: ``dlfd-fleet bench methods``."""
