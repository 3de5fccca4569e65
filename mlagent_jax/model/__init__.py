"""Qwen-2.5 in flax.nnx behind pure functions; the only package that imports flax."""
