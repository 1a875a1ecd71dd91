"""One model in every format, and in torch: ``dlfd-fleet bench devices``."""
