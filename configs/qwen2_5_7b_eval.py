"""Evaluation of the 7B run: 8 trajectories a task, as in the paper (A.8).

    python -m launch.evaluate --config=configs/qwen2_5_7b_eval.py

Hardware: one host of a slice that holds 15 GB of weights and the cache, such as
v5p:2x2x1 or v6e:2x2; `--program=sample` of `launch.aot` says by how much.
`--set sample.num_prefixes=16` keeps the task's part of the prompts once for all
trajectories of a task: a decode step reads less, prefill compiles longer. Memory falls
only where the rest of the longest prompt fits a smaller one of sample.prompt_buckets.
Expected result: the tables of the report over 9 held-in and 10 held-out tasks.
"""

import dataclasses

from configs import qwen2_5_7b
from mlagent_jax.config import MeshConfig, RunConfig


def get_config() -> RunConfig:
    """Returns the 7B run with the weights split over the chips of one host."""
    return dataclasses.replace(
        qwen2_5_7b.get_config(), mesh=MeshConfig(fsdp=1, tensor=4)
    )
