"""Stored trajectories, the states cut out of them, and training batches."""
