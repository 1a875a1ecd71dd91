"""A site: Flower's ClientApp of the fleet."""
