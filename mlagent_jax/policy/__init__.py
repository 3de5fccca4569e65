"""Who writes replies: one protocol, three kinds (local sampler, endpoint, script)."""
