"""Train a language model to do machine-learning engineering by experience.

An open JAX implementation of ML-Agent (arXiv 2505.23723). Host code (`env`,
`text`, `policy`, records) never imports jax; device code is pure functions over
parameter pytrees. Follow the imports downward to meet the stack in the order of
the pipeline.
"""
