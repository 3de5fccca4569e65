"""Step-wise PPO of the 7B run (paper A.5): actor, critic, reference and sampler.

    python -m launch.aot --config=configs/qwen2_5_7b_ppo.py --topology=v5p:2x2x1
    python -m launch.ppo --config=configs/qwen2_5_7b_ppo.py

Hardware: four v5p chips (v5p:2x2x1) or more, or eight H100 (h100:8, compiled, not run).
Micro-batches must be a multiple of the chips over four: on v5e:4x8
--set ppo.micro_batch_size=8 --set sample.num_slots=8 (eight hosts sample 64 rows at
once). Scripts run on the hosts' CPUs, `env.num_workers` at
once. With several samples a state (ppo.samples_per_state=8), sample.num_prefixes=10
keeps and reads each of 8 prompts once: compiled for v6e with prompts of 5,120 tokens,
a decode step then moves two thirds of the bytes.
Expected result: BUILD_NOTES.md, "TPU programs, compiled" and "Shared prefixes".
"""

import dataclasses

from configs import qwen2_5_7b
from mlagent_jax.config import MeshConfig, RunConfig


def get_config() -> RunConfig:
    """Returns the 7B run with layers split in four and rows over the rest."""
    config = qwen2_5_7b.get_config()
    return dataclasses.replace(
        config,
        mesh=MeshConfig(fsdp=-1, tensor=4),
        ppo=dataclasses.replace(config.ppo, micro_batch_size=2),
    )
