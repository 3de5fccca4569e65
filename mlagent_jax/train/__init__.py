"""Supervised training: optimizer, checkpoints, metrics, copying practice, SFT."""
