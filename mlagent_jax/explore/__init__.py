"""Exploration (paper A.3): diverse ideas and the expert trajectories they start."""
