"""Sampling replies: methods on logits, prefill and decode, continuous batching."""
