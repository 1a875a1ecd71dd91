"""A Flower app of one's own that can forget people."""
