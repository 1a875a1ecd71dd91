"""Many models of each kind on one split, and how their answers are distributed: ``dlfd-fleet bench margins``."""
