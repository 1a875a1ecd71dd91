"""Flower: what travels, the strategy, and the coordinator of a job. With the apps, the only room that imports it."""
