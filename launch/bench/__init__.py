"""Benchmarks against peers on the same weights and the same work: `make bench`."""
