"""The coordinator: Flower's ServerApp of the fleet."""
